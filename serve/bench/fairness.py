"""`starserve bench fairness`: who gets what of a busy engine, fairly and in order of arrival, on the same stack.

Shares: of two tenants that always wait, how much does each get? Crowd: and of a few requests at a time beside many, on
several engines? Neighbours: how long does somebody who asks now and then wait beside a flood? Refusals: and beside one
of requests that are refused? Each arm is a deployment of its own, started as its users start it; the same load, the
same seed.
"""

from __future__ import annotations

import asyncio
import math
import random
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from serve.bench.arrivals import Closed
from serve.bench.child import findings
from serve.bench.client import Request
from serve.bench.load import Load, Ran, run
from serve.bench.service import Window, at_work, least_waiting, output_tokens, service
from serve.bench.stream import Sample
from serve.words import Band

FILLING_S = 5.0  # how long a flood fills the engine before somebody comes beside it
SETTLING = 0.25  # share of a run at its start that does not count


@dataclass(frozen=True, slots=True)
class Player:
    """A tenant that keeps so many requests on their way, of `prompt` tokens in and `output` out.

    `varied`: from half of that to one and a half; answers of one length end together and begin together, for ever.
    """

    tenant: str
    users: int
    prompt: int
    output: int
    weight: float = 1.0
    band: Band = "standard"
    requests_per_minute: int | None = None
    varied: bool = False


