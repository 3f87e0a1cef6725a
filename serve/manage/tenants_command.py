"""`starserve tenants`: organisations, tenants, their keys, and who changed what. Words only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serve.manage import keys_command
from serve.manage.fields import Band, Ceiling, Expires, Limit, Models, Scopes, Weight, given, is_any
from serve.manage.opening import Config, actor, opened
from serve.manage.telling import AsJson, console, refuse, say, show, words
from serve.tenants import importing
from serve.tenants.given import Given, KeyGiven, OrganisationGiven, TenantGiven
from serve.tenants.showing import shown
from serve.words import Level

cli = typer.Typer(no_args_is_help=True, help="Organisations, their tenants, and the tenants' keys.")
cli.add_typer(keys_command.cli, name="key")
_COLUMNS = ("tenant_id", "organisation_id", "weight", "band", "models", "limits", "suspended")
Kind = Annotated[Level, typer.Option("--kind", help="What the id belongs to.")]
Id = Annotated[str, typer.Argument(help="Small letters, digits, dots and dashes.")]


@cli.command(name="list")
def list_tenants(
    config: Config,
    organisation: Annotated[str | None, typer.Argument(help="Only its tenants.")] = None,
    as_json: AsJson = False,
) -> None:
    """The tenants that there are."""
    with opened(config) as (_, store):
        show([shown(row) for row in store.page("tenant", organisation)], _COLUMNS, as_json)


@cli.command()
def create_organisation(config: Config, organisation: Id, limit: Limit = None) -> None:
    """Make an organisation: its limits hold for all its tenants together."""
    with opened(config, makes=True) as (_, store):
        fields = given(OrganisationGiven, limits=limit)
        with store.acting(actor()) as acts:
            acts.create_organisation(organisation, fields)
        say(f"made the organisation {organisation}")


@cli.command()
def create(
    config: Config,
    organisation: Annotated[str, typer.Argument(help="To which it belongs, for ever.")],
    tenant: Id,
    weight: Weight = None,
    band: Band = None,
    models: Models = None,
    limit: Limit = None,
    ceiling: Ceiling = None,
) -> None:
    """Make a tenant. It has no key yet."""
    with opened(config, makes=True) as (_, store):
        fields = given(TenantGiven, weight=weight, band=band, models=models, limits=limit, ceilings=ceiling)
        with store.acting(actor()) as acts:
            acts.create_tenant(tenant, organisation, fields)
        say(f"made the tenant {tenant}; give it a key with: starserve tenants key create {tenant} NAME")


@cli.command(name="show")
def show_one(config: Config, object_id: Id, kind: Kind = "tenant", as_json: AsJson = False) -> None:
    """All that is known of one tenant, organisation or key."""
    with opened(config) as (_, store):
        told = shown(store.get(kind, object_id))
        if as_json:
            return show([told], (), as_json)
        for name, value in told.items():
            console.print(f"  {name:16} {words(value)}", markup=False)


@cli.command(name="set")
def set_fields(
    config: Config,
    object_id: Id,
    kind: Kind = "tenant",
    weight: Weight = None,
    band: Band = None,
    models: Models = None,
    limit: Limit = None,
    ceiling: Ceiling = None,
    scopes: Scopes = None,
    expires: Expires = None,
) -> None:
    """Change what is given, of a tenant, an organisation or a key; the rest stays. Routers know within seconds."""
    options = {"weight": weight, "band": band, "models": models, "limits": limit, "ceilings": ceiling, "scopes": scopes,
               "expires_at": expires}  # fmt: skip
    if not is_any(options.values()):
        refuse("set: nothing was given to change")
    models_of: dict[Level, type[Given]] = {"organisation": OrganisationGiven, "tenant": TenantGiven, "key": KeyGiven}
    with opened(config, makes=True) as (_, store):
        fields = given(models_of[kind], **options)
        with store.acting(actor()) as acts:
            acts.change(kind, object_id, fields)
        say(f"changed the {kind} {object_id}" if acts.told else "it was so already")


@cli.command()
def suspend(config: Config, object_id: Id, kind: Kind = "tenant") -> None:
    """Refuse its requests from the next seconds on; those that run end in peace."""
    _suspend(config, kind, object_id, True)


@cli.command()
def resume(config: Config, object_id: Id, kind: Kind = "tenant") -> None:
    """Let it in again."""
    _suspend(config, kind, object_id, False)


@cli.command()
def remove(config: Config, object_id: Id, kind: Kind = "tenant") -> None:
    """End it and all below it for good. Its usage stays in the ledger, and its id is never given again."""
    with opened(config, makes=True) as (_, store):
        with store.acting(actor()) as acts:
            acts.remove(kind, object_id)
        say(f"removed the {kind} {object_id} and {len(acts.told) - 1} below it")


@cli.command(name="import")
def import_file(
    config: Config,
    file: Annotated[Path, typer.Argument(help="YAML: organisations with tenants with keys.")],
    prune: Annotated[bool, typer.Option("--prune", help="Suspend what the file does not name.")] = False,
) -> None:
    """Make it so as a file says: all of it or, where something is wrong, nothing. Again, and nothing changes.

    The text of each new key is printed once.
    """
    with opened(config, makes=True) as (_, store):
        wanted = importing.read(file.read_bytes())
        imported = importing.apply(store, wanted, actor(), prune, say)
        for line in imported.done:
            say(line)
        for still in imported.suspended:
            say(f"still suspended: {still}; `suspended: false` would let it in again")
        for made in imported.keys:
            console.print(
                f"  {made.key.tenant_id}  {made.key.name}  {made.secret.reveal()}   (shown once)", markup=False
            )
        if not imported.done:
            say("nothing to do: it is so already")


@cli.command()
def audit(
    config: Config,
    object_id: Annotated[str | None, typer.Argument(help="Only what was done to it.")] = None,
    most: Annotated[int, typer.Option(min=1, max=1_000_000, help="So many acts, newest first.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Who did what, and when."""
    with opened(config) as (_, store):
        rows = [shown(row) for row in store.audit(object_id, None, most)]
        if not as_json:
            rows = [{**row, "changes": {n: tuple(pair) for n, pair in row["changes"].items()}} for row in rows]
        show(rows, ("at", "actor", "act", "level", "object_id", "changes"), as_json)


def _suspend(config: Path | None, kind: Level, object_id: str, suspended: bool) -> None:
    with opened(config, makes=True) as (_, store):
        with store.acting(actor()) as acts:
            (acts.suspend if suspended else acts.resume)(kind, object_id)
        say(f"{'suspended' if suspended else 'resumed'} the {kind} {object_id}" if acts.told else "it was so already")
