"""The driver of one machine: Ray and Serve in this process, until SIGTERM. SIGHUP lets it open its log anew.

`python -m serve.deploy.driver CONFIG`, started by the supervisor (`serve.deploy.local`), which imports this file too:
Ray is imported inside functions, because it reads the environment then.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from serve.deploy.environment import METRICS_PORT
from serve.deploy.instance import NOT_STARTED, Instance
from serve.deploy.placing import unplaceable
from serve.settings import cache_folder, load
from serve.weights.manifest import prepared_folder

STARTING_RAY = "1/3 starting Ray"
READY = "ready"
SETTLE_S = 22.0  # for routers to write down what they did, after the answers' own time
FIND_ROUTERS_S = 3.0
_ASKED_EVERY_S = 1.0
_PR_SET_PDEATHSIG = 1


class Driver:
    """What is served on this machine."""

    def __init__(self, config: Path) -> None:
        self._settings = load(config)
        self._instance = Instance(self._settings.http.port)
        self._stop: list[int] = []

    def drive(self) -> int:
        """Serve until SIGTERM. Returns the exit status."""
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        signal.signal(signal.SIGHUP, lambda *_: self._open_log())
        self._instance.reach(STARTING_RAY)
        self._take_signals()
        self._start_ray()
        self._take_signals()  # Ray has put its own handler in place of ours
        import ray
        from ray import serve as ray_serve

        if problem := self._deploy():
            print(problem, flush=True)
            return 1
        router: Any = ray_serve.get_app_handle(self._settings.name) if not self._stop else None
        self._until(self._tell_ready)
        while not self._stop:
            time.sleep(0.1)
        if router is not None:
            self._end_answers(router)
        ray.shutdown()
        return 0

    def _take_signals(self) -> None:
        signal.signal(signal.SIGTERM, lambda n, _: self._stop.append(n))

    def _open_log(self) -> None:
        """The supervisor has begun a new one. What Ray or an engine still writes to the old one is not lost."""
        log = os.open(self._instance.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.close(log)

    def _start_ray(self) -> None:
        import ray

        settings = self._settings
        cores = sum(m.engine.cores * m.engine.replicas for m in settings.models)
        cores += settings.router.cores * settings.router.replicas
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, int(cores + 1)),
            object_store_memory=128 << 20,
            include_dashboard=False,
            runtime_env={"worker_process_setup_hook": "serve.deploy.worker.set_up"},
            _metrics_export_port=int(os.environ[METRICS_PORT]),
            _temp_dir=str(self._instance.folder / "ray"),
            _node_ip_address="127.0.0.1",
            logging_level="warning",
        )

    def _deploy(self) -> str | None:
        """Start Serve and what it serves, and wait for it, or for a stop. Returns why that cannot be."""
        from ray import serve as ray_serve

        from serve.deploy.deployments import application_of

        settings = self._settings
        self._instance.reach("2/3 starting Ray Serve and its proxy")
        # HAProxy binds the public address itself; without it Ray's own proxy does.
        host = "127.0.0.1" if settings.http.proxy == "haproxy" else settings.http.host
        ray_serve.start(http_options={"host": host, "port": settings.http.port})
        cache = cache_folder()
        folders = {m.name: prepared_folder(m, cache) for m in settings.models}
        application = application_of(settings, folders, self._instance.folder)
        self._instance.reach(f"3/3 starting the router and the engines of {len(settings.models)} model(s)")
        running = _beside(
            lambda: ray_serve.run(
                application, name=settings.name, route_prefix="/", logging_config={"enable_access_log": False}
            )
        )
        while not self._stop:
            done, _ = wait([running], timeout=_ASKED_EVERY_S)
            if done:
                failed = running.exception()
                return str(failed) if failed else None  # an engine has told its own reason before
            status = ray_serve.status().applications.get(settings.name)
            if status and (problem := unplaceable(status)):
                return f"{NOT_STARTED} {problem}"
        return None

    def _tell_ready(self) -> None:
        self._instance.metrics.write_text(f"http://127.0.0.1:{os.environ[METRICS_PORT]}/metrics")
        self._instance.reach(READY)

    def _until(self, done: Callable[[], None]) -> None:
        """Again until it can be written, or a stop: a full disk must not end what is served."""
        while not self._stop:
            try:
                return done()
            except OSError:
                time.sleep(_ASKED_EVERY_S)

    def _end_answers(self, router: Any) -> None:
        """Every router lets in nothing new, ends its answers and writes down what they cost."""
        try:
            print(f"stopped: {sum(asyncio.run(self._asked_to_stop(router)))} answers were cut", flush=True)
        except Exception as e:  # a router that is gone has nothing to end
            print(f"stopped: a router did not say that it has ended ({type(e).__name__}: {e})", flush=True)

    async def _asked_to_stop(self, router: Any) -> list[int]:
        """What each router says. A handle that was not used yet learns within a moment which routers there are.

        On an event loop, because in throughput-optimized mode handles have none of their own.
        """
        from ray.serve.exceptions import DeploymentUnavailableError

        within_s, until = self._settings.router.stop_s, time.monotonic() + FIND_ROUTERS_S
        while True:
            try:
                return list(await router.broadcast("stop", within_s).results_async(timeout_s=within_s + SETTLE_S))
            except DeploymentUnavailableError:
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(0.1)


def _beside(act: Callable[[], Any]) -> Future[Any]:
    """In a thread that does not keep this process alive."""
    future = Future[Any]()

    def run() -> None:
        try:
            future.set_result(act())
        except Exception as e:
            future.set_exception(e)

    threading.Thread(target=run, daemon=True).start()
    return future


if __name__ == "__main__":
    sys.exit(Driver(Path(sys.argv[1])).drive())
