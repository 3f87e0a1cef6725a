"""Billed is what engines read and made, nothing else: whatever happens to a request's jobs, and in which order."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.errors import AdapterUnavailable, BadRequest, EngineLost, EngineUnavailable, GenerationFailed, ServeError
from serve.ledger.entry import Entry
from serve.ledger.recovery import recover
from serve.ledger.usage import rows, spent, usage
from serve.limits import NOTHING, Need
from serve.model_settings import Queue
from serve.words import NO_USAGE, Level, Limits, Secret, Tenant, Usage
from tests.support.books import PRICED, Books, Open
from tests.support.door import KEY_ID
from tests.support.properties import FEW, MANY, examples
from tests.support.stepped import Replicas

DAY = 10**12  # tokens: more than all examples together use
COUNTED = Limits(tokens_per_day=DAY)
OF_THE_TENANT: tuple[tuple[Level, str, Limits], ...] = (("tenant", "development", COUNTED),)
TENANT = Tenant("development", KEY_ID, Secret("salt"), "development", limits=OF_THE_TENANT)
REFUSALS: tuple[ServeError, ...] = (BadRequest("no"), AdapterUnavailable("no"), EngineUnavailable("no"))
FAILURES: tuple[ServeError, ...] = (GenerationFailed("no"), EngineLost("no"))
QUEUE = Queue(tenant_jobs=4)
PLACES = 2


class Ask(NamedTuple):
    prompts: list[int]  # their lengths
    n: int
    most: int
    stream: bool


class Step(NamedTuple):
    which: int
    cached: int


class Refuse(NamedTuple):
    which: int
    how: int


class Fail(NamedTuple):
    which: int
    how: int


class Leave(NamedTuple):
    which: int


class Move(NamedTuple):
    which: int


class Kill(NamedTuple):
    which: int


Act = Ask | Step | Refuse | Fail | Leave | Move | Kill
WHICH = st.integers(0, 5)
ASKS = st.builds(
    Ask, st.lists(st.integers(1, 40), min_size=1, max_size=3), st.integers(1, 2), st.integers(1, 3), st.booleans()
)
STEPS = st.builds(Step, WHICH, st.integers(0, 40))
KINDS: tuple[st.SearchStrategy[Act], ...] = (
    ASKS,
    ASKS,
    STEPS,
    STEPS,
    STEPS,
    st.builds(Refuse, WHICH, st.integers(0, 2)),
    st.builds(Refuse, WHICH, st.integers(0, 2)),
    st.builds(Fail, WHICH, st.integers(0, 1)),
    st.builds(Leave, WHICH),
    st.builds(Leave, WHICH),
    st.builds(Move, WHICH),
    st.builds(Kill, st.integers(0, 1)),
)
ACTS = st.sampled_from(KINDS).flatmap(lambda kind: kind)
PLAYS = st.builds(lambda first, others: [first, *others], ASKS, st.lists(ACTS, min_size=6, max_size=24))


class Play:
    """One example: what is done to the router and its engines, and what came of it."""

    def __init__(self, books: Books, replicas: Replicas) -> None:
        self.books, self.replicas = books, replicas
        self.began_s, self.killed = time.time(), False
        self.asked = list[asyncio.Task[httpx.Response]]()

    async def do(self, act: Act) -> None:
        at_work = self.replicas.at_work()
        engine, job_id = at_work[act.which % len(at_work)] if at_work and not isinstance(act, Ask) else (None, "")
        match act:
            case Ask():
                self.asked.append(asyncio.create_task(self._ask(act)))
            case Step() if engine:
                engine.step(job_id, act.cached)
            case Refuse() if engine:
                engine.refuse(job_id, REFUSALS[act.how])
            case Fail() if engine:
                engine.fail(job_id, FAILURES[act.how])
            case Leave():
                self.asked[act.which % len(self.asked)].cancel()
            case Move():
                self.replicas.replicas[act.which % 2].turns.give_back(PLACES, None)
            case Kill():
                self.replicas.kill(act.which)
                self.killed = True
            case _:
                pass
        await settled()

    async def _ask(self, ask: Ask) -> httpx.Response:
        prompts = [[300] * length for length in ask.prompts]
        body = {"model": "tiny", "prompt": prompts, "max_tokens": ask.most, "n": ask.n, "temperature": 1}
        return await self.books.door.client.post("/v1/completions", json={**body, "stream": ask.stream})

    async def end(self) -> None:
        """Let every job that is left be answered."""
        async with asyncio.timeout(10):
            while not all(task.done() for task in self.asked):
                for engine, job_id in self.replicas.at_work():
                    engine.step(job_id, 0)
                await settled()
        await asyncio.gather(*self.asked, return_exceptions=True)

    def truth_of(self, row: dict[str, Any]) -> Usage:
        ids = [f"{row['request_id']}-{i}" for i in range(row["jobs"])]
        return Usage.total(self.replicas.truth.get(job_id, NO_USAGE) for job_id in ids)


async def settled() -> None:
    """Everything that can happen now has happened: nothing here waits for a thread or a clock."""
    for _ in range(50):
        await asyncio.sleep(0)


def cost_of(read: Usage) -> int:
    return math.ceil(read.prompt_tokens - read.cached_tokens / 2 + 2 * read.completion_tokens)


def opened_over(open_books: Open) -> tuple[Books, Replicas]:
    replicas = Replicas(QUEUE, PLACES)
    books = open_books(PRICED, engine=replicas, tenant={"limits": COUNTED})
    books.door.client.event_hooks = {}  # the shape of answers is others' to judge
    return books, replicas


async def used(books: Books) -> int:
    """Tokens of the day, as the store of limits counted them."""
    hold = await books.accounts.limits.reserve(f"look-{time.monotonic_ns()}", TENANT, Need(0, 0))
    await books.accounts.limits.settle(hold, NOTHING)
    assert hold.standing.tokens is not None
    return DAY - hold.standing.tokens.remaining


async def played(books: Books, replicas: Replicas, acts: Sequence[Act]) -> None:
    play, before = Play(books, replicas), await used(books)
    for act in acts:
        await play.do(act)
    await play.end()
    await books.accounts.quiet()
    assert await asyncio.to_thread(books.ledger.flush, 10)
    found = list(rows(books.database, play.began_s, 1e12))
    told = {record.request_id: record for record in books.door.records[-len(play.asked) :]}
    assert {row["request_id"] for row in found} == told.keys()
    for row in found:
        read = play.truth_of(row)
        assert told[row["request_id"]].prompt_tokens <= read.prompt_tokens  # what log and metrics say
        billed = Usage(row["prompt_tokens"], row["output_tokens"], row["cached_tokens"])
        assert billed == read, row
        assert row["computed_prompt_tokens"] == read.prompt_tokens - read.cached_tokens >= 0
        assert row["cost"] == cost_of(read)
    tokens = sum(row["prompt_tokens"] + row["output_tokens"] for row in found)
    assert await used(books) - before == tokens
    (whole,) = usage(books.database, None, 0, 1e12, ()).rows
    sums = spent(books.database, TENANT, "tenant", time.time())
    assert sums == (whole.prompt_tokens + whole.output_tokens, whole.cost)


@examples(FEW)
@given(acts=PLAYS)
async def test_a_bill_is_what_the_engines_read_and_made(shared: tuple[Books, Replicas], acts: list[Act]) -> None:
    await played(*shared, acts)


@pytest.mark.full
@pytest.mark.timeout(1800)
@examples(MANY)
@given(acts=PLAYS)
async def test_bills_of_many_plays(shared: tuple[Books, Replicas], acts: list[Act]) -> None:
    await played(*shared, acts)


@pytest.fixture
async def shared(opened: Open) -> tuple[Books, Replicas]:
    """One router for all examples of a test."""
    return opened_over(opened)


async def killed(opened: Open, acts: Sequence[Act]) -> None:
    """The router dies after these acts, and another closes what it left open."""
    books, replicas = opened_over(opened)
    play = Play(books, replicas)
    for act in acts:
        await play.do(act)
    await books.accounts.quiet()
    await asyncio.to_thread(books.ledger.stop)  # from here on nothing that it says reaches the disk
    for task in play.asked:
        task.cancel()
    await asyncio.gather(*play.asked, return_exceptions=True)
    await settled()

    def cost(row: Entry) -> int:
        return cost_of(Usage(row.prompt_tokens, row.output_tokens, row.cached_tokens))

    await recover(books.ledger.folder, books.database, replicas.counted, replicas.forget, cost, time.time())
    for row in rows(books.database, play.began_s, 1e12):
        read = play.truth_of(row)
        billed = Usage(row["prompt_tokens"], row["output_tokens"], row["cached_tokens"])
        assert row["closed_s"] is not None
        assert row["computed_prompt_tokens"] == billed.prompt_tokens - billed.cached_tokens >= 0
        assert row["cost"] == cost_of(billed)
        if play.killed:  # the engine too is gone: known is what the router wrote down
            assert all(known <= true for known, true in zip(billed, read, strict=True))
            assert row["computed_prompt_tokens"] <= read.prompt_tokens - read.cached_tokens
        else:
            assert billed == read, row
    with suppress(asyncio.CancelledError):
        await books.accounts.quiet()
    books.close()


@examples(FEW // 4)
@given(acts=PLAYS)
async def test_a_bill_of_a_dead_router_is_what_the_engines_read_and_made(opened: Open, acts: list[Act]) -> None:
    await killed(opened, acts)


@pytest.mark.full
@pytest.mark.timeout(1800)
@examples(MANY // 4)
@given(acts=PLAYS)
async def test_bills_of_many_dead_routers(opened: Open, acts: list[Act]) -> None:
    await killed(opened, acts)
