"""After `kill -9` of a router, the ledger's tokens are the engines' tokens, exactly."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa

from serve.ledger.entry import Entry, entry_of
from serve.ledger.journal import Journal
from serve.ledger.recovery import Recovered, keep_recovering, recover
from serve.record import Record
from serve.words import Counted, Usage
from tests.support.ledger_router import FATES
from tests.support.ledgers import MakeLedger, a_record, stored


class Engines:
    """They know what they counted for each job until it is acknowledged."""

    def __init__(self, tokens: Mapping[str, int], finished: bool = True) -> None:
        self.known = {job: Counted(Usage(10, n, 4), finished) for job, n in tokens.items()}
        self.acknowledged: list[str] = []

    async def usage_of(self, job_ids: Sequence[str]) -> dict[str, Counted]:
        return {job: self.known[job] for job in job_ids if job in self.known}

    async def acknowledge(self, job_ids: Sequence[str]) -> None:
        self.acknowledged += job_ids


def price(entry: Entry) -> int:
    return entry.prompt_tokens + 2 * entry.output_tokens


def dead_router(folder: Path, opened: Sequence[Record], closed: Sequence[Record] = ()) -> None:
    """It wrote its journal, shipped nothing, and is gone."""
    journal = Journal(folder, "r")
    for record in opened:
        journal.write("o", entry_of(record, journal.life, 1.0, closed=False).told())
    for record in closed:
        journal.write("c", entry_of(record, journal.life, 2.0, closed=True).told())
    journal.close(remove=False)


async def recovered(folder: Path, database: sa.Engine, engines: Engines) -> Recovered:
    return await recover(folder, database, engines.usage_of, engines.acknowledge, price, time.time())


@pytest.fixture
def killed(database: sa.Engine, url: str, tmp_path: Path) -> Counter[str]:
    """A router that was killed while it worked; what its engine counted for each job."""
    engine = tmp_path / "engine"
    command = [sys.executable, "-m", "tests.support.ledger_router", str(tmp_path / "dead"), url, str(engine)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"busy\n"
        time.sleep(0.5)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert child.stdout is not None
        child.stdout.close()
    return Counter(engine.read_text().split())


async def test_after_a_kill_the_ledger_has_every_token_of_the_engines(
    killed: Counter[str], database: sa.Engine, tmp_path: Path
) -> None:
    engines = Engines(killed)
    done = await recovered(tmp_path / "dead", database, engines)
    rows = stored(database)
    assert sum(row["output_tokens"] for row in rows.values()) == killed.total()
    per_request = Counter[str]()
    for job, tokens in killed.items():
        per_request[job.rpartition("-")[0]] += tokens
    assert {r: row["output_tokens"] for r, row in rows.items() if row["output_tokens"]} == dict(per_request)
    last = max(rows)
    for request_id, row in rows.items():
        fate = FATES[int(request_id[-6:]) % len(FATES)]
        # The last one was on its way; its close may or may not have come to the journal.
        assert row["outcome"] == ("lost" if fate == "open" else fate) or request_id == last
        assert row["closed_s"] is not None
    lost = {r for r, row in rows.items() if row["outcome"] == "lost"}
    # The last one may have been killed before its engine had anything of it: then nobody pays.
    unheard = {last} if last in lost and not rows[last]["output_tokens"] else set()
    for request_id in lost:
        row = rows[request_id]
        read = sum(killed[f"{request_id}-{i}"] > 0 for i in range(2))
        assert (row["prompt_tokens"], row["computed_prompt_tokens"]) == (10 * read, 6 * read)
        assert row["cost"] == 10 * read + 2 * row["output_tokens"]
    assert done.closed == len(lost - unheard) > 30
    assert done.unknown == len(unheard)
    assert {job.rpartition("-")[0] for job in engines.acknowledged} == lost - unheard
    assert not list((tmp_path / "dead").iterdir())
    assert await recovered(tmp_path / "dead", database, engines) == Recovered()


async def test_tokens_of_a_dead_engine_are_billed_only_if_the_router_is_known_to_have_received_them(
    killed: Counter[str], database: sa.Engine, tmp_path: Path
) -> None:
    done = await recovered(tmp_path / "dead", database, Engines({}))
    lost = {r: row for r, row in stored(database).items() if row["outcome"] == "lost"}
    assert done.unknown == len(lost) > 30
    last = max(stored(database))  # it was on its way
    for request_id, row in lost.items():
        made, billed = sum(killed[f"{request_id}-{i}"] for i in range(2)), row["output_tokens"]
        if request_id == last:
            assert made - 256 <= billed <= made
        else:  # marks stand at each prompt's first token, and at each 256th
            assert billed == (row["jobs"] if made < 256 else made // 256 * 256)
            assert row["prompt_tokens"] == 10 * row["jobs"]


async def test_a_torn_last_line_is_dropped_and_its_row_closed_by_recovery(database: sa.Engine, tmp_path: Path) -> None:
    folder = tmp_path / "dead"
    both = [a_record(1, outcome="done", output_tokens=7), a_record(2, outcome="done", output_tokens=9)]
    dead_router(folder, both, both)
    (journal,) = folder.glob("*.journal")
    os.truncate(journal, journal.stat().st_size - 5)
    done = await recovered(folder, database, Engines({"request-000002-0": 11}))
    assert (done.torn, done.lines, done.closed) == (1, 3, 1)
    rows = stored(database)
    assert [(rows[r]["outcome"], rows[r]["output_tokens"]) for r in sorted(rows)] == [("done", 7), ("lost", 11)]


async def test_a_living_router_is_left_alone(make: MakeLedger, database: sa.Engine, tmp_path: Path) -> None:
    one, record = make(), a_record(1)
    one.opened(record)
    assert one.flush(20)
    assert await recovered(tmp_path / "journal", database, Engines({"request-000001-0": 3})) == Recovered()
    record.outcome = "done"
    one.closed(record)
    assert one.flush(20)
    assert stored(database)["request-000001"]["outcome"] == "done"


async def test_a_row_whose_job_still_runs_waits_for_the_next_pass(database: sa.Engine, tmp_path: Path) -> None:
    folder = tmp_path / "dead"
    dead_router(folder, [a_record(1)])
    working = Engines({"request-000001-0": 3}, finished=False)
    done = await recovered(folder, database, working)
    assert (done.waiting, done.closed, working.acknowledged) == (1, 0, [])
    assert stored(database)["request-000001"]["outcome"] == "open"
    done = await recovered(folder, database, Engines({"request-000001-0": 5}))
    assert (done.waiting, done.closed) == (0, 1)
    assert stored(database)["request-000001"]["output_tokens"] == 5


async def test_a_prompt_that_no_engine_is_known_to_have_read_is_not_billed(database: sa.Engine, tmp_path: Path) -> None:
    dead_router(tmp_path, [a_record(1, prompt_tokens=0), a_record(2, prompt_tokens=0), a_record(3, output_tokens=1)])
    done = await recovered(tmp_path, database, Engines({"request-000002-0": 0}))
    assert (done.closed, done.unknown) == (1, 2)
    rows = stored(database)
    assert [(rows[r]["prompt_tokens"], rows[r]["cost"]) for r in sorted(rows)] == [(0, 0), (10, 10), (10, 12)]
    assert rows["request-000002"]["computed_prompt_tokens"] == 6


async def test_an_engine_that_cannot_be_asked_leaves_everything_for_the_next_pass(
    database: sa.Engine, tmp_path: Path
) -> None:
    dead_router(tmp_path, [a_record(1)])

    async def unreachable(job_ids: Sequence[str]) -> dict[str, Counted]:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await recover(tmp_path, database, unreachable, Engines({}).acknowledge, price, 0.0)
    assert stored(database)["request-000001"]["outcome"] == "open"
    assert (await recovered(tmp_path, database, Engines({"request-000001-0": 5}))).closed == 1


async def test_passes_go_on_after_failures_and_say_each_thing_once() -> None:
    said: list[str] = []
    ends = asyncio.Event()
    answers: Iterator[OSError | Recovered] = iter(
        [OSError(), OSError(), Recovered(closed=2, unknown=1), Recovered(), OSError()]
    )

    async def one_pass() -> Recovered:
        answer = next(answers, None)
        if answer is None:
            ends.set()
            return Recovered()
        if isinstance(answer, OSError):
            raise answer
        return answer

    task = asyncio.create_task(keep_recovering(one_pass, said.append, every_s=0.0))
    await ends.wait()
    task.cancel()
    assert [sentence.split(" that ")[0] for sentence in said] == [
        "rows of dead routers cannot be closed now (OSError); they wait", "closed 3 rows",
        "rows of dead routers cannot be closed now (OSError); they wait",
    ]  # fmt: skip
