"""What an engine made of its jobs is known until a ledger has it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress

import pytest

from serve.engines.assembly import assemble
from serve.engines.fake import FakeEngine
from serve.engines.receipts import Receipts
from serve.errors import AdapterUnavailable, BadRequest, EngineLost, EngineUnavailable, GenerationFailed
from serve.model_settings import Queue
from serve.words import NO_USAGE, Counted, Job, Sampling, Secret, Usage
from tests.support.queued import until
from tests.support.stepped import SteppedEngine


def job(job_id: str, tokens: int = 5, n: int = 1) -> Job:
    sampling = Sampling(max_tokens=tokens, temperature=1.0, top_p=1.0, n=n)
    return Job(job_id, (300, 301, 302), sampling, Secret("salt"))


async def read(engine: Receipts, asked: Job, most: int = 1 << 30) -> None:
    async with aclosing(engine.generate(asked)) as events:
        read = 0
        async for _ in events:
            read += 1
            if read == most:
                return


async def test_a_finished_and_a_left_job_are_known_with_what_was_handed_out_until_they_are_forgotten() -> None:
    engine = Receipts(FakeEngine(), queues=False)
    await read(engine, job("whole", n=2))
    await read(engine, job("left"), most=3)
    found = await engine.counted(["whole", "left", "never"])
    assert found == {"whole": Counted(Usage(3, 10, 0), True), "left": Counted(Usage(3, 3, 0), True)}
    await engine.forget(["whole", "never"])
    assert list(await engine.counted(["whole", "left"])) == ["left"]


async def test_a_job_at_work_or_in_line_is_known_as_not_finished() -> None:
    engine = assemble(FakeEngine(tpot_s=0.01), Queue(), 1, lambda tokens: None).receipts
    tasks = [asyncio.create_task(read(engine, job(name, tokens=10_000))) for name in ("works", "waits")]
    await asyncio.sleep(0.1)
    found = await engine.counted(["works", "waits"])
    assert found["works"].usage.completion_tokens > 0
    assert found["waits"] == Counted(NO_USAGE, finished=False)
    assert (found["works"].finished, found["works"].usage.prompt_tokens) == (False, 3)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert all(counted.finished for counted in (await engine.counted(["works", "waits"])).values())


async def test_what_a_dying_engine_made_is_known() -> None:
    engine = Receipts(FakeEngine(fail_after=2), queues=False)
    with suppress(EngineLost):
        await read(engine, job("dies"))
    assert await engine.counted(["dies"]) == {"dies": Counted(Usage(3, 2, 0), True)}


@pytest.mark.parametrize(
    ("error", "read_tokens"),
    [
        (BadRequest("no"), 0),
        (AdapterUnavailable("no"), 0),
        (EngineUnavailable("no"), 0),
        (RuntimeError("no"), 0),
        (EngineLost("no"), 3),
        (GenerationFailed("no"), 3),
    ],
)
async def test_a_prompt_counts_only_where_the_engine_worked_on_it(error: Exception, read_tokens: int) -> None:
    stepped = SteppedEngine({})
    engine = assemble(stepped, Queue(), 1, lambda tokens: None).receipts
    asked = asyncio.create_task(read(engine, job("ends")))
    await until(lambda: bool(stepped.at_work))
    stepped.fail("ends", error)
    with pytest.raises(type(error)):
        await asked
    assert await engine.counted(["ends"]) == {"ends": Counted(Usage(read_tokens, 0, 0), finished=True)}


async def test_memory_is_bounded_and_what_is_lost_by_that_is_counted() -> None:
    engine = Receipts(FakeEngine(), most=3, queues=False)
    for i in range(5):
        await read(engine, job(f"job-{i}"))
    assert list(await engine.counted([f"job-{i}" for i in range(5)])) == ["job-2", "job-3", "job-4"]
    assert engine.lost == 2
