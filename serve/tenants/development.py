"""Opening a deployment's store, and what its first start makes: the pepper, and a key for the one who tries it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from serve.database import is_migrated, migrate, open_database
from serve.services import Database
from serve.settings import SettingsError
from serve.tenants.given import KeyGiven, OrganisationGiven, TenantGiven
from serve.tenants.store import Store
from serve.words import Secret

NAME = "development"
_FEWEST = 32  # characters of a pepper


def open_store(database: Database, folder: Path) -> Store:
    """The store of a deployment that was started before; `folder`: the instance's. SettingsError if it was not."""
    pepper_file = database.pepper_in(folder)
    try:
        pepper = read_secret(pepper_file)
    except OSError as e:
        raise SettingsError(f"database.pepper_file: {pepper_file}: {e.strerror}") from None
    url = database.url_in(folder)
    engine = open_database(url)
    with _plainly(engine):
        with engine.connect() as connection:
            migrated = is_migrated(connection)
        if not migrated:
            raise SettingsError("database: its schema is not this version's; `starserve up` brings it up to date")
        return _checked(engine, pepper)


def make_store(database: Database, folder: Path) -> Store:
    """The store of a deployment, with schema and pepper as they should be. What is missing is made, files 0600."""
    pepper_file, url = database.pepper_in(folder), database.url_in(folder)
    try:
        pepper = make_secret(pepper_file, secrets.token_hex(32))
        if (name := make_url(url).database) and url.startswith("sqlite"):
            Path(name).touch(0o600)  # SQLite gives its other files the same mode
    except OSError as e:
        raise SettingsError(f"database: {e.filename or pepper_file}: {e.strerror}") from None
    engine = open_database(url)
    with _plainly(engine):
        migrate(engine)
        return _checked(engine, pepper)


def make_development_key(store: Store, key_file: Path) -> bool:
    """In a store without any organisation: make organisation, tenant and key `development`, the key's text in a file.

    True if they were made now, and by this process: of several first starts at once one makes them.
    """
    if store.page("organisation", most=1):
        return False
    with store.acting("first start") as acts:
        if acts.page("organisation"):  # acts come one after another: another start was before this one
            return False
        acts.create_organisation(NAME, OrganisationGiven())
        acts.create_tenant(NAME, NAME, TenantGiven())
        made = acts.create_key(NAME, KeyGiven(name=NAME))
        write_secret(key_file, made.secret.reveal())
    return True


def read_secret(path: Path) -> Secret:
    """What a file of one secret holds; SettingsError where that is too short to be one."""
    text = path.read_text().strip()
    if len(text) < _FEWEST:
        raise SettingsError(f"{path}: holds {len(text)} characters; a secret has at least {_FEWEST}")
    return Secret(text)


def make_secret(path: Path, text: str) -> Secret:
    """What this file holds; where there was none, `text` from now on. Of several processes that make it at once the
    first one wins, and all get the same."""
    if not path.exists():
        with _beside(path, text) as whole, suppress(FileExistsError):
            os.link(whole, path)
    return read_secret(path)


def write_secret(path: Path, text: str) -> None:
    """Into a file of its owner alone, whole or not at all, instead of what it held."""
    with _beside(path, text) as whole:
        whole.replace(path)


@contextmanager
def _beside(path: Path, text: str) -> Iterator[Path]:
    """A file with this text beside the one that is to hold it. Nothing of it stays, also where the disk is full."""
    beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # a power cut must not leave an empty pepper: no key would open any more
        yield beside
    finally:
        beside.unlink(missing_ok=True)


def _checked(engine: Engine, pepper: Secret) -> Store:
    store = Store(engine, pepper)
    store.check_pepper()
    return store


@contextmanager
def _plainly(engine: Engine) -> Iterator[None]:
    """What the database's client complains of, as a sentence for the operator, without the password."""
    try:
        yield
    except SQLAlchemyError as e:
        engine.dispose()
        told = " ".join(str(getattr(e, "orig", None) or type(e).__name__).split())
        password = engine.url.password
        raise SettingsError(f"database: {told.replace(str(password), '***') if password else told}") from None
    except BaseException:
        engine.dispose()
        raise
