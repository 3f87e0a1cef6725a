"""`starserve bench limits`. Words only."""

from __future__ import annotations

import asyncio
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from serve.bench.batch_command import numbers, print_table, refuse, say
from serve.bench.limits import measure, own_redis, table
from serve.limitstore.base import StoreLost
from serve.words import Secret


def limits(
    redis: Annotated[str | None, typer.Option(help="redis://… to measure; else a redis-server of this machine.",
                                              envvar="STARSERVE_BENCH_REDIS")] = None,
    tenants: Annotated[str, typer.Option(help="How many there are.")] = "10,1000,10000",
    requests: Annotated[int, typer.Option(min=100, help="Requests measured in each round.")] = 5000,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; medians are printed.")] = 3,
    save: Annotated[Path | None, typer.Option(help="Write the report here, as JSON.")] = None,
) -> None:  # fmt: skip
    """What limits cost: µs to identify, reserve, start and settle one request limited at key, tenant and organisation.

    To identify alone; with limits in memory, and on Redis where one is given or found; at few and many tenants, with
    the ratio (×) to the fewest; the bytes of a tenant, as it is known and with a request in flight; and how many of 50
    parallel requests pass a limit for one.
    """
    with nullcontext(Secret(redis)) if redis else own_redis() as url:
        if url is None:
            say("no --redis and no redis-server found: in process only")
        try:
            found = asyncio.run(measure(numbers(tenants), requests, rounds, url))
        except StoreLost as e:
            return refuse(f"Redis does not answer ({e})", 1)
    print_table(table(found))
    if save is not None:
        save.write_text(json.dumps([costs._asdict() for costs in found], indent=1) + "\n", encoding="utf-8")