@dataclass(frozen=True, slots=True)
class Arena:
    """Where the players meet. `addresses`: one for all, or one for each tenant by name."""

    model: str
    vocabulary: int
    keys: Mapping[str, str]
    address: str
    addresses: Mapping[str, str]

    def request(self, player: Player, draw: random.Random) -> Request:
        ids = [draw.randrange(1, self.vocabulary) for _ in range(player.prompt)]
        output = draw.randint(player.output // 2, player.output * 3 // 2) if player.varied else player.output
        body = {"model": self.model, "prompt": ids, "max_tokens": output, "temperature": 0,
                "ignore_eos": True, "stream_options": {"continuous_usage_stats": True}}  # fmt: skip
        return Request("/v1/completions", body)

    def load(self, player: Player, staggered: int = 0) -> Load:
        """`staggered`: so many first answers are of any length up to its own, as if they had begun before.

        Answers of one length that begin together end together, for ever: at each end the engine would stand nearly
        empty, then read a batch of prompts at once.
        """
        sent = count()

        def ask(draw: random.Random) -> Request:
            early = next(sent) < staggered
            return self.request(replace(player, output=draw.randint(1, player.output)) if early else player, draw)

        key, address = self.keys[player.tenant], self.addresses.get(player.tenant, "")
        return Load(player.tenant, Closed(player.users), ask, key, address)

    def meet(self, players: Sequence[Player], for_s: float, seed: int) -> Ran:
        """All at once; what is unanswered at the end is cut off."""
        return asyncio.run(run(self.address, [self.load(p) for p in players], for_s, seed, cut=True))


def shares(arena: Arena, players: Sequence[Player], for_s: float, seed: int) -> dict[str, Any]:
    """What players that always wait got, by tenant, and whether they always waited."""
    ran = arena.meet(players, for_s, seed)
    window = _window(ran, for_s)
    of = _by_tenant(ran.samples)
    got = {p.tenant: service(of[p.tenant], window) for p in players}
    whole = sum(got.values())
    return {
        "service": got,
        "share": {tenant: part / whole for tenant, part in got.items()},
        "fair_share": {p.tenant: p.weight / sum(q.weight for q in players) for p in players},
        "least_waiting": {p.tenant: least_waiting(of[p.tenant], window) for p in players},
        "sent": {p.tenant: len(of[p.tenant]) for p in players},
        "output_tokens_s": output_tokens(ran.samples, window) / (window.until_s - window.from_s),
        "errors": _errors(ran.samples),
    }


def crowd(arena: Arena, few: Player, many: Player, for_s: float, seed: int) -> dict[str, Any]:
    """What a few requests at a time get beside many, and what they get by themselves."""
    ran = arena.meet([few], for_s / 2, seed)
    window = _window(ran, for_s / 2)
    by_itself = service(ran.samples, window) / (window.until_s - window.from_s)
    told = shares(arena, [few, many], for_s, seed + 1)
    got, weights = told["share"][few.tenant], told["fair_share"][few.tenant]
    whole = sum(told["service"].values()) / (for_s * (1 - SETTLING))
    return {**told, "alone_service_s": by_itself, "due": min(by_itself / whole, weights), "got": got}


def beside_refusals(
    arena: Arena, light: Player, flood: Player, rate_s: float, requests: int, seed: int, least_s: float = 10.0
) -> Any:
    """Run the light player by itself, then beside so many requests per second of one who is over its limit."""
    by_itself = alone(arena, light, requests, seed)
    request = arena.request(flood, random.Random(seed))
    for_s = max(least_s, 1.5 * sum(by_itself["e2e_s"]))
    task = {"address": arena.address, "key": arena.keys[flood.tenant], "path": request.path, "body": request.body,
            "rate_s": rate_s, "for_s": for_s}  # fmt: skip
    with ThreadPoolExecutor(1) as pool:
        flooding = pool.submit(lambda: list(findings("serve.bench.flood", task, "flood")))
        later = replace(arena.load(light), after_s=2.0)
        ran = asyncio.run(run(arena.address, [later], for_s - 2.0, seed + 1, most=requests))
        (told,) = flooding.result()
    return {"alone": by_itself, "ttft_s": _ttfts(ran.samples), "flood": told, "errors": _errors(ran.samples)}


def alone(arena: Arena, light: Player, requests: int, seed: int) -> dict[str, Any]:
    """The light player with the engine to itself."""
    ran = asyncio.run(run(arena.address, [arena.load(light)], 3600, seed, most=requests))
    return {
        "ttft_s": _ttfts(ran.samples), "e2e_s": [s.e2e_s for s in ran.samples], "errors": _errors(ran.samples),
    }  # fmt: skip


def neighbours(
    arena: Arena, light: Player, flood: Player, requests: int, most_s: float, places: int, seed: int
) -> dict[str, Any]:
    """The light player beside the flood, until it has had so many answers or the time is over."""
    loads = [arena.load(flood, staggered=places), replace(arena.load(light), after_s=FILLING_S)]
    ran = asyncio.run(run(arena.address, loads, most_s, seed, most=requests, cut=True, leader=light.tenant))
    of = _by_tenant(ran.samples)
    answered = [s for s in of[light.tenant] if s.outcome == "done"]
    window = Window(answered[0].sent_s, answered[-1].ended_s)
    busy = at_work(ran.samples, window)
    return {
        "ttft_s": _ttfts(answered),
        # Not the gap between chunks: under load several tokens share one.
        "step_s": statistics.median(t for s in of[flood.tenant] if s.outcome == "done" and (t := s.tpot_s)),
        "full": statistics.fmean(min(n, places) for n in busy) / places,  # between first and last token, as seen here
        "least_waiting": min(least_waiting(of[flood.tenant], window), default=0),
        "output_tokens_s": output_tokens(ran.samples, window) / (window.until_s - window.from_s),
        "errors": _errors(ran.samples),
    }


def _window(ran: Ran, for_s: float) -> Window:
    return Window(ran.began_s + SETTLING * for_s, ran.began_s + for_s)


def _by_tenant(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    found = dict[str, list[Sample]]()
    for sample in samples:
        found.setdefault(sample.tenant, []).append(sample)
    return found


def _ttfts(samples: Sequence[Sample]) -> list[float]:
    return sorted(s.ttft_s for s in samples if s.ttft_s is not None)


def _errors(samples: Sequence[Sample]) -> dict[str, int]:
    return dict(Counter(str(s.code or s.outcome) for s in samples if s.outcome not in ("done", "cut")))


def quantile(values: Sequence[float], share: float) -> float:
    """Of sorted values: the smallest that so many are not above."""
    return values[max(0, math.ceil(share * len(values)) - 1)] if values else math.nan
