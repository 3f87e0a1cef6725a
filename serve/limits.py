"""What a key, a tenant and an organisation may hold: the rules of each limit, and what a refusal says. Pure: no clock.

Requests and tokens per minute are buckets that refill all the time: a limit of 60 gives one each second, and at most 60
at once. Such a bucket is one number, the moment when it will be full; one who used more than was reserved waits longer.
The tokens of a day and the budget of a month are windows of UTC: what was settled in the window, and what requests in
flight hold, may not exceed the limit. Concurrent requests and queued tokens are holds in flight and nothing else.

Times are whole microseconds since 1970 (`_us`), costs whole millionths of the deployment's currency. The same sums are
done by `limitstore/memory.py` and in Redis by `limitstore/limits.lua`; one suite holds them together.

Wall clocks are set, so no time that is kept here is believed further than this: an account remembers when it was last
looked at, and where the clock stands before that, all its times go back by as much. One that is set forward lets
holds lapse, which their router renews, and buckets fill. A window that does not end by itself, at its midnight, makes
its account unknown, and the ledger's sums are asked again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

from serve.errors import ConcurrencyLimited, LimitReached, QueueLimited, QuotaExhausted, TokensLimited
from serve.words import Level, Limits

LimitName = Literal[
    "requests_per_minute", "tokens_per_minute", "concurrent_requests", "queued_tokens", "tokens_per_day",
    "budget_per_month",
]  # fmt: skip
MINUTE_US, DAY_US = 60_000_000, 86_400_000_000
LONGEST_WAIT_S = 120  # the openai SDK does not wait longer for a Retry-After
MIDNIGHT_US = 300_000_000  # a window ends by itself where its account was seen so shortly before and after
GROW_TOKENS = 64  # a hold that is too small grows by at least so many


class Need(NamedTuple):
    """What one request is expected to use, over all its prompts and choices."""

    prompt_tokens: int
    output_tokens: int
    cost: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens


class Used(NamedTuple):
    """What a request has used in the end. `requests` 0: it never came to anything, such as one refused later on."""

    tokens: int
    cost: int = 0
    requests: int = 1


NOTHING = Used(0, 0, 0)


@dataclass(slots=True)
class Account:
    """What is counted for one key, tenant or organisation."""

    requests_full_us: int = 0  # when its bucket of requests is full again
    tokens_full_us: int = 0
    day_end_us: int = 0
    day_tokens: int = 0  # settled in this window
    month_end_us: int = 0
    month_cost: int = 0
    running: int = 0  # holds in flight
    held_queued: int = 0  # tokens of holds without a first token
    held_tokens: int = 0
    held_cost: int = 0
    done_us: int = 0  # when a request last ended, or when the first one began
    done_gap_us: int = 0  # between two ends while busy, a running mean; 0: not known yet
    left_us: int = 0  # the same for the queue
    left_pace_ns: int = 0  # per token
    known: int = 0  # 1: the ledger's sums of these windows are in
    seen_us: int = 0  # when it was last looked at


class Refusal(NamedTuple):
    """A limit that does not let a need pass. `wait_us` None: nobody knows how long."""

    level: Level
    limit: LimitName
    allowed: int
    asked: int
    error: type[LimitReached]
    wait_us: int | None
    waiting_helps: bool = True


class Meter(NamedTuple):
    limit: int
    remaining: int
    reset_s: float


class Standing(NamedTuple):
    """How much is left at the tightest level."""

    requests: Meter | None = None
    tokens: Meter | None = None


EMPTY = Standing()  # nothing is limited


def refill_us(amount: int, per_minute: int) -> int:
    """How long a bucket needs for an amount; the same double arithmetic as Lua's."""
    return math.floor(amount * MINUTE_US / per_minute + 0.5)


def day_end_us(now_us: int) -> int:
    return (now_us // DAY_US + 1) * DAY_US


def month_end_us(now_us: int) -> int:
    start = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=now_us)
    inside_next = start.replace(day=1, hour=0, minute=0, second=0, microsecond=0) + timedelta(days=32)
    return int(inside_next.replace(day=1).timestamp()) * 1_000_000


def refusals(level: Level, limits: Limits, account: Account, need: Need, now_us: int) -> list[Refusal]:
    """Every limit of one level that does not let the need pass now."""
    found = [
        _minute(level, "requests_per_minute", limits.requests_per_minute, account.requests_full_us, 1, now_us),
        _minute(level, "tokens_per_minute", limits.tokens_per_minute, account.tokens_full_us, need.tokens, now_us),
        _concurrent(level, limits.concurrent_requests, account, now_us),
        _queued(level, limits.queued_tokens, account, need.tokens),
        _window(level, "tokens_per_day", limits.tokens_per_day, account.day_tokens, account.held_tokens, need.tokens,
                account.day_end_us - now_us, account, now_us),
        _window(level, "budget_per_month", limits.budget_per_month, account.month_cost, account.held_cost, need.cost,
                account.month_end_us - now_us, account, now_us),
    ]  # fmt: skip
    return [refusal for refusal in found if refusal]


