"""Where tenants meet: a deployment started for one arm of a comparison, its tenants enrolled, its routers found."""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serve.bench.fairness import Arena, Player
from serve.bench.rungs import Rung, stack
from serve.settings import Settings
from serve.tenants.development import open_store
from serve.tenants.given import KeyGiven, LimitsGiven, OrganisationGiven, TenantGiven

KNOWN_WITHIN_S = 10.0  # until every router knows a new tenant


@dataclass(frozen=True, slots=True)
class Arm:
    """One deployment of a comparison. `reserve`: sequences kept free for band interactive."""

    policy: str = "fair"
    reserve: int = 0
    routers: int = 1
    engines: int = 1

    @property
    def name(self) -> str:
        reserve = f", reserve {self.reserve}" if self.reserve else ""
        return f"{self.policy}{reserve}, {_count(self.routers, 'router')}, {_count(self.engines, 'engine')}"

    def settings(self, given: Settings) -> Settings:
        (model,) = given.models
        queue = model.engine.queue.model_copy(update={"policy": self.policy, "reserve": self.reserve, "wait_s": 600.0})
        engine = model.engine.model_copy(update={"queue": queue, "replicas": self.engines})
        router = given.router.model_copy(update={"replicas": self.routers})
        return given.model_copy(update={"models": (model.model_copy(update={"engine": engine}),), "router": router})


@contextmanager
def arena(arm: Arm, given: Settings, cache: Path, vocabulary: int, players: Sequence[Player]) -> Iterator[Arena]:
    """The arm's stack with a tenant for each player. With two routers, each player has one for itself, in turn."""
    settings = arm.settings(given)
    with stack(settings, cache, arm.name) as rung:
        keys = _enrol(settings, rung, players)
        addresses = dict[str, str]()
        if arm.routers > 1:
            routers = _routers(rung, arm.routers)
            addresses = {player.tenant: routers[i % len(routers)] for i, player in enumerate(players)}
        for tenant, key in keys.items():
            _wait_until_known(addresses.get(tenant, rung.address), key)
        yield Arena(settings.models[0].name, vocabulary, keys, rung.address, addresses)


def _enrol(settings: Settings, rung: Rung, players: Sequence[Player]) -> dict[str, str]:
    store = open_store(settings.database, rung.folder)
    try:
        keys = dict[str, str]()
        with store.acting("bench") as acts:
            acts.create_organisation("bench", OrganisationGiven())
            for player in players:
                limits = LimitsGiven(requests_per_minute=player.requests_per_minute)
                given = TenantGiven(weight=player.weight, band=player.band, limits=limits)
                acts.create_tenant(player.tenant, "bench", given)
                keys[player.tenant] = acts.create_key(player.tenant, KeyGiven(name="bench")).secret.reveal()
        return keys
    finally:
        store.close()


def _routers(rung: Rung, wanted: int) -> list[str]:
    """Addresses of the routers themselves, from the configuration of HAProxy in front of them."""
    deadline = time.monotonic() + KNOWN_WITHIN_S
    while len(found := _known_to_haproxy(rung.folder)) != wanted:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{rung.name}: HAProxy knows {len(found)} routers, not {wanted}")
        time.sleep(0.2)
    return [f"http://{address}" for address in sorted(found)]


def _known_to_haproxy(instance: Path) -> set[str]:
    server = re.compile(r"^\s*server\s+SERVE_REPLICA_\S+\s+(127\.0\.0\.1:\d+)", re.MULTILINE)
    return {found for file in instance.glob("p/*/haproxy.cfg") for found in server.findall(file.read_text())}


def _wait_until_known(address: str, key: str) -> None:
    deadline = time.monotonic() + KNOWN_WITHIN_S
    while True:
        asked = urllib.request.Request(f"{address}/v1/models", headers={"Authorization": f"Bearer {key}"})
        try:
            with urllib.request.urlopen(asked, timeout=5):
                return
        except urllib.error.HTTPError:
            if time.monotonic() > deadline:
                raise RuntimeError("a new tenant is not known after 10 s") from None
        time.sleep(0.2)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' if number > 1 else ''}"
