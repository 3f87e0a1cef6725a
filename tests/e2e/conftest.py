"""The started stacks of a run: one that all modules share, and one of its own for what breaks it.

Both start at the same moment. Variants come one after the other: `haproxy` always, and in the full tier `plain`
(without HAProxy) and `cluster` (PostgreSQL, Redis, two routers, two engines). Tests in `apart/` start their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import yaml

from tests.support.bad_adapters import write_bad_adapters
from tests.support.collector import Collector
from tests.support.deployment import Deployment
from tests.support.probe import Probe
from tests.support.servers import Redis, postgres, redis
from tests.support.stack import Stack, tiny_model
from tests.support.starcoder.models import adapter_settings, write_adapter, write_model


@pytest.fixture(scope="session")
def adapter_folder(starcoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(starcoder_folder, tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="session")
def deep_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StarCoder whose steps take milliseconds: its answers are long enough to be killed in their middle."""
    return write_model(tmp_path_factory.mktemp("deep-starcoder"), n_layer=8)


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    with Collector() as opened:
        yield opened


@pytest.fixture(scope="session", params=["haproxy", pytest.param("plain", marks=pytest.mark.full)])
def variant(request: pytest.FixtureRequest) -> str:
    """Modules that want others say so: `pytest.mark.parametrize("variant", …, indirect=True)`."""
    return str(request.param)


class Started(NamedTuple):
    """Stacks that have begun to start. `own`: None where nothing is to be broken apart from the shared one."""

    shared: Stack
    own: Stack | None
    database_url: str | None = None
    limits: Redis | None = None


@pytest.fixture(scope="session")
def started(
    request: pytest.FixtureRequest,
    variant: str,
    starcoder_folder: Path,
    adapter_folder: Path,
    deep_folder: Path,
    collector: Collector,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Started]:
    """The shared one has two models: the tiny StarCoder on one rank, and the same on two with adapters.

    `cluster`: two engines of a deep one instead. The one to be broken loses its Ray while it starts.
    """
    cache = tmp_path_factory.mktemp("cache")
    pair = {**tiny_model(starcoder_folder, tensor_parallel_size=2), "name": "pair"}
    bad = write_bad_adapters(starcoder_folder, adapter_folder, tmp_path_factory.mktemp("bad"))
    pair["adapters"] = [*bad, adapter_settings("good", adapter_folder)]
    proxy = {"proxy": "plain" if variant == "plain" else "haproxy"}
    settings: dict[str, Any] = {
        "models": [tiny_model(starcoder_folder), pair],
        "logs": "text" if variant == "plain" else "json",
        "http": {"comment_after_s": 1.0, **proxy},
        "router": {"stop_s": 1},
        "tracing": {"endpoint": collector.endpoint, "sample_ratio": 0.0, "export_every_s": 0.2},
    }
    with ExitStack() as entered:
        if variant == "cluster":
            database, limits = entered.enter_context(postgres()), entered.enter_context(redis())
            settings = {
                "models": [tiny_model(deep_folder, replicas=2)],
                "router": {"replicas": 2},
                "database": {"url": database.url},
                "limit_store": {"redis_url": limits.url, "deadline_ms": 1000},
            }
            yield Started(entered.enter_context(Stack(settings, cache)).start().ready(), None, database.url, limits)
            return
        shared, own = entered.enter_context(Stack(settings, cache)).start(), None
        if any("own" in getattr(item, "fixturenames", ()) for item in request.session.items):
            own = entered.enter_context(Stack({"models": [tiny_model(deep_folder)], "http": proxy}, cache)).start()
            own.end_ray_while_it_starts()
        yield Started(shared.ready(), own)


@contextmanager
def deployed(started: Started, stack: Stack) -> Iterator[Deployment]:
    models = [model["name"] for model in yaml.safe_load(stack.config.read_text())["models"]]
    with Probe(stack, models) as probe:
        opened = Deployment(stack, probe, started.database_url, started.limits)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def shared(started: Started) -> Iterator[Deployment]:
    with deployed(started, started.shared) as opened:
        yield opened


@pytest.fixture(scope="session")
def stack(shared: Deployment) -> Stack:
    return shared.stack


@pytest.fixture(scope="session")
def client(stack: Stack) -> Iterator[httpx.Client]:
    with stack.client() as opened:
        yield opened


@pytest.fixture(scope="session")
def own(request: pytest.FixtureRequest, started: Started) -> Iterator[Deployment]:
    """The stack to be broken. Nothing comes after the cluster, so that is broken itself."""
    if started.own is None:
        yield request.getfixturevalue("shared")
        return
    with deployed(started, started.own.ready()) as opened:
        yield opened
