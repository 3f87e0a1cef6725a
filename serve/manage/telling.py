"""How commands speak: a sentence, a refusal, rows for people or for machines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

console = Console(highlight=False, soft_wrap=True)
AsJson = Annotated[bool, typer.Option("--json", help="One JSON list instead of a table.")]


def say(sentence: str) -> None:
    console.print(f"starserve: {sentence}", markup=False)


def complain(problem: str) -> None:
    """On standard error, a sentence a line."""
    for line in problem.splitlines():
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"starserve: {line}", markup=False)


def refuse(problem: str, status: int = 2) -> NoReturn:
    complain(problem)
    raise typer.Exit(status)


def show(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], as_json: bool) -> None:
    """Rows whole as JSON, or some of their columns: as a table where its lines fit, else one below the other.

    No word is ever cut or broken. Columns that say nothing in any row are left out.
    """
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    told = [{column: words(row[column]) for column in columns} for row in rows]
    spoken = [column for column in columns if not told or any(row[column] not in _NOTHING for row in told)]
    table = Table(box=None, header_style="bold")
    for column in spoken:
        table.add_column(column, no_wrap=True)
    for row in told:
        table.add_row(*(row[column] for column in spoken))
    whole = Measurement.get(console, console.options.update(width=_WIDE), table).maximum
    if whole <= console.width or not told:
        console.print(table, markup=False)
        return
    for row in told:
        for column in spoken:
            console.print(f"{column:{max(map(len, spoken))}}  {row[column]}", markup=False)
        console.print()


def words(value: Any) -> str:
    """A value of a row for people."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} {words(inside)}" for name, inside in value.items()) or "–"
    if isinstance(value, tuple):
        return " → ".join(words(inside) for inside in value)
    if isinstance(value, list):
        return ", ".join(words(inside) for inside in value) or "none"
    return f"{value:.15g}" if isinstance(value, float) else str(value)


_NOTHING = {"–", "0"}
_WIDE = 10_000  # columns: more than any row has
