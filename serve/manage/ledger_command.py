"""`starserve ledger …`. Words only."""

from __future__ import annotations

import math
import sys
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn, cast, get_args

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from serve.database import is_migrated, open_database
from serve.ledger import usage as told
from serve.ledger.entry import NAMES
from serve.made import FOLDER, read_made
from serve.settings import Settings, SettingsError, embedded_config, instance_folder, load

cli = typer.Typer(no_args_is_help=True, help="What was asked, answered and refused, by whom and for how much.")
console = Console(highlight=False, soft_wrap=True)
DAYS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]
Config = Annotated[Path, typer.Argument(help="The deployment's YAML; without one, SmolLM2 on this CPU.",
                                        default_factory=embedded_config)]  # fmt: skip
Since = Annotated[datetime | None, typer.Option(formats=DAYS, help="UTC; requests opened then or later.")]
Until = Annotated[datetime | None, typer.Option(formats=DAYS, help="UTC; requests opened before.")]
OfTenant = Annotated[str | None, typer.Option("--tenant", help="Only this tenant's.")]


class Format(StrEnum):
    CSV = "csv"
    JSON = "json"


@cli.command()
def export(
    config: Config,
    since: Since = None,
    until: Until = None,
    tenant: OfTenant = None,
    style: Annotated[Format, typer.Option("--format", help="CSV with a head, or one JSON object per line.")]
    = Format.CSV,
    refusals: Annotated[bool, typer.Option("--refusals", help="Instead of rows: refusals that were only counted, by "
                                           "minute, key and reason.")] = False,
) -> None:  # fmt: skip
    """Write every row to standard output, oldest first; never a word of a prompt."""
    database, since_s, until_s = _open(config), _seconds(since, 0.0), _seconds(until, 1e12)
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
    config: Config,
    since: Since = None,
    until: Until = None,
    tenant: OfTenant = None,
    by: Annotated[str, typer.Option(help="Of day, model, key, tenant, organisation; empty for one sum.")]
    = "day,model,key",
) -> None:  # fmt: skip
    """Sums by day, model and whoever it was; of the last 30 days unless --since says otherwise."""
    groups = [name for name in by.split(",") if name]
    if unknown := sorted(set(groups) - set(get_args(told.By))):
        raise typer.BadParameter(f"--by: {unknown[0]} is none of {', '.join(get_args(told.By))}")
    month_ago = (datetime.now(UTC) - timedelta(days=30)).timestamp()
    database, since_s, until_s = _open(config), _seconds(since, month_ago), _seconds(until, 1e12)
    heads = [*groups, *told.OUTCOMES, "prompt", "computed", "cached", "output", "cost"]
    table = Table(*heads, box=SIMPLE)
    cursor: str | None = None
    while True:
        page = told.usage(database, tenant, since_s, until_s, cast(list[told.By], groups), cursor, told.PAGE)
        for row in page.rows:
            of = {"day": row.day, "model": row.model, "key": row.key_id, "tenant": row.tenant_id,
                  "organisation": row.organisation_id}  # fmt: skip
            counts = [row.requests.get(outcome, 0) for outcome in told.OUTCOMES]
            counts += [row.prompt_tokens, row.computed_prompt_tokens, row.cached_tokens, row.output_tokens]
            words = [str(of[name] or "-") for name in groups] + [str(count) for count in counts]
            table.add_row(*words, f"{row.cost / 1e6:.6f}")
        if (cursor := page.cursor) is None:
            break
    console.print(table)


@cli.command()
def check(config: Config) -> None:
    """Compare the ledger with what the engines of this machine handed out, killed ones too.

    What no router received is lost, and billed to nobody. Exit status 1 if more was billed than made. Right when all
    requests have ended; rows that `prune` forgot count as lost.
    """
    database = _open(config)
    made = read_made(instance_folder(load(config).http.port) / FOLDER)
    whole = sum(count.output_tokens for count in made.values())
    found = told.accounted(database, list(made), min((c.since_s for c in made.values()), default=math.inf))
    lost = whole - found.output_tokens
    console.print(
        f"starserve: {len(made)} engines made {whole} output tokens; the ledger has {found.output_tokens}; "
        f"lost {max(0, lost)} ({found.lost_requests} requests lost, {found.open_requests} open)", markup=False,
    )  # fmt: skip
    if lost < 0:
        _refuse(f"the ledger has {-lost} output tokens more than the engines made", 1)


@cli.command()
def prune(
    config: Config,
    before: Annotated[datetime, typer.Option(formats=DAYS, help="UTC; closed rows opened before are forgotten.")],
) -> None:
    """Forget old rows. Rows that are still open stay."""
    removed = told.prune(_open(config), _seconds(before, 0.0))
    console.print(f"starserve: {removed} rows forgotten", markup=False)


def database_url(settings: Settings) -> str:
    """Of this deployment: what its YAML names, or SQLite in its instance's folder."""
    if settings.database.url is not None:
        return settings.database.url.get_secret_value()
    return f"sqlite:///{instance_folder(settings.http.port)}/starserve.db"


def _open(config: Path) -> Engine:
    try:
        database = open_database(database_url(load(config)))
        # SQLite would make an empty file where there is none.
        missing = database.dialect.name == "sqlite" and not Path(str(database.url.database)).exists()
        if not missing:
            with database.connect() as connection:
                missing = not is_migrated(connection)
    except SettingsError as e:
        _refuse(str(e))
    except SQLAlchemyError as e:
        _refuse(f"the database does not answer ({type(e).__name__})")
    if missing:
        _refuse("this deployment has no ledger yet: `starserve up` makes it")
    return database


def _refuse(sentence: str, status: int = 2) -> NoReturn:
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"starserve: {sentence}", markup=False)
    raise typer.Exit(status)


def _seconds(day: datetime | None, default: float) -> float:
    return default if day is None else day.replace(tzinfo=UTC).timestamp()
