"""`starserve ledger …`. Words only."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from serve.database import is_migrated, open_database
from serve.ledger import usage as told
from serve.ledger.entry import NAMES
from serve.made import FOLDER, read_made
from serve.manage.opening import Config, ConfigToo, Deployment, deployment, plainly, what_there_is
from serve.manage.telling import AsJson, refuse, say, show
from serve.settings import SettingsError

cli = typer.Typer(no_args_is_help=True, help="What was asked, answered and refused, by whom and for how much.")
DAYS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]
Since = Annotated[datetime | None, typer.Option(formats=DAYS, help="UTC; requests opened then or later.")]
Until = Annotated[datetime | None, typer.Option(formats=DAYS, help="UTC; requests opened before.")]
OfTenant = Annotated[str | None, typer.Option("--tenant", help="Only this tenant's.")]


class Format(StrEnum):
    CSV = "csv"
    JSON = "json"


@cli.command()
def export(
    other: ConfigToo,
    config: Config,
    since: Since = None,
    until: Until = None,
    tenant: OfTenant = None,
    style: Annotated[
        Format, typer.Option("--format", help="CSV with a head, or one JSON object per line.")
    ] = Format.CSV,
    refusals: Annotated[
        bool,
        typer.Option("--refusals", help="Instead of rows: refusals that were only counted, by minute, key and reason."),
    ] = False,
) -> None:
    """Write every row to standard output, oldest first; never a word of a prompt."""
    since_s, until_s = _seconds(since, 0.0), _seconds(until, 1e12)
    with _opened(config, other) as (_, database):
        if refusals:
            found = told.counted_refusals(database, since_s, until_s, tenant)
            names = ["minute_s", "organisation_id", "tenant_id", "key_id", "code", "requests"]
        else:
            found, names = told.rows(database, since_s, until_s, tenant), list(NAMES)
        lines = told.csv_lines(found, names) if style is Format.CSV else told.json_lines(found)
        for line in lines:
            sys.stdout.write(line)


@cli.command()
def usage(
    other: ConfigToo,
    config: Config,
    since: Since = None,
    until: Until = None,
    tenant: OfTenant = None,
    by: Annotated[
        str, typer.Option(help="Of day, model, key, tenant, organisation; empty for one sum.")
    ] = "day,model,key",
    as_json: AsJson = False,
) -> None:
    """Sum usage by day, model and tenant; of the last 30 days unless --since says otherwise."""
    groups = [name for name in by.split(",") if name]
    if unknown := sorted(set(groups) - set(get_args(told.By))):
        raise typer.BadParameter(f"--by: {unknown[0]} is none of {', '.join(get_args(told.By))}")
    month_ago = (datetime.now(UTC) - timedelta(days=30)).timestamp()
    since_s, until_s = _seconds(since, month_ago), _seconds(until, 1e12)
    rows, cursor = list[dict[str, Any]](), None
    with _opened(config, other) as (_, database):
        while True:
            page = told.usage(database, tenant, since_s, until_s, cast(list[told.By], groups), cursor, told.PAGE)
            rows += [_sums(row, groups) for row in page.rows]
            if (cursor := page.cursor) is None:
                break
    show(rows, [*groups, *told.OUTCOMES, "prompt", "computed", "cached", "output", "cost"], as_json)


def _sums(row: told.Usage, groups: list[str]) -> dict[str, Any]:
    """A row of sums by the names of its columns; the cost in whole units of the currency, as a decimal number."""
    of = {
        "day": row.day,
        "model": row.model,
        "key": row.key_id,
        "tenant": row.tenant_id,
        "organisation": row.organisation_id,
    }
    counts = {outcome: row.requests.get(outcome, 0) for outcome in told.OUTCOMES}
    tokens = {
        "prompt": row.prompt_tokens,
        "computed": row.computed_prompt_tokens,
        "cached": row.cached_tokens,
        "output": row.output_tokens,
    }
    return {**{name: of[name] or None for name in groups}, **counts, **tokens, "cost": f"{row.cost / 1e6:.6f}"}


@cli.command()
def check(other: ConfigToo, config: Config, as_json: AsJson = False) -> None:
    """Compare the ledger with what the engines of this machine handed out, killed ones too.

    What no router received is lost, and billed to no tenant. Exit status 1 if more was billed than made. Right when all
    requests have ended; rows that `prune` forgot count as lost.
    """
    with _opened(config, other) as (meant, database):
        made = read_made(meant.folder / FOLDER)
        found = told.accounted(database, list(made), min((c.since_s for c in made.values()), default=math.inf))
    whole = sum(count.output_tokens for count in made.values())
    lost = whole - found.output_tokens
    if as_json:
        show(
            [
                {
                    "engines": len(made),
                    "made_tokens": whole,
                    "ledger_tokens": found.output_tokens,
                    "lost_tokens": max(0, lost),
                    "lost_requests": found.lost_requests,
                    "open_requests": found.open_requests,
                }
            ],
            (),
            as_json,
        )
    else:
        say(
            f"{len(made)} engines made {whole} output tokens; the ledger has {found.output_tokens}; "
            f"lost {max(0, lost)} ({found.lost_requests} requests lost, {found.open_requests} open)"
        )
    if lost < 0:
        refuse(f"the ledger has {-lost} output tokens more than the engines made", 1)


@cli.command()
def prune(
    other: ConfigToo,
    config: Config,
    before: Annotated[datetime, typer.Option(formats=DAYS, help="UTC; closed rows opened before are forgotten.")],
) -> None:
    """Forget old rows. Rows that are still open stay."""
    with _opened(config, other) as (_, database):
        say(f"{told.prune(database, _seconds(before, 0.0))} rows forgotten")


@contextmanager
def _opened(config: Path | None, other: Path | None) -> Iterator[tuple[Deployment, Engine]]:
    """The deployment and its database, which is there: looking makes none."""
    with plainly():
        meant = deployment(config, other)
        database = open_database(meant.settings.database.url_in(meant.folder))
        try:
            if not _has_ledger(database):
                what = "this deployment has no ledger yet: `starserve up` makes it"
                raise SettingsError(f"{what}; {what_there_is()}")
            yield meant, database
        except SQLAlchemyError as e:
            raise SettingsError(f"the database does not answer ({type(e).__name__})") from None
        finally:
            database.dispose()


def _has_ledger(database: Engine) -> bool:
    if database.dialect.name == "sqlite" and not Path(str(database.url.database)).exists():
        return False  # connecting would make an empty file
    with database.connect() as connection:
        return is_migrated(connection)


def _seconds(day: datetime | None, default: float) -> float:
    return default if day is None else day.replace(tzinfo=UTC).timestamp()
