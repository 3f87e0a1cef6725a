"""What the README shows is true. Its API examples run in tests/e2e/test_stack.py."""

from __future__ import annotations

import re
import subprocess

import yaml

from serve.settings import parse
from serve.tenants import importing
from tests.support.readme import README, ROOT, block


def test_the_example_configuration_is_valid() -> None:
    assert parse(yaml.safe_load(block("yaml", "name: mine"))).models[0].engine.cores == 2


def test_the_example_of_profiles_and_adapters_is_valid() -> None:
    (model,) = yaml.safe_load(block("yaml", "profiles:"))["models"]
    whole = {**model, "source": {"folder": "/"}, "context_tokens": 512, "engine": {}}
    found = parse({"models": [whole]}).models[0]
    assert found.profiles["complete"].max_tokens == 60
    assert found.adapters[0].name == "starcoder-sql"


def test_the_example_of_tenants_is_valid() -> None:
    (organisation,) = importing.read(block("yaml", "organisations:")).organisations
    assert [key.name for tenant in organisation.tenants for key in tenant.keys] == ["editors"]


def test_the_examples_of_queue_and_limits_are_valid() -> None:
    engine = yaml.safe_load(block("yaml", "tenant_jobs:"))["engine"]
    given = yaml.safe_load(block("yaml", "redis_url:"))
    (model,) = given["models"]
    whole = {**model, "source": {"folder": "/"}, "context_tokens": 512, "engine": engine}
    found = parse({**given, "models": [whole]})
    assert found.models[0].engine.queue.reserve == 1
    assert found.models[0].price.of(1_000_000, 0, 1_000_000) == 2_000_000
    assert found.limit_store.redis_url is not None


def test_the_file_tree_is_the_tree() -> None:
    shown = [line.split()[0] for line in block("", "configs/").splitlines()]
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    tracked = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    folders = {f"{path.split('/')[0]}/" for path in tracked if "/" in path and not path.startswith(".")}
    inside = {path.removeprefix("serve/") for path in tracked if path.startswith("serve/")}
    rooms = {f"{path.split('/')[0]}/" if "/" in path else path for path in inside} - {"__init__.py"}
    assert set(shown) == folders | rooms


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_no_file_is_longer_than_a_reader_can_hold() -> None:
    long = [
        p for folder in ("serve", "tests") for p in (ROOT / folder).rglob("*.py") if p.read_text().count("\n") > 300
    ]
    assert long == []
