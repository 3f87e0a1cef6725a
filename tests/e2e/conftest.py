"""The started stacks of a run: one that all modules share, and one of its own for what breaks it.

The two live in two workers (tests/support/groups.py) and start at the same moment; files in the run's folder tell one
of the other. Variants come one after the other: `haproxy` always, and in the full tier `plain` (without HAProxy) and
`cluster` (PostgreSQL, Redis, two routers, two engines).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.bad_adapters import write_bad_adapters
from tests.support.collector import Collector
from tests.support.deployment import Deployment
from tests.support.neighbours import Neighbours
from tests.support.probe import Probe
from tests.support.servers import postgres, redis
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


@pytest.fixture(scope="session")
def neighbours(variant: str, tmp_path_factory: pytest.TempPathFactory) -> Neighbours:
    base = tmp_path_factory.getbasetemp()
    return Neighbours(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base, variant)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def shared(
    variant: str,
    neighbours: Neighbours,
    starcoder_folder: Path,
    adapter_folder: Path,
    collector: Collector,
    cache: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Deployment]:
    """Two models: the tiny StarCoder on one rank, and the same on two with adapters (`cluster`: two of the first)."""
    pair = {**tiny_model(starcoder_folder, tensor_parallel_size=2), "name": "pair"}
    bad = write_bad_adapters(starcoder_folder, adapter_folder, tmp_path_factory.mktemp("bad"))
    pair["adapters"] = [*bad, adapter_settings("good", adapter_folder)]
    settings: dict[str, Any] = {
        "models": [tiny_model(starcoder_folder), pair],
        "logs": "text" if variant == "plain" else "json",
        "http": {"comment_after_s": 1.0, "proxy": "plain" if variant == "plain" else "haproxy"},
        "tracing": {"endpoint": collector.endpoint, "sample_ratio": 0.0, "export_every_s": 0.2},
    }
    with ExitStack() as entered:
        database_url, limits = None, None
        if variant == "cluster":
            database, limits = entered.enter_context(postgres()), entered.enter_context(redis())
            database_url = database.url
            settings = {
                "models": [tiny_model(starcoder_folder, replicas=2)],
                "router": {"replicas": 2},
                "database": {"url": database_url},
                "limit_store": {"redis_url": limits.url, "deadline_ms": 1000},
            }
        stack = entered.enter_context(Stack(settings, cache)).start().ready()
        neighbours.tell(stack)
        probe = entered.enter_context(Probe(stack, [model["name"] for model in settings["models"]]))
        opened = Deployment(stack, probe, database_url, limits)
        entered.callback(opened.close)
        yield opened


@pytest.fixture(scope="session")
def stack(shared: Deployment) -> Stack:
    return shared.stack


@pytest.fixture(scope="session")
def client(stack: Stack) -> Iterator[httpx.Client]:
    with stack.client() as opened:
        yield opened


@pytest.fixture(scope="module")  # of test_breaking.py alone: it ends with that
def own(
    request: pytest.FixtureRequest, variant: str, neighbours: Neighbours, deep_folder: Path, cache: Path
) -> Iterator[Deployment]:
    """A stack to break, whose Ray ended while it started. It starts when the shared one does, on ports of its own.

    Nothing comes after the cluster, so that is broken itself.
    """
    if variant == "cluster":
        yield request.getfixturevalue("shared")
        return
    with neighbours.breaking(), ExitStack() as entered:
        proxy = {"proxy": "plain" if variant == "plain" else "haproxy"}
        stack = entered.enter_context(Stack({"models": [tiny_model(deep_folder)], "http": proxy}, cache)).start()
        stack.end_ray_while_it_starts()
        stack.ready()
        probe = entered.enter_context(Probe(stack, ["tiny"]))
        opened = Deployment(stack, probe)
        entered.callback(opened.close)
        yield opened
