"""Whose turn it is, played with a simulated engine: a batch of places, one token of each per step."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest

from serve.fairshare import Claim, FairShare, FirstCome, Policy, jain
from serve.words import Band

PLACES = 16


@dataclass
class Player:
    """A tenant in a closed loop: `always` jobs of these sizes wait or run, at every moment."""

    always: int
    prompt: int
    output: int
    weight: float = 1.0
    band: Band = "standard"
    cached: int = 0


def played(
    policy: Policy, players: Mapping[str, Player], steps: int, until: Callable[[int, str], bool] = lambda *_: True
) -> dict[str, float]:
    """The service of each tenant: uncached prompt tokens, and output tokens twice."""
    draw, made, service = random.Random(0), 0, dict.fromkeys(players, 0.0)
    open_jobs, at_work = dict.fromkeys(players, 0), dict[Claim, int]()
    for step in range(steps):
        for name, player in players.items():
            while open_jobs[name] < player.always and until(step, name):
                made, open_jobs[name] = made + 1, open_jobs[name] + 1
                policy.push(Claim(f"{made}", name, player.weight, player.band, player.prompt))
        while len(at_work) < PLACES and (claim := policy.pop(PLACES - len(at_work))):
            player = players[claim.tenant]
            at_work[claim] = max(1, round(player.output * draw.uniform(0.5, 1.5)))
            service[claim.tenant] += player.prompt - player.cached
            policy.cached(claim, player.cached)
        for claim in list(at_work):
            policy.made(claim, 1)
            service[claim.tenant] += 2
            at_work[claim] -= 1
            if not at_work[claim]:
                del at_work[claim]
                open_jobs[claim.tenant] -= 1
                policy.done(claim)
    return service


@pytest.mark.parametrize("weight", [1.0, 3.0, 0.5])
def test_two_that_always_wait_get_service_by_their_weights(weight: float) -> None:
    players = {"many": Player(200, 300, 512, weight), "few": Player(20, 300, 64)}
    got = played(FairShare(), players, 20_000)
    assert got["many"] / got["few"] == pytest.approx(weight, rel=0.05)


def test_first_come_lets_whoever_sends_more_have_more() -> None:
    got = played(FirstCome(), {"many": Player(200, 300, 512), "few": Player(20, 300, 64)}, 20_000)
    assert got["many"] / got["few"] > 5


def test_a_small_demand_is_met_and_the_rest_goes_to_who_wants_it() -> None:
    alone = played(FairShare(), {"small": Player(2, 100, 50)}, 5_000)["small"]
    got = played(FairShare(), {"small": Player(2, 100, 50), "large": Player(200, 100, 50)}, 5_000)
    full = played(FairShare(), {"large": Player(200, 100, 50)}, 5_000)["large"]
    assert got["small"] > 0.75 * alone
    assert sum(got.values()) == pytest.approx(full, rel=0.02)


def test_what_was_cached_is_not_charged() -> None:
    players = {"cached": Player(100, 400, 32, cached=384), "new": Player(100, 400, 32)}
    got = played(FairShare(), players, 20_000)
    assert got["cached"] / got["new"] == pytest.approx(1, rel=0.05)


def test_idle_time_earns_nothing() -> None:
    players = {"steady": Player(100, 100, 50), "late": Player(100, 100, 50)}
    early = played(FairShare(), {"steady": players["steady"]}, 5_000)["steady"]
    got = played(FairShare(), players, 10_000, until=lambda step, name: name == "steady" or step >= 5_000)
    assert got["late"] / (got["steady"] - early) == pytest.approx(1, rel=0.05)


def test_interactive_goes_before_batch_and_batch_keeps_its_share() -> None:
    players = {"typing": Player(100, 100, 50, band="interactive"), "nightly": Player(100, 100, 50, band="batch")}
    got = played(FairShare(starvation_share=0.1), players, 20_000)
    assert got["nightly"] / sum(got.values()) == pytest.approx(0.1, abs=0.03)
    strict = played(FairShare(starvation_share=0), players, 20_000)
    assert strict["nightly"] == 0


def test_many_tenants_get_the_same_and_are_forgotten_when_idle() -> None:
    fair = FairShare()
    players = {f"t{i}": Player(1 + i % 7, 50, 10 + i % 40) for i in range(300)}
    got = played(fair, players, 30_000)
    assert min(got.values()) > 0.9 * max(got.values())


def test_a_job_that_left_gets_no_turn_and_one_for_several_places_waits_for_them() -> None:
    fair = FairShare()
    for number in range(3):
        fair.push(Claim(f"{number}", "t", 1, "standard", 10, sequences=4 if number == 1 else 1))
    assert fair.drop("0")
    assert not fair.drop("0")
    assert fair.pop(3) is None  # the next wants four places; the third job does not overtake it
    taken = fair.pop(4)
    assert taken is not None
    assert (taken.job_id, fair.drop("1")) == ("1", False)
    last = fair.pop(16)
    assert last is not None
    assert last.job_id == "2"
    assert fair.pop(16) is None


def test_jains_index_is_1_for_equals_and_1_in_n_for_one_who_has_all() -> None:
    assert jain([3, 3, 3]) == pytest.approx(1)
    assert jain([9, 0, 0]) == pytest.approx(1 / 3)
    assert jain([0, 0]) == 1
