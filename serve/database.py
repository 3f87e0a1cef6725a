"""The one database of a deployment: SQLite in a file of this machine, PostgreSQL for a cluster. One URL tells which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url

from serve.settings import SettingsError

BUSY_S = 5.0  # how long a statement waits for somebody else's write to SQLite
# libpq's names, in seconds but for the first, in milliseconds: without them a lost host is noticed after minutes.
_NOTICE_A_DEAD_HOST = {"tcp_user_timeout": 5000, "connect_timeout": 5, "keepalives_idle": 5, "keepalives_interval": 2,
                       "keepalives_count": 2}  # fmt: skip
_LOCK = 0x5354415253455256  # PostgreSQL's advisory lock while the schema changes: "STARSERV"


def open_database(url: str) -> Engine:
    """A pool of connections. `url`: `sqlite:///FILE` or `postgresql+psycopg://…`; nothing is opened yet."""
    if make_url(url).get_backend_name() != "sqlite":
        return create_engine(
            url, pool_pre_ping=True, pool_size=4, max_overflow=4, hide_parameters=True, connect_args=_NOTICE_A_DEAD_HOST
        )
    engine = create_engine(url, hide_parameters=True, connect_args={"timeout": BUSY_S})
    event.listen(engine, "connect", _prepare_sqlite)
    return engine


def migrate(engine: Engine) -> None:
    """Bring the schema up to date. Safe to call from several processes at once, and when nothing is to do.

    SettingsError, and nothing is changed, where a newer version of starserve has been here.
    """
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        else:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        if not is_migrated(connection):
            config = _config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


def is_migrated(connection: Connection) -> bool:
    """Whether this database has the schema that this version of starserve wants. False: `migrate` would bring it there.

    SettingsError where it cannot, because the schema is one that this version does not know.
    """
    scripts = _scripts()
    wanted, known = scripts.get_current_head(), {script.revision for script in scripts.walk_revisions()}
    found = MigrationContext.configure(connection).get_current_heads()
    if unknown := [revision for revision in found if revision not in known]:
        raise SettingsError(
            f"database: its schema is revision {unknown[0]}, and this version of starserve knows none after {wanted}: "
            "a newer one has been here; start that one, or bring back the backup from before it"
        )
    return found == (wanted,)


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _prepare_sqlite(connection: Any, _: Any) -> None:
    # WAL: readers do not wait for the writer. NORMAL: a power cut may lose the last commits, never the file.
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")
