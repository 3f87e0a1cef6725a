"""A second refusal of the same kind costs next to nothing, and nobody is refused who would not have been."""

from __future__ import annotations

import pytest

from serve.errors import LimitReached
from serve.limits import Account, Need, refusal_error, refusals, standing
from serve.refused import Refused
from serve.words import Level, Limits, Secret, Tenant
from tests.support.books import Open

NEED = Need(10, 10)


def tenant(key: str, limits: Limits, level: Level = "key") -> Tenant:
    return Tenant("team", key, Secret("salt"), "acme", limits=((level, key, limits),))


def refusal(limits: Limits, account: Account) -> LimitReached:
    return refusal_error(refusals("key", limits, account, NEED, 0), standing([(limits, account)], 0))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("full_us", "for_s"), [(60_200_000, 0.2), (200_000_000, 1.0)])
def test_a_refusal_for_requests_per_minute_is_repeated_until_one_fits_or_for_a_second(
    full_us: int, for_s: float
) -> None:
    clock, limits = Clock(), Limits(requests_per_minute=60_000_000)
    refused, one = Refused(clock), tenant("one", limits)
    error = refusal(limits, Account(requests_full_us=full_us))
    refused.note(one, error)
    clock.now += for_s - 0.01
    with pytest.raises(LimitReached, match="requests per minute") as again:
        refused.check(one)
    assert (again.value.retry_after_s, again.value.headers) == (error.retry_after_s, error.headers)
    refused.check(tenant("other", limits))
    refused.check(tenant("one", limits, "tenant"))
    clock.now += 0.02
    refused.check(one)


@pytest.mark.parametrize(
    ("limits", "account"),
    [
        (Limits(tokens_per_minute=100), Account(tokens_full_us=60_000_000)),  # a smaller request might fit
        (Limits(concurrent_requests=1), Account(running=1)),  # another may end at any time
        (Limits(tokens_per_day=100), Account(day_tokens=100)),
        (Limits(requests_per_minute=0), Account()),  # not a matter of time
    ],
)
def test_what_something_else_than_time_may_lift_is_asked_again(limits: Limits, account: Account) -> None:
    refused, one = Refused(Clock()), tenant("one", limits)
    refused.note(one, refusal(limits, account))
    refused.check(one)


async def test_a_flood_of_one_who_is_over_its_limit_is_refused_unread_and_told_alike(opened: Open) -> None:
    books = opened(key={"limits": Limits(requests_per_minute=1)})
    door = books.door
    answers = [await door.post("/v1/completions") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 429, 429]
    assert answers[1].json() == answers[2].json()
    assert answers[1].headers["retry-after"] == answers[2].headers["retry-after"]
    assert (await door.client.post("/v1/completions", content=b"not JSON")).status_code == 429
    found = await books.rows()
    assert [row["outcome"] for row in found].count("refused") == 3
    assert [row["model"] for row in found if row["outcome"] == "refused"] == ["tiny", "", ""]
