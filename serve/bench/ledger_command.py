"""`starserve bench ledger`. Words only."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from serve.bench.batch_command import print_table, refuse, say
from serve.bench.ledger import FLOOD_PER_S, Flooded, Measured, measure

_MEASURED: dict[str, Callable[[Measured], str]] = {
    "writes of a request, p50": lambda m: f"{m.request_p50_us:.0f} µs",
    "writes of a request, p99": lambda m: f"{m.request_p99_us:.0f} µs",
    "requests shipped": lambda m: f"{m.shipped_rows_per_s:,.0f}/s",
    "usage of one tenant in ten": lambda m: f"{m.usage_s:.2f} s",
    "rows exported": lambda m: f"{m.export_rows_per_s:,.0f}/s",
    "memory of the process": lambda m: f"{m.memory_mib:.0f} MiB",
}
_FLOODED: dict[str, Callable[[Flooded], str]] = {
    "came": lambda f: f"{f.refusals:,} in {f.seconds:.1f} s",
    "cost of one, p99": lambda f: f"{f.p99_us:.0f} µs",
    "rows": lambda f: str(f.rows),
    "counter rows": lambda f: str(f.counter_rows),
    "counted by them": lambda f: f"{f.counted:,}",
}


def ledger(
    rows: Annotated[int, typer.Option(min=0, help="Rows of the full table.")] = 1_000_000,
    requests: Annotated[int, typer.Option(min=100, help="Requests that are measured at each size.")] = 20_000,
    postgresql: Annotated[str | None, typer.Option(help="Name of an environment variable that holds the URL of an "
                                                   "empty PostgreSQL, to be measured too.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write the report here, as JSON.")] = None,
) -> None:  # fmt: skip
    """What the ledger costs: a request's writes, shipping, usage, export, memory; and 2,000 refusals a second.

    On SQLite in a new folder, and on PostgreSQL if one is named; with an empty table, and with a million rows.
    """
    measured, floods = [], []
    with tempfile.TemporaryDirectory(prefix="ledger-") as made:
        urls = [f"sqlite:///{made}/starserve.db"]
        if postgresql is not None:
            if not (given := os.environ.get(postgresql)):
                return refuse(f"--postgresql: the environment has no {postgresql}")
            urls.append(given)
        for i, url in enumerate(urls):
            try:
                found, flooded = measure(url, [0, rows], requests, Path(made) / str(i), say)
            except ValueError as e:
                return refuse(str(e))
            except RuntimeError as e:
                return refuse(str(e), 1)
            measured += found
            floods.append((found[0].database, flooded))
    print_table([("", *(f"{m.database}, {m.table_rows:,} rows" for m in measured)), *(
        (name, *(show(m) for m in measured)) for name, show in _MEASURED.items()
    )])  # fmt: skip
    print_table([(f"{FLOOD_PER_S:,} refusals a second", *(name for name, _ in floods)), *(
        (name, *(show(f) for _, f in floods)) for name, show in _FLOODED.items()
    )])  # fmt: skip
    if save is not None:
        report = {"measured": [asdict(m) for m in measured], "floods": {name: asdict(f) for name, f in floods}}
        save.write_text(json.dumps(report, indent=1))
