"""Whose turn it is, played with a simulated engine: a batch of places, one token of each per step."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest

from serve.fairshare import MOST_OWED, OUTPUT_COST, Claim, FairShare, FirstCome, Policy, jain
from serve.words import BANDS, Band

PLACES = 16
_NAMES: tuple[str, ...] = BANDS


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
    policy: Policy,
    players: Mapping[str, Player],
    steps: int,
    until: Callable[[int, str], bool] = lambda *_: True,
    places: int = PLACES,
    enough: float = math.inf,
    tokens: int = 1,
) -> dict[str, float]:
    """The service of each tenant: uncached prompt tokens, and output tokens twice.

    `until`: whether a tenant sends jobs in a step. `enough`: it ends with so much service. `tokens`: of a job per step.
    """
    draw, made, service = random.Random(0), 0, dict.fromkeys(players, 0.0)
    open_jobs, at_work = dict.fromkeys(players, 0), dict[Claim, int]()
    for step in range(steps):
        if sum(service.values()) >= enough:
            break
        for name, player in players.items():
            while open_jobs[name] < player.always and until(step, name):
                made, open_jobs[name] = made + 1, open_jobs[name] + 1
                policy.push(Claim(f"{made}", name, player.weight, player.band, player.prompt))
        while len(at_work) < places and (claim := policy.pop(places - len(at_work))):
            player = players[claim.tenant]
            at_work[claim] = max(1, round(player.output * draw.uniform(0.5, 1.5)))
            service[claim.tenant] += player.prompt - player.cached
            policy.cached(claim, player.cached)
        for claim in list(at_work):
            now = min(tokens, at_work[claim])
            policy.made(claim, now)
            service[claim.tenant] += 2 * now
            at_work[claim] -= now
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


SHORT, LONG_ANSWER, LONG_PROMPT = (100, 50), (100, 400), (4000, 50)


@pytest.mark.parametrize("places", [4, 8, 16])
@pytest.mark.parametrize(
    ("above", "below", "enough"),
    [
        (SHORT, SHORT, 2e5),
        (SHORT, LONG_ANSWER, 4e5),
        (LONG_ANSWER, SHORT, 4e5),
        (SHORT, LONG_PROMPT, 8e5),
        (LONG_PROMPT, SHORT, 8e5),
        (LONG_PROMPT, LONG_PROMPT, 2e6),
    ],
)
def test_a_starvation_share_is_a_share(
    places: int, above: tuple[int, int], below: tuple[int, int], enough: float
) -> None:
    players = {"above": Player(64, *above, band="interactive"), "below": Player(64, *below, band="batch")}
    got = played(FairShare(0.05), players, 10**9, places=places, enough=enough, tokens=5)
    assert got["below"] / sum(got.values()) == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("places", [1, 4, 16])
def test_each_of_two_lower_bands_that_wait_gets_its_share(places: int) -> None:
    players: dict[str, Player] = {band: Player(64, 200, 50, band=band) for band in BANDS}
    got = played(FairShare(0.1), players, 10**9, places=places, enough=4e5, tokens=5)
    for band in ("standard", "batch"):
        assert got[band] / sum(got.values()) == pytest.approx(0.1, abs=0.01)


def test_a_band_that_had_the_engine_for_itself_owes_nobody_and_keeps_its_share() -> None:
    players = {"above": Player(64, 100, 50, band="interactive"), "below": Player(64, 100, 50, band="batch")}
    fair, alone = FairShare(0.05), 2_000
    before = played(FairShare(0.05), players, alone, until=lambda step, name: name == "below", tokens=5)["below"]
    got = played(fair, players, 6 * alone, until=lambda step, name: name == "below" or step >= alone, tokens=5)
    both = got["above"] + got["below"] - before
    assert got["above"] / both > 0.9  # at once the engine is theirs who come first
    assert (got["below"] - before) / both == pytest.approx(0.05, abs=0.01)


class Place:
    """An engine with one place: one job after the other, each with an answer of 50 tokens."""

    def __init__(self, **waiting: tuple[int, int]) -> None:
        """Of each band so many jobs with such prompts."""
        self.fair, self.made = FairShare(0.05), 0
        for band, (number, prompt) in waiting.items():
            self.ask(band, number, prompt)

    def ask(self, band: str, number: int, prompt: int = 100) -> None:
        for _ in range(number):
            self.made += 1
            self.fair.push(Claim(f"{self.made}", band, 1.0, BANDS[_NAMES.index(band)], prompt))

    def take(self) -> Claim:
        claim = self.fair.pop(1)
        assert claim is not None
        return claim

    def answer(self, claim: Claim) -> float:
        """Returns the service."""
        self.fair.made(claim, 50)
        self.fair.done(claim)
        return claim.prompt_tokens + OUTPUT_COST * 50

    def others_before_batch(self) -> float:
        """The service that others get until a job of batch is answered."""
        service = 0.0
        while (claim := self.take()).band != "batch":
            service += self.answer(claim)
        self.answer(claim)
        return service


def test_what_a_band_got_ahead_of_its_turn_it_makes_up_for_also_while_it_is_idle() -> None:
    place = Place(interactive=(9_000, 100), batch=(2, 10_000))
    assert place.others_before_batch() == 200  # before anybody got anything, nothing was owed
    assert place.others_before_batch() * 0.05 == pytest.approx(10_100 * 0.95, rel=0.01)
    idle = 0.0
    while idle * 0.05 < 10_100:
        idle += place.answer(place.take())
    place.ask("batch", 1)
    assert place.others_before_batch() <= 200


def test_a_band_that_is_idle_is_owed_nothing() -> None:
    place = Place(interactive=(200, 100), batch=(1, 100))
    long = place.take()
    place.fair.made(long, 10_000)  # meanwhile batch is owed much, but leaves
    assert place.fair.drop("201")
    place.fair.done(long)
    place.ask("batch", 100)
    assert place.others_before_batch() == 200  # its turn comes when others have got something, not before
    assert place.others_before_batch() == pytest.approx(200 * 0.95 / 0.05, rel=0.1)


def test_no_band_waits_longer_than_the_bound_says_whatever_it_got() -> None:
    place = Place(interactive=(9_000, 100), batch=(2, 10 * int(MOST_OWED)))
    place.others_before_batch()
    assert place.others_before_batch() <= MOST_OWED / 0.05 + 200


def test_a_job_that_is_given_back_has_cost_its_band_nothing() -> None:
    place = Place(interactive=(9_000, 100), batch=(2, 5_000))
    place.answer(place.take())
    given = place.take()
    assert given.band == "batch"
    place.fair.cached(given, given.prompt_tokens)
    place.fair.done(given)
    assert place.others_before_batch() == 0


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
