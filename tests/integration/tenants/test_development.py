"""What the first start of a deployment makes, and that a start without it is refused in plain words."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from serve.services import Database
from serve.settings import SettingsError
from serve.tenants.development import make_development_key, make_store, open_store
from serve.tenants.given import OrganisationGiven
from serve.words import Secret
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
