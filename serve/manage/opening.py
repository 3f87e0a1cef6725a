"""A deployment's store for a command, and how commands speak."""

from __future__ import annotations

import getpass
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from serve.deploy.instance import Instance
from serve.errors import ServeError
from serve.settings import Settings, SettingsError, embedded_config, load
from serve.tenants.development import make_store
from serve.tenants.store import Store

console = Console(highlight=False, soft_wrap=True)
Config = Annotated[Path, typer.Option("--config", "-c", help="The deployment's YAML; without one, SmolLM2 on this CPU.",
                                      envvar="STARSERVE_CONFIG", default_factory=embedded_config)]  # fmt: skip
AsJson = Annotated[bool, typer.Option("--json", help="One JSON list instead of a table.")]


def say(sentence: str) -> None:
    console.print(f"starserve: {sentence}", markup=False)


def refuse(problem: str) -> NoReturn:
    for line in problem.splitlines():
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"starserve: {line}", markup=False)
    raise typer.Exit(2)


@contextmanager
def opened(config: Path) -> Iterator[tuple[Settings, Instance, Store]]:
    """The deployment's store, made if it was never started. What goes wrong is said in a sentence; exit status 2."""
    try:
        settings = load(config)
        instance = Instance(settings.http.port)
        instance.make()
        store = make_store(settings.database, instance.folder)
        try:
            yield settings, instance, store
        finally:
            store.close()
    except (SettingsError, ServeError) as e:
        refuse(str(e))
    except UnicodeEncodeError:
        refuse("what was typed is not valid UTF-8")
    except OSError as e:
        refuse(f"{e.filename}: {e.strerror}")


def actor() -> str:
    """Who is named in the audit log."""
    return f"command line: {getpass.getuser()}"


def show(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], as_json: bool) -> None:
    """Rows as a table of some columns, or whole as JSON."""
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    table = Table(box=None, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=column.endswith("_id"), overflow="fold")
    for row in rows:
        table.add_row(*(words(row[column]) for column in columns))
    console.print(table, markup=False)


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
