"""What the first start of a deployment makes, and that a start without it is refused in plain words."""

from __future__ import annotations

import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text

from serve.services import Database
from serve.settings import SettingsError
from serve.tenants.development import make_development_key, make_secret, make_store, open_store
from serve.tenants.given import OrganisationGiven
from serve.words import Secret
from tests.support.full_disk import full_disk
from tests.support.people import router


def test_a_development_key_is_made_once_for_its_owner_alone(database: Database, tmp_path: Path) -> None:
    store, key = make_store(database, tmp_path), tmp_path / "development.key"
    assert make_development_key(store, key)
    made = key.read_text()
    assert not make_development_key(store, key)
    store.close()
    assert key.read_text() == made
    files = [p for p in tmp_path.iterdir() if p.is_file()]
    assert {p.name for p in files} >= {"pepper", "development.key"}
    assert {stat.S_IMODE(p.stat().st_mode) for p in files} == {0o600}
    again = open_store(database, tmp_path)
    tenant = router(again).identify(f"Bearer {made}")
    assert (tenant.tenant_id, tenant.organisation_id) == ("development", "development")
    assert router(again).identify(f"bearer {made}") == tenant
    again.close()
    assert not any(made.split("_", 1)[1].encode() in p.read_bytes() for p in files if p != key)


def test_of_first_starts_at_once_one_makes_the_pepper_and_the_key_and_all_others_take_them(
    database: Database, tmp_path: Path
) -> None:
    key = tmp_path / "development.key"
    key.write_text("of a database that is gone")
    together = threading.Barrier(4, timeout=20)

    def start(_: int) -> bool:
        together.wait()
        store = make_store(database, tmp_path)
        together.wait()
        try:
            return make_development_key(store, key)
        finally:
            store.close()

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(start, range(4))) == [False, False, False, True]
    again = open_store(database, tmp_path)
    assert router(again).identify(f"Bearer {key.read_text()}").tenant_id == "development"
    again.close()
    assert {p.name.split("-")[0] for p in tmp_path.iterdir()} <= {"pepper", "development.key", "starserve.db"}


def test_a_secret_is_made_once_whoever_else_makes_it(tmp_path: Path) -> None:
    together = threading.Barrier(8, timeout=20)

    def make(number: int) -> str:
        together.wait()
        return make_secret(tmp_path / "secret", f"{number}" * 64).reveal()

    with ThreadPoolExecutor(8) as pool:
        (made,) = set(pool.map(make, range(8)))
    assert (tmp_path / "secret").read_text() == made
    assert [p.name for p in tmp_path.iterdir()] == ["secret"]


def test_a_first_start_on_a_full_disk_leaves_nothing_and_the_next_one_works(tmp_path: Path) -> None:
    with full_disk(10), pytest.raises(SettingsError, match=r"pepper: .*(too large|No space)"):
        make_store(Database(), tmp_path)
    assert list(tmp_path.iterdir()) == []
    make_store(Database(), tmp_path).close()


def test_a_schema_of_a_newer_version_is_told_in_a_sentence_with_both_revisions(
    database: Database, tmp_path: Path
) -> None:
    store = make_store(database, tmp_path)
    with store._engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0099'"))
    store.close()
    for opening in (make_store, open_store):
        with pytest.raises(SettingsError, match=r"revision 0099,.* none after \d{4}.* start that one, or"):
            opening(database, tmp_path)


def test_where_somebody_has_an_organisation_no_development_key_is_made(database: Database, tmp_path: Path) -> None:
    store = make_store(database, tmp_path)
    with store.acting("ann") as acts:
        acts.create_organisation("acme", OrganisationGiven())
    assert not make_development_key(store, tmp_path / "key")
    assert not (tmp_path / "key").exists()
    store.close()


def test_a_deployment_that_was_never_started_is_not_opened(database: Database, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="pepper_file"):
        open_store(database, tmp_path)
    (tmp_path / "pepper").write_text("p" * 64)
    with pytest.raises(SettingsError, match="starserve up"):
        open_store(database, tmp_path)


def test_another_pepper_is_refused_before_it_makes_every_key_unknown(database: Database, tmp_path: Path) -> None:
    make_store(database, tmp_path).close()
    make_store(database, tmp_path).close()
    (tmp_path / "pepper").write_text("q" * 64)
    for opening in (make_store, open_store):
        with pytest.raises(SettingsError, match="another pepper"):
            opening(database, tmp_path)
    (tmp_path / "pepper").write_text("short")
    with pytest.raises(SettingsError, match="5 characters"):
        open_store(database, tmp_path)


def test_a_database_that_does_not_answer_is_told_without_its_password(tmp_path: Path) -> None:
    (tmp_path / "pepper").write_text("p" * 64)
    database = Database.model_validate({"url": "postgresql+psycopg://u:hunter2@127.0.0.1:9/x"})
    with pytest.raises(SettingsError, match="refused") as refused:
        open_store(database, tmp_path)
    assert "hunter2" not in f"{refused.value!r} {database!r}"


def test_a_file_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    for given in ({"url": "sqlite:////nowhere/x.db"}, {"pepper_file": "/nowhere/pepper"}):
        with pytest.raises(SettingsError, match=r"/nowhere/.*: No such file"):
            make_store(Database.model_validate(given), tmp_path)


def test_a_secret_does_not_print_itself() -> None:
    secret = Secret("hunter2")
    for shown in (repr(secret), str(secret), f"{secret}", f"{secret:>9}", "%s" % secret, f"{[secret]}"):  # noqa: UP031
        assert "hunter2" not in shown
    assert secret.reveal() == "hunter2"
