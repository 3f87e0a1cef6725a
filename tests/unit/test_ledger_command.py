"""`starserve ledger`, as an operator types it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from serve.__main__ import cli
from serve.database import migrate, open_database
from serve.ledger.entry import Entry
from serve.ledger.journal import Line
from serve.ledger.rejected import Rejected
from serve.ledger.shipping import ship
from serve.ledger.tables import write_entries
from serve.made import FOLDER, Made
from serve.settings import load
from tests.support.stack import tiny_model

NOON = 1_728_043_200.0  # 2024-10-04T12:00:00
SINCE = ["--since", "2024-10-01"]


def run(*words: str, config: Path) -> Result:
    return CliRunner().invoke(cli, ["ledger", words[0], str(config), *words[1:]], env={"COLUMNS": "200"})


def write_config(folder: Path, **database: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"models": [tiny_model(folder)], "database": database}))
    return path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    url = f"sqlite:///{tmp_path}/rows.db"
    database = open_database(url)
    migrate(database)
    rows = [
        Entry(
            f"r{i}", NOON + i, NOON + i + 1, "done", tenant_id=tenant, key_id="k1", model="m", output_tokens=5, cost=7
        )
        for i, tenant in enumerate(["acme", "acme", "other"])
    ]
    with database.begin() as connection:
        write_entries(connection, rows)
    count = {"router": "a", "minute_s": int(NOON), "key_id": "k1", "code": "rate", "day": int(NOON // 86400),
             "organisation_id": "", "tenant_id": "acme", "requests": 90}  # fmt: skip
    ship(database, [Line("n", count)], Rejected(tmp_path / "rejected"))
    database.dispose()
    return write_config(tmp_path, url=url)


def test_rows_and_counted_refusals_are_exported(config: Path) -> None:
    lines = run("export", "--format", "json", "--tenant", "acme", config=config).stdout.splitlines()
    assert [json.loads(line)["request_id"] for line in lines] == ["r0", "r1"]
    head, *rows = run("export", "--since", "2024-10-04T12:00:01", config=config).stdout.splitlines()
    assert head.startswith("request_id,opened_s,")
    assert [row.split(",")[0] for row in rows] == ["r1", "r2"]
    counted = run("export", "--refusals", config=config).stdout
    assert counted == "minute_s,organisation_id,tenant_id,key_id,code,requests\n1728043200,,acme,k1,rate,90\n"


def test_a_ledger_of_a_newer_version_is_told_in_a_sentence(config: Path, tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path}/rows.db")
    with database.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0099'")
    database.dispose()
    done = run("export", config=config)
    assert done.exit_code == 2
    assert "its schema is revision 0099" in done.output
    assert "starserve up" not in done.output


def test_usage_is_shown_as_sums(config: Path) -> None:
    shown = run("usage", *SINCE, "--by", "day,model", "--tenant", "acme", config=config).stdout
    assert [line.split() for line in shown.splitlines()] == [  # without columns of zeros
        ["day", "model", "done", "refused", "output", "cost"],
        ["2024-10-04", "–", "0", "90", "0", "0.000000"],
        ["2024-10-04", "m", "2", "0", "10", "0.000014"],
    ]
    _, told = json.loads(run("usage", *SINCE, "--by", "day,model", "--tenant", "acme", "--json", config=config).stdout)
    assert {name: told[name] for name in ("day", "model", "done", "output", "cached", "cost")} == {
        "day": "2024-10-04",
        "model": "m",
        "done": 2,
        "output": 10,
        "cached": 0,
        "cost": "0.000014",
    }
    assert run("usage", "--by", "colour", config=config).exit_code == 2


def test_pruning_says_how_much_it_forgot(config: Path) -> None:
    assert "4 rows forgotten" in run("prune", "--before", "2025-01-01", config=config).stdout
    assert len(run("export", config=config).stdout.splitlines()) == 1
    assert run("prune", config=config).exit_code == 2  # nothing is forgotten by default


def test_without_a_ledger_it_says_so_and_makes_none(tmp_path: Path) -> None:
    done = run("export", config=write_config(tmp_path, url=f"sqlite:///{tmp_path}/none.db"))
    assert done.exit_code == 2
    assert "this deployment has no ledger yet" in done.stderr
    assert not (tmp_path / "none.db").exists()


def test_the_url_of_the_database_is_never_shown(tmp_path: Path) -> None:
    config = write_config(tmp_path, url="postgresql+psycopg://me:canary@127.0.0.1:1/none")
    done = run("usage", config=config)
    assert done.exit_code == 2
    assert "the database does not answer (OperationalError)" in done.stderr
    assert "canary" not in done.output + repr(load(config))


def test_what_engines_made_and_no_router_received_is_told_as_lost(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STARSERVE_STATE", str(tmp_path))
    assert "0 engines made 0 output tokens; the ledger has 0; lost 0 (0 requests lost, 0 open)" in told(config)
    made = Made(tmp_path / "8000" / FOLDER, "alive", print)
    write(tmp_path, Entry("a", NOON, NOON + 1, "done", engine="alive", output_tokens=30))
    made.add(20)
    made.add(10)
    assert "1 engines made 30 output tokens; the ledger has 30; lost 0" in told(config)
    killed = Made(tmp_path / "8000" / FOLDER, "killed", print)
    killed.add(7)
    later = time.time() + 1
    write(tmp_path, Entry("b", later, later, "lost", engine="killed", output_tokens=4), Entry("c", later))
    assert "2 engines made 37 output tokens; the ledger has 34; lost 3 (1 requests lost, 1 open)" in told(config)
    (row,) = json.loads(run("check", "--json", config=config).stdout)
    assert row == {
        "engines": 2,
        "made_tokens": 37,
        "ledger_tokens": 34,
        "lost_tokens": 3,
        "lost_requests": 1,
        "open_requests": 1,
    }
    write(tmp_path, Entry("d", later, later, "cancelled", output_tokens=4))  # its router died, and with it the name
    done = run("check", config=config)
    assert done.exit_code == 1
    assert "the ledger has 1 output tokens more than the engines made" in done.stderr


def told(config: Path) -> str:
    done = run("check", config=config)
    assert done.exit_code == 0, done.output
    return done.stdout


def write(folder: Path, *entries: Entry) -> None:
    database = open_database(f"sqlite:///{folder}/rows.db")
    with database.begin() as connection:
        write_entries(connection, list(entries))
    database.dispose()
