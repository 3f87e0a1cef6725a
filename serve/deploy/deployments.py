"""The two deployments: Router (CPU, the only ingress) and one Engine per model.

In throughput-optimized mode this code runs on the replica's own event loop: nothing here may block once started.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import serve as ray_serve
from ray.serve.handle import DeploymentHandle

from serve import app as application
from serve.database import open_database
from serve.deploy.handle import BROADCAST_S, Failure, GivenBack, RayEngine
from serve.deploy.instance import NOT_STARTED
from serve.deploy.metrics import LedgerMetrics, LimitMetrics, LogMetrics, QueueMetrics, RequestMetrics
from serve.deploy.replica_choice import choice
from serve.engines.assembly import assemble
from serve.engines.moving import Moved, Room, keep_moving
from serve.engines.vllm import VllmEngine
from serve.errors import GenerationFailed, ServeError
from serve.jobs import preambles
from serve.ledger.ledger import FOLDER as LEDGER
from serve.ledger.ledger import Ledger
from serve.logs import logger, request_lines, sentences, write_line
from serve.made import FOLDER as MADE
from serve.made import Made
from serve.model_settings import Model
from serve.record import Record
from serve.settings import Settings, SettingsError, Tracing
from serve.tenants.development import open_store
from serve.tenants.directory import Tenants
from serve.tenants.following import follow
from serve.tracing import Traces
from serve.weights.adapters import checked
from serve.weights.manifest import verify
from serve.words import Counted, Event, Job

METRICS_EVERY_S = 5.0
UNBOUNDED = 100_000  # of the queues in a row only our own may be deep; Serve's must never fill first


class RouterReplica:
    """The FastAPI app of `app.build`, with engines that answer over handles."""

    def __init__(
        self, settings: Settings, folders: Mapping[str, Path], instance: Path, **handles: DeploymentHandle[Any]
    ) -> None:
        self._settings, self._folders, self._instance = settings, folders, instance
        self._handles = handles

    def __serve_build_asgi_app__(self) -> Any:
        engines = {m.name: RayEngine(self._handles[f"engine_{i}"]) for i, m in enumerate(self._settings.models)}
        settings, replica = self._settings, ray_serve.get_replica_context().replica_id.unique_id
        store = open_store(settings.database, self._instance)
        tenants = Tenants(store.pepper)
        tenants.refresh(store)  # blocks while it reads all tenants, once
        database = open_database(settings.database.url_in(self._instance))
        ledger = Ledger(self._instance / LEDGER, replica, database, write_line)
        lines, metrics = request_lines(self._instance, settings.logs), RequestMetrics(settings.metrics_tenants)
        log, log_metrics = logger(settings.logs, lines.write), LogMetrics()

        def observe(record: Record) -> None:
            log(record)
            metrics(record)

        async def tell_of_logs() -> None:
            while True:
                log_metrics(requests=lines.counts(), sentences=sentences())
                await asyncio.sleep(METRICS_EVERY_S)

        router = application.build(
            settings,
            self._folders,
            engines,
            tenants,
            ledger,
            observe=observe,
            on_limits=LimitMetrics(),
            on_ledger=LedgerMetrics(),
            beside=[lambda: follow(tenants, store, write_line), tell_of_logs],
        )
        self._stop = router.stop
        # All of this stays: the garbage collector need not walk through it, and stop every stream, again and again.
        gc.collect()
        gc.freeze()
        return router.app

    async def stop(self, within_s: float) -> int:
        """End in good order, within so many seconds for what runs. Returns how many answers were cut."""
        return await self._stop(within_s)


class EngineReplica:
    """One vLLM engine. It exits when the engine core dies; Ray Serve then starts another."""

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self, model: Model, folder: Path, tracing: Tracing, made: Path
    ) -> None:
        try:
            await asyncio.to_thread(verify, folder)
            self._traces = Traces(tracing, "engine")
            self._vllm = VllmEngine(model, folder, metrics_through_ray=True, ranks=_ranks(model, folder))
            self._peers: Any = None
            self._model = model.name
            self._name = ray_serve.get_replica_context().replica_id.unique_id
            engine = model.engine
            self._made = Made(made, self._name, write_line)
            self._engine, self._turns = assemble(self._vllm, engine.queue, engine.max_num_seqs, self._made.add)
            await self._vllm.warm_up()
            for name, reason in (await self._vllm.load_adapters()).items():
                write_line(f"not served: {model.name}: adapter {name}: vLLM refuses it: {reason}")
            self._beside = [
                asyncio.create_task(self._tell(QueueMetrics(model.name))),
                asyncio.create_task(keep_moving(self._turns, self._name, self._rooms)),
            ]
        except Exception as e:
            # Serve keeps the reason to itself; this line is what the operator sees.
            write_line(f"{NOT_STARTED} {model.name}: {' '.join(str(e).split())}")
            raise

    async def _tell(self, metrics: QueueMetrics) -> None:
        while True:
            metrics(self._turns, self._engine)
            self._made.add(0)  # retries a count that a full disk refused, also while no client asks
            await asyncio.sleep(METRICS_EVERY_S)

    async def generate(self, job: Job) -> AsyncGenerator[Event | Failure | GivenBack, None]:
        events, spans, made = self._engine.generate(job), self._traces.job(job.traceparent), 0
        try:
            async for event in events:
                if event.start:
                    spans.started(event.start)
                    event = event._replace(start=event.start._replace(engine=self._name))
                made += len(event.token_ids)
                yield event
        except Moved as e:
            yield GivenBack(e.waited_s, e.toward)
        except ServeError as e:
            yield Failure.of(e)
        except Exception as e:  # of this request alone: it must not reach the router as the end of an engine
            write_line(f"{self._model}: request {job.job_id} failed in the engine's replica: {type(e).__name__}")
            yield Failure.of(GenerationFailed(f"the engine could not finish this answer ({type(e).__name__})"))
        finally:
            await events.aclose()
            spans.end(made)
            self._exit_if_dead()

    async def check(self) -> Failure | None:
        try:
            await self._engine.check()
        except ServeError as e:
            return Failure.of(e)
        finally:
            self._exit_if_dead()
        return None

    async def counted(self, job_ids: Sequence[str]) -> dict[str, Counted]:
        return await self._engine.counted(job_ids)

    async def forget(self, job_ids: Sequence[str]) -> None:
        await self._engine.forget(job_ids)

    async def room(self) -> tuple[str, Room]:
        """Of this replica, by its name."""
        return self._name, self._turns.room()

    async def _rooms(self) -> dict[str, Room]:
        """Of all replicas of this model to which Serve sends jobs: this one too, unless it is leaving."""
        if self._peers is None:  # each handle has tasks of its own that never end
            context = ray_serve.get_replica_context()
            self._peers = ray_serve.get_deployment_handle(context.deployment, context.app_name)
        calling: Any = self._peers.broadcast("room")
        return dict(await calling.results_async(timeout_s=BROADCAST_S))

    async def running(self) -> int:
        """Requests in the engine and in line for it, for tests and operators."""
        return self._vllm.running + self._turns.waiting

    async def output_tokens(self) -> int:
        """Tokens handed out since this replica started, for tests and operators."""
        return self._engine.output_tokens

    async def check_health(self) -> None:
        await self._engine.check()

    def _exit_if_dead(self) -> None:
        """Leave once the answers on their way are out: a dead engine must not hold its place.

        Only the engine says that it is dead. An error that ends one request does not end the requests of other clients.
        """
        if self._vllm.is_dead:
            asyncio.get_running_loop().call_later(0.5, os._exit, 1)


def _ranks(model: Model, folder: Path) -> dict[str, int]:
    """Of the adapters that fit. One that does not is named in the log; the base and the others are served."""
    ranks = dict[str, int]()
    for adapter in model.adapters:
        try:
            ranks[adapter.name] = checked(adapter, folder)
        except SettingsError as e:
            write_line(f"not served: {model.name}: {e}")
    return ranks


def application_of(settings: Settings, folders: Mapping[str, Path], instance: Path) -> Any:
    """The Ray Serve application: a router bound to the engines. `instance`: its folder."""
    made = instance / MADE
    engines = {
        f"engine_{i}": _engine(m, folders[m.name], settings.tracing, made) for i, m in enumerate(settings.models)
    }
    router = ray_serve.deployment(
        name="router",
        num_replicas=settings.router.replicas,
        max_ongoing_requests=UNBOUNDED,
        graceful_shutdown_timeout_s=settings.router.drain_s,
        health_check_period_s=5,
        ray_actor_options={"num_cpus": settings.router.cores},
    )(ray_serve.ingress()(RouterReplica))
    return router.bind(settings, dict(folders), instance, **engines)


def _engine(model: Model, folder: Path, tracing: Tracing, made: Path) -> Any:
    engine = model.engine
    gpus = engine.ranks if engine.device == "gpu" else 0
    deployment: Any = ray_serve.deployment(
        name=f"engine-{model.name.replace('/', '--')}",
        num_replicas=engine.replicas,
        max_ongoing_requests=UNBOUNDED,
        health_check_period_s=2,
        graceful_shutdown_timeout_s=5,
        ray_actor_options={"num_cpus": engine.cores, "num_gpus": gpus},
        **_choice(model, folder),
    )(EngineReplica)
    return deployment.bind(model, folder, tracing, made)


def _choice(model: Model, folder: Path) -> dict[str, Any]:
    """How routers choose among this model's replicas."""
    engine = model.engine
    if engine.replicas == 1:
        return {}
    if engine.replica_choice == "balanced":
        return {"request_router_config": choice()}
    vocabulary, prompts = application.words_of(model, folder)
    return {"request_router_config": choice(engine.affinity_blocks, preambles(prompts, vocabulary))}
