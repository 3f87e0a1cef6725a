"""A router's process for tests: `python -m tests.support.ledger_router FOLDER URL ENGINE`. It never ends by itself.

It answers requests for ever, and plays the engine too: what that counted is in the file ENGINE, a line per token
(written before the router sees the token, as an engine counts what it makes), and a line when a job is finished.
Each request has a fate: done, cancelled, refused in the queue, failed. Some stay open.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from serve.database import open_database
from serve.ledger.ledger import Ledger
from tests.support.ledgers import a_record

FATES = ("done", "cancelled", "refused", "failed", "done", "open")


def main() -> None:
    folder, url, engine = sys.argv[1:]
    ledger = Ledger(Path(folder), "router-1", open_database(url), lambda _: None, segment_bytes=20_000)
    ledger.start()
    counted = os.open(engine, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    number = 0
    while True:
        number += 1
        fate = FATES[number % len(FATES)]
        jobs = 1 + number % 2
        record = a_record(number, jobs=jobs, prompt_tokens=0)
        ledger.opened(record)
        for token in range(0 if fate == "refused" else 3 + number % 500):
            os.write(counted, f"{record.request_id}-{token % jobs}\n".encode())
            record.output_tokens += 1
            record.prompt_tokens = 10 * min(jobs, token + 1)
            ledger.progress(record)
        record.outcome = fate
        if fate != "open":
            ledger.closed(record)
        if number == 200:
            print("busy", flush=True)


if __name__ == "__main__":
    main()
