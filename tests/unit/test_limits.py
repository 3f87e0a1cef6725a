"""What a limit lets pass, what a refusal says, and what tokens cost."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from serve.errors import LimitReached, QuotaExhausted
from serve.limit_settings import Price
from serve.limits import (
    MINUTE_US,
    Account,
    Meter,
    Need,
    Standing,
    day_end_us,
    duration,
    grown,
    headers,
    month_end_us,
    refusal_error,
    refusals,
)
from serve.words import Limits

NOW_US = 1_794_571_200_000_000


def us(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000_000


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0ms"), (0.0115, "12ms"), (0.9999, "1s"), (1, "1s"), (59.2, "1m0s"), (360, "6m0s"), (7201, "2h0m1s")],
)
def test_durations_are_written_as_openai_writes_them(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_headers_tell_only_what_is_limited() -> None:
    assert headers(Standing()) == {}
    assert headers(Standing(None, Meter(1000, 900, 6.0))) == {
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "900",
        "x-ratelimit-reset-tokens": "6s",
    }


def test_windows_end_in_utc_also_over_a_year() -> None:
    assert day_end_us(us("2026-12-31 23:59:59")) == us("2027-01-01 00:00:00")
    assert day_end_us(us("2026-12-31 00:00:00")) == us("2027-01-01 00:00:00")
    assert month_end_us(us("2026-12-31 23:59:59")) == us("2027-01-01 00:00:00")
    assert month_end_us(us("2028-02-29 00:00:00")) == us("2028-03-01 00:00:00")


def test_nothing_is_refused_without_limits() -> None:
    assert refusals("key", Limits(), Account(), Need(10**9, 10**9, 10**9), NOW_US) == []


def test_a_limit_of_zero_is_nothing_at_all() -> None:
    found = refusals("key", Limits(0, 0, 0, 0, 0, 0), Account(), Need(1, 1, 0), NOW_US)
    assert len(found) == 6
    assert not any(refusal.waiting_helps for refusal in found)


def test_a_wait_of_never_is_told_before_any_other() -> None:
    account = Account(requests_full_us=NOW_US + MINUTE_US, day_end_us=NOW_US + 10**12, day_tokens=100)
    limits = Limits(requests_per_minute=6, tokens_per_day=100)
    error = refusal_error(refusals("tenant", limits, account, Need(5, 5), NOW_US), Standing())
    assert isinstance(error, QuotaExhausted)
    assert error.reason == "tenant.tokens_per_day"
    assert error.headers == {"x-should-retry": "false"}
    soon = refusal_error(refusals("tenant", Limits(requests_per_minute=6), account, Need(5, 5), NOW_US), Standing())
    assert type(soon) is LimitReached
    assert soon.retry_after_s == 10
    assert soon.body()["error"]["code"] == "rate_limit_exceeded"


def test_a_hold_grows_in_large_steps_and_rarely() -> None:
    held, grew = 10, 0
    for made in range(1, 8000):
        if (more := grown(held, made)) is not None:
            assert more - made >= 64
            held, grew = more, grew + 1
        assert made < held
    assert grew < 30


def test_a_price_is_exact_and_rounded_up_once() -> None:
    price = Price.model_validate({"prompt": "0.15", "cached_prompt": "0.075", "output": "0.6"})
    assert price.of(1000, 0, 100) == 210  # 150 + 60 millionths
    assert price.of(1000, 1000, 0) == 75
    assert price.of(1, 0, 0) == 1  # 0.15 of a millionth
    assert price.of(0, 0, 0) == 0
    assert Price().of(10**9, 0, 10**9) == 0
    without = Price.model_validate({"prompt": "0.15"})
    assert without.of(100, 100, 0) == 15
