"""`starserve tenants` and `starserve admin`, as an operator types them."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from serve.__main__ import cli
from serve.services import Database
from serve.settings import embedded_config
from serve.tenants.development import open_store
from tests.support.people import router
from tests.support.stack import free_port, wait_for

Say = Callable[..., Result]
FILE = """
organisations:
  - id: acme
    tenants:
      - id: web
        keys: [{name: ci}]
"""


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The instance's folder: a short one, for the sockets in it."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as folder:
        monkeypatch.setenv("STARSERVE_STATE", folder)
        monkeypatch.setenv("STARSERVE_CONFIG", str(embedded_config()))
        monkeypatch.setenv("COLUMNS", "200")
        yield Path(folder) / "8000"


@pytest.fixture
def starserve(home: Path) -> Say:
    def run(*words: str, fails: bool = False) -> Result:
        result = CliRunner().invoke(cli, list(words))
        assert result.exit_code == (2 if fails else 0), result.output
        return result

    return run


def test_a_tenant_s_whole_life_at_the_command_line(starserve: Say, home: Path) -> None:
    starserve("tenants", "create-organisation", "acme", "--limit", "tokens_per_day=1000")
    starserve("tenants", "create", "acme", "web", "--weight", "2", "--models", "a,b", "--limit", "queued_tokens=5")
    key = starserve("tenants", "key", "create", "web", "ci", "--models", "a", "--scopes", "generate").stdout.strip()
    known = router(store := open_store(Database(), home)).identify(f"Bearer {key}")
    assert (known.tenant_id, known.models, known.scopes) == ("web", frozenset("a"), frozenset({"generate"}))
    (listed,) = json.loads(starserve("tenants", "key", "list", "--json").stdout)
    assert listed["key_id"] == known.key_id
    assert listed["secrets"][0].keys() == {"created_at", "expires_at"}
    second = starserve("tenants", "key", "rotate", known.key_id, "--grace-s", "60").stdout.strip()
    starserve("tenants", "set", "web", "--band", "batch", "--limit", "queued_tokens=none", "--ceiling", "choices=2")
    for each in (key, second):
        assert router(store).identify(f"Bearer {each}").band == "batch"
    shown = starserve("tenants", "show", "web").stdout
    assert "choices 2" in shown
    assert "queued_tokens" not in shown
    starserve("tenants", "suspend", "web")
    assert "so already" in starserve("tenants", "suspend", "web").stdout
    starserve("tenants", "resume", "web")
    starserve("tenants", "key", "revoke", known.key_id)
    told = json.loads(starserve("tenants", "audit", "--json").stdout)
    assert [t["act"] for t in told] == [
        "revoke", "resume", "suspend", "change", "rotate", "create", "create", "create",
    ]  # fmt: skip
    assert all(t["actor"].startswith("command line: ") for t in told)
    assert "standard → batch" in starserve("tenants", "audit", "web").stdout
    starserve("tenants", "remove", "acme", "--kind", "organisation")
    assert json.loads(starserve("tenants", "list", "--json").stdout) == []
    store.close()


def test_a_file_is_imported_once_and_its_secrets_are_shown_once(starserve: Say, home: Path, tmp_path: Path) -> None:
    file = tmp_path / "tenants.yaml"
    file.write_text(FILE)
    first = starserve("tenants", "import", str(file)).stdout
    assert first.count("sk-") == 1
    again = starserve("tenants", "import", str(file), "--prune").stdout
    assert "nothing to do" in again
    assert "sk-" not in again
    file.write_text("organisations: []\n")
    assert "suspend organisation acme" in starserve("tenants", "import", str(file), "--prune").stdout
    assert {stat.S_IMODE(p.stat().st_mode) for p in home.iterdir()} == {0o600}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [(("create", "nobody", "web"), "there is no organisation nobody"),
     (("suspend", "nobody"), "there is no tenant nobody"),
     (("set", "web"), "nothing was given"),
     (("create-organisation", "acme", "--limit", "token_per_day=1"), "did you mean `tokens_per_day`"),
     (("create-organisation", "acme", "--limit", "tokens_per_day"), "tokens_per_day=NUMBER"),
     (("create-organisation", "Not An Id"), "id: "),
     (("import", "/nowhere.yaml"), "/nowhere.yaml: No such file"),
     (("list", "--config", "/nowhere.yaml"), "/nowhere.yaml: No such file"),
     (("list",), "nothing was ever served on port 8000; nothing runs here")],
)  # fmt: skip
def test_what_cannot_be_done_is_said_in_a_sentence(starserve: Say, words: tuple[str, ...], sentence: str) -> None:
    refused = starserve("tenants", *words, fails=True)
    assert sentence in refused.stderr
    assert "Traceback" not in refused.output


def test_rows_are_whole_words_however_narrow_the_terminal_is(starserve: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    starserve("tenants", "create-organisation", "acme")
    name = "a-tenant-with-a-name-of-forty-letters-xx"
    starserve("tenants", "create", "acme", name, "--models", "smollm2-135m-instruct,another", "--band", "interactive")
    wide = starserve("tenants", "list").stdout.splitlines()
    assert wide[0].split() == ["tenant_id", "organisation_id", "weight", "band", "models", "suspended"]  # no limits
    assert len(wide) == 2
    for columns in ("80", "20"):
        monkeypatch.setenv("COLUMNS", columns)
        rows = [line.split(maxsplit=1) for line in starserve("tenants", "list").stdout.splitlines() if line]
        assert dict(rows) == {
            "tenant_id": name,
            "organisation_id": "acme",
            "weight": "1",
            "band": "interactive",
            "models": "another, smollm2-135m-instruct",
            "suspended": "no",
        }


def test_the_admin_api_has_a_port_and_a_token_of_its_own(starserve: Say, home: Path) -> None:
    assert "admin.port" in starserve("admin", fails=True).stderr
    port = free_port()
    environment = {**os.environ, "STARSERVE__ADMIN__PORT": str(port)}
    process = subprocess.Popen([sys.executable, "-m", "serve", "admin"], env=environment, stderr=subprocess.PIPE)
    address = f"http://127.0.0.1:{port}/admin/v1/organisations"

    def answers() -> bool:
        assert process.poll() is None
        try:
            return httpx.get(address).status_code == 401
        except httpx.TransportError:
            return False

    try:
        wait_for(answers, within_s=60)
        token = home / "admin.token"
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        answer = httpx.post(address, json={"id": "acme"}, headers={"Authorization": f"Bearer {token.read_text()}"})
        assert answer.status_code == 201
        assert answer.headers["x-request-id"]
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert b"Traceback" not in errors
    assert '"acme"' in starserve("tenants", "audit", "--json").stdout
