"""One machine, in the foreground: start Ray, Serve, HAProxy and the engines, and take all of it down again.

Two processes. The supervisor (`up`) imports no Ray: it is the subreaper of everything below, so that no orphan
escapes it, and it records ids and start times, so that the next start can clean up after `kill -9`.
The driver (`python -m serve.deploy.local`) holds Ray and ends Serve in order when it is told to.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from serve.deploy.environment import METRICS_PORT, PRIVATE_PORTS, environment_of
from serve.deploy.instance import Instance, claim_ports, end_below, reap_orphans
from serve.settings import Settings, cache_folder, load
from serve.weights.manifest import prepared_folder

STOP_WITHIN_S = 8.0  # given to an orderly end; then what is left is killed by its id
RECORD_EVERY_S = 1.0
TELL_EVERY_S = 10.0
STARTING_RAY = "1/3 starting Ray"
READY = "ready"
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def up(
    config: Path, settings: Settings, instance: Instance, say: Callable[[str], None], on_ready: Callable[[], None]
) -> int:
    """Run until a signal or until the driver ends. Returns the exit status."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _: signals.append(n))
    for last_try in (False, True):
        stage = _run(config, settings, instance, signals, say, on_ready)
        if signals or last_try or stage != STARTING_RAY:
            break
        # Seen once in some twenty starts of two instances at a time: Ray's raylet dies within its first seconds.
        say("Ray ended while it started; trying once more")
    if not signals:
        say(instance.reason())
    return 0 if signals else 1


def _run(
    config: Path,
    settings: Settings,
    instance: Instance,
    signals: list[int],
    say: Callable[[str], None],
    on_ready: Callable[[], None],
) -> str:
    """One life of the driver, and the end of all that it left. Returns the last stage that it reached."""
    with claim_ports(PRIVATE_PORTS) as claim:
        driver = _start_driver(config, settings, instance, claim.getsockname()[1] - PRIVATE_PORTS + 1)
        _watch(driver, signals, instance, say, on_ready)
        instance.record()
        if signals:
            say("stopping; press Ctrl-C again to stop at once")
            _stop(driver, signals)
            instance.record()  # what was born while we waited
        stage = instance.stage()
        end_below()
        instance.clean()
    return stage


def _start_driver(config: Path, settings: Settings, instance: Instance, low: int) -> subprocess.Popen[bytes]:
    with instance.log.open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "serve.deploy.local", str(config)],
            env={**os.environ, **environment_of(settings, instance, low)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # A terminal's Ctrl-C goes to the whole group; only we may decide what it means.
            start_new_session=True,
        )


def _watch(
    driver: subprocess.Popen[bytes],
    signals: list[int],
    instance: Instance,
    say: Callable[[str], None],
    on_ready: Callable[[], None],
) -> None:
    """Tell each stage of the start, and record what runs, until a signal or the driver's end."""
    began, recorded, told, stage = time.monotonic(), 0.0, 0.0, ""
    while driver.poll() is None and not signals:
        now = time.monotonic()
        if now - recorded > RECORD_EVERY_S:
            recorded = now
            instance.record()
            reap_orphans(driver.pid)
        reached = instance.stage()
        if reached == READY and stage != READY:
            say(f"ready after {now - began:.0f} s")
            on_ready()
        elif reached != READY and (reached != stage or now - told > TELL_EVERY_S):
            told = now
            say(f"{reached} ({now - began:.0f} s)")
        stage = reached
        time.sleep(0.25)


def drive(config: Path) -> None:
    """The driver: Ray in this process, until SIGTERM."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    settings = load(config)
    instance = Instance(settings.http.port)
    # Imported here: the supervisor must not load Ray, and Ray reads the environment when it is imported.
    import ray
    from ray import serve as ray_serve

    from serve.deploy.deployments import application_of

    instance.reach(STARTING_RAY)
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda n, _: stop.append(n))
    cores = sum(m.engine.cores * m.engine.replicas for m in settings.models)
    cores += settings.router.cores * settings.router.replicas
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, int(cores + 1)),
        object_store_memory=128 << 20,
        include_dashboard=False,
        runtime_env={"worker_process_setup_hook": "serve.deploy.loopback.bind_replicas"},
        _metrics_export_port=int(os.environ[METRICS_PORT]),
        _temp_dir=str(instance.folder / "ray"),
        _node_ip_address="127.0.0.1",
        logging_level="warning",
    )
    # Ray has put its own handler in place of ours.
    signal.signal(signal.SIGTERM, lambda n, _: stop.append(n))
    instance.reach("2/3 starting Ray Serve and its proxy")
    # HAProxy binds the public address itself; without it Ray's own proxy does.
    host = "127.0.0.1" if settings.http.proxy == "haproxy" else settings.http.host
    ray_serve.start(http_options={"host": host, "port": settings.http.port})
    cache = cache_folder()
    folders = {m.name: prepared_folder(m, cache) for m in settings.models}
    application = application_of(settings, folders, instance.folder)
    instance.reach(f"3/3 starting the router and the engines of {len(settings.models)} model(s)")
    ray_serve.run(application, name=settings.name, route_prefix="/", logging_config={"enable_access_log": False})
    instance.metrics.write_text(f"http://127.0.0.1:{os.environ[METRICS_PORT]}/metrics")
    instance.reach(READY)
    while not stop:
        time.sleep(0.1)
    ray.shutdown()


def _stop(driver: subprocess.Popen[bytes], signals: list[int]) -> None:
    driver.terminate()
    deadline = time.monotonic() + STOP_WITHIN_S
    while driver.poll() is None and time.monotonic() < deadline and len(signals) < 2:
        time.sleep(0.05)


if __name__ == "__main__":
    drive(Path(sys.argv[1]))
