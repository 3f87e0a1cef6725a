"""`starserve tenants key`: make, show, rotate and revoke API keys. Words only."""

from __future__ import annotations

from typing import Annotated

import typer

from serve.manage.fields import Expires, Limit, Models, Scopes, given
from serve.manage.opening import Config, actor, opened
from serve.manage.telling import AsJson, say, show
from serve.tenants.given import KeyGiven
from serve.tenants.rows import NewKey
from serve.tenants.showing import shown

cli = typer.Typer(no_args_is_help=True, help="API keys of tenants: at most two secrets of each open at a time.")
_COLUMNS = ("key_id", "tenant_id", "name", "scopes", "models", "limits", "expires_at", "suspended")
KeyId = Annotated[str, typer.Argument(help="The part of a key between `sk-` and `_`.")]


@cli.command()
def create(
    config: Config,
    tenant: Annotated[str, typer.Argument(help="Its tenant.")],
    name: Annotated[str, typer.Argument(help="By which people know it.")],
    models: Models = None,
    scopes: Scopes = None,
    limit: Limit = None,
    expires: Expires = None,
) -> None:
    """Make a key. Its text is printed once; nobody can ask for it again."""
    with opened(config, makes=True) as (_, store):
        fields = given(KeyGiven, name=name, models=models, scopes=scopes, limits=limit, expires_at=expires)
        with store.acting(actor()) as acts:
            made = acts.create_key(tenant, fields)
        tell(made)


@cli.command(name="list")
def list_keys(
    config: Config,
    tenant: Annotated[str | None, typer.Argument(help="Only its keys.")] = None,
    as_json: AsJson = False,
) -> None:
    """The keys that there are, without their secrets."""
    with opened(config) as (_, store):
        show([shown(row) for row in store.page("key", tenant)], _COLUMNS, as_json)


@cli.command()
def rotate(
    config: Config,
    key: KeyId,
    grace_s: Annotated[float, typer.Option(min=0, help="How long the older secret opens; 0 ends it now.")] = 86400,
) -> None:
    """Give a key a second secret; the first ends after the grace."""
    with opened(config, makes=True) as (_, store):
        with store.acting(actor()) as acts:
            made = acts.rotate(key, grace_s)
        tell(made)


@cli.command()
def revoke(config: Config, key: KeyId) -> None:
    """End a key for good. Every router refuses it within seconds."""
    with opened(config, makes=True) as (_, store):
        with store.acting(actor()) as acts:
            acts.remove("key", key)
        say(f"revoked {key}")


def tell(made: NewKey) -> None:
    """The only time that a key is shown. On standard output, bare, so that it can be piped."""
    typer.echo(made.secret.reveal())