def _minute(level: Level, name: LimitName, limit: int | None, full_us: int, asked: int, now_us: int) -> Refusal | None:
    if limit is None:
        return None
    error = LimitReached if name == "requests_per_minute" else TokensLimited
    if asked > limit:
        return Refusal(level, name, limit, asked, error, None, waiting_helps=False)
    wait = max(now_us, full_us) + refill_us(asked, limit) - now_us - MINUTE_US
    return Refusal(level, name, limit, asked, error, wait) if wait > 0 else None


def _concurrent(level: Level, limit: int | None, account: Account, now_us: int) -> Refusal | None:
    if limit is None or account.running < limit:
        return None
    wait = _next_end_us(account, now_us)
    return Refusal(level, "concurrent_requests", limit, 1, ConcurrencyLimited, wait, waiting_helps=limit > 0)


def _queued(level: Level, limit: int | None, account: Account, tokens: int) -> Refusal | None:
    if limit is None or account.held_queued + tokens <= limit:
        return None
    excess = account.held_queued + tokens - limit
    wait = excess * account.left_pace_ns // 1000 or None
    return Refusal(level, "queued_tokens", limit, tokens, QueueLimited, wait, waiting_helps=tokens <= limit)


def _window(
    level: Level, name: LimitName, limit: int | None, settled: int, held: int, asked: int, left_us: int,
    account: Account, now_us: int,
) -> Refusal | None:  # fmt: skip
    if limit is None or (limit > 0 and settled + held + asked <= limit):
        return None
    if limit > 0 and settled + asked <= limit:  # what runs may give some of it back
        return Refusal(level, name, limit, asked, ConcurrencyLimited, _next_end_us(account, now_us))
    helps = 0 < limit >= asked and left_us <= LONGEST_WAIT_S * 1_000_000
    return Refusal(level, name, limit, asked, QuotaExhausted, left_us if helps else None, helps)


def _next_end_us(account: Account, now_us: int) -> int | None:
    """When a request of this account should end, by how often they do."""
    if not account.done_gap_us:
        return None
    return max(0, account.done_us + account.done_gap_us - now_us)


def refusal_error(found: Sequence[Refusal], standing: Standing) -> LimitReached:
    """The error of the refusal that lasts longest: whoever waits for it does not wait in vain."""
    told = max(found, key=lambda r: (not r.waiting_helps, r.wait_us or 0))
    wait_s = None if told.wait_us is None else max(1, math.ceil(told.wait_us / 1_000_000))
    sentence = f"the limit of {told.limit.replace('_', ' ')} of this {told.level} is {told.allowed:,}"
    if told.limit == "budget_per_month":
        sentence += " millionths of the currency"
    sentence += f", and this request, which needs {told.asked:,}, does not fit"
    if told.error is QuotaExhausted:
        sentence += " into what is left of it"
    elif not told.waiting_helps:
        sentence += " into it at any time"
    elif wait_s:
        sentence += f" now; it should in {wait_s} s"
    rendered = headers(standing) | ({} if told.waiting_helps else {"x-should-retry": "false"})
    error = told.error(sentence, f"{told.level}.{told.limit}", wait_s, rendered)
    if told.limit == "requests_per_minute" and told.waiting_helps and told.wait_us:
        error.only_time_s = told.wait_us / 1_000_000
    return error


def standing(levels: Iterable[tuple[Limits, Account]], now_us: int) -> Standing:
    requests, tokens = list[Meter](), list[Meter]()
    for limits, account in levels:
        if limits.requests_per_minute is not None:
            requests.append(_bucket(limits.requests_per_minute, account.requests_full_us, now_us))
        if limits.tokens_per_minute is not None:
            tokens.append(_bucket(limits.tokens_per_minute, account.tokens_full_us, now_us))
        if (day := limits.tokens_per_day) is not None:
            left = max(0, day - account.day_tokens - account.held_tokens)
            tokens.append(Meter(day, left, (account.day_end_us - now_us) / 1_000_000))
    return Standing(_tightest(requests), _tightest(tokens))


def _bucket(limit: int, full_us: int, now_us: int) -> Meter:
    missing_us = max(0, full_us - now_us)
    return Meter(limit, max(0, (MINUTE_US - missing_us) * limit // MINUTE_US), missing_us / 1_000_000)


def _tightest(meters: list[Meter]) -> Meter | None:
    return min(meters, key=lambda meter: meter.remaining, default=None)


def headers(standing: Standing) -> dict[str, str]:
    """OpenAI's `x-ratelimit-*`."""
    rendered = dict[str, str]()
    for name, meter in (("requests", standing.requests), ("tokens", standing.tokens)):
        if meter is not None:
            rendered[f"x-ratelimit-limit-{name}"] = str(meter.limit)
            rendered[f"x-ratelimit-remaining-{name}"] = str(meter.remaining)
            rendered[f"x-ratelimit-reset-{name}"] = duration(meter.reset_s)
    return rendered


def duration(seconds: float) -> str:
    """`12ms`, `7s`, `6m0s`, `23h59m0s`; rounded up."""
    if seconds < 1 and (milliseconds := math.ceil(seconds * 1000)) < 1000:
        return f"{milliseconds}ms"
    whole = math.ceil(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}h{minutes}m{whole % 60}s" if hours else f"{minutes}m{whole % 60}s" if minutes else f"{whole}s"


def grown(held_output: int, made: int) -> int | None:
    """How many output tokens to hold when so many were made; None while the hold is large enough."""
    return None if made < held_output else made + max(GROW_TOKENS, made // 4)
