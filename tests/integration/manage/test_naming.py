"""Which deployment a command acts on: the one that is named, the only one that runs, or none."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from serve.__main__ import cli
from serve.database import open_database
from serve.services import Database
from serve.tenants.development import make_store
from tests.support.instances import state_folder, supervisor
from tests.support.stack import tiny_model

Say = Callable[..., Result]
READING = [
    ("tenants", "list"),
    ("tenants", "show", "web"),
    ("tenants", "audit"),
    ("tenants", "key", "list"),
    ("ledger", "usage"),
    ("ledger", "export"),
    ("ledger", "check"),
    ("ledger", "prune", "--before", "2025-01-01"),
]
WRITING = [
    ("tenants", "create-organisation", "acme"),
    ("tenants", "suspend", "web"),
    ("tenants", "remove", "web"),
    ("tenants", "key", "revoke", "1f2e3d4c5b6a"),
    ("admin",),
]


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with state_folder() as folder:
        monkeypatch.setenv("STARSERVE_STATE", str(folder))
        monkeypatch.delenv("STARSERVE_CONFIG", raising=False)
        yield folder


@pytest.fixture
def config(tmp_path: Path, state: Path) -> Path:
    """Of a deployment on port 8010 that was served once, and whose only tenant is `web`."""
    path = write(tmp_path / "mine.yaml", 8010)
    (state / "8010").mkdir(parents=True)
    make_store(Database(), state / "8010").close()
    assert run("tenants", "create-organisation", "acme", "-c", str(path)).exit_code == 0
    assert run("tenants", "create", "acme", "web", "-c", str(path)).exit_code == 0
    return path


def write(path: Path, port: int) -> Path:
    path.write_text(yaml.safe_dump({"http": {"port": port}, "models": [tiny_model(path.parent)]}))
    return path


def run(*words: str, **environment: str) -> Result:
    return CliRunner().invoke(cli, list(words), env=environment or None)


def tenants(*words: str, **environment: str) -> list[str]:
    done = run("tenants", "list", "--json", *words, **environment)
    assert done.exit_code == 0, done.output
    return [row["tenant_id"] for row in json.loads(done.stdout)]


@pytest.mark.parametrize("words", [*READING, *WRITING])
def test_without_a_name_and_a_running_one_it_refuses_and_makes_nothing(state: Path, words: tuple[str, ...]) -> None:
    done = run(*words)
    assert done.exit_code == 2, done.output
    assert done.stderr == "starserve: which deployment? name its YAML with --config; nothing runs here\n"
    assert list(state.iterdir()) == []


def test_looking_at_one_that_was_never_served_makes_nothing(config: Path, state: Path, tmp_path: Path) -> None:
    never = write(tmp_path / "never.yaml", 8000)
    with supervisor(state, 8010, config):
        for words in READING:
            done = run(*words, "-c", str(never))
            assert done.exit_code == 2, done.output
            assert done.stderr.endswith("; running: 8010\n")
            assert "nothing was ever served on port 8000" in done.stderr or "has no ledger yet" in done.stderr
    assert not (state / "8000").exists()


def test_the_only_one_that_runs_is_meant_with_the_settings_that_it_got(config: Path, state: Path) -> None:
    with supervisor(state, 8010, config):
        assert tenants() == ["web"]
        assert run("ledger", "check").exit_code == 0
        assert run("tenants", "create", "acme", "app").exit_code == 0
        assert tenants() == ["app", "web"]
    refused = run("tenants", "list")  # it has stopped: one must say which
    assert "stopped: 8010" in refused.stderr
    elsewhere = config.with_name("elsewhere.yaml")
    write(elsewhere, 1).write_text(config.read_text().replace("8010", "8011"))
    with supervisor(state, 8010, elsewhere, STARSERVE__HTTP__PORT="8010"):
        assert tenants() == ["app", "web"]


def test_of_two_that_run_one_must_be_named(config: Path, state: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.yaml", 8011)
    with supervisor(state, 8010, config), supervisor(state, 8011, other):
        assert "running: 8010, 8011" in run("tenants", "list").stderr
        assert tenants("-c", str(config)) == ["web"]
        assert tenants(STARSERVE_CONFIG=str(config)) == ["web"]
        assert tenants(STARSERVE__HTTP__PORT="8010") == ["web"]
        done = run("tenants", "list", STARSERVE__HTTP__PORT="8012")
        assert done.stderr == "starserve: nothing was ever served on port 8012; running: 8010, 8011\n"
    assert not (state / "8012").exists()


def test_a_place_and_an_option_name_it_alike_and_must_agree(config: Path) -> None:
    for words in ((str(config),), ("-c", str(config)), ("--config", str(config)), (str(config), "-c", str(config))):
        done = run("ledger", "usage", "--json", *words)
        assert (done.exit_code, json.loads(done.stdout)) == (0, [])
    assert run("ledger", "usage", "--json", STARSERVE_CONFIG=str(config)).exit_code == 0
    assert run("ledger", "usage", str(config), STARSERVE_CONFIG="/nowhere.yaml").exit_code == 0
    assert "two deployments are named" in run("ledger", "usage", str(config), "-c", "/other.yaml").stderr


def test_a_writing_command_makes_what_its_yaml_names(tmp_path: Path, state: Path) -> None:
    fresh = write(tmp_path / "fresh.yaml", 8020)
    assert run("tenants", "create-organisation", "acme", "-c", str(fresh)).exit_code == 0
    assert (state / "8020" / "starserve.db").exists()
    database = open_database(f"sqlite:///{state}/8020/starserve.db")
    with database.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM organisations").scalar() == 1
    database.dispose()
