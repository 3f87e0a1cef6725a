"""Run the checks of one tier: `python -m tests.support.run unit|lint|test|full [options of pytest]`.

It ends with what each part took and with the ten slowest tests, and fails when the whole takes twice its budget.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.support.tiers import REPORT, TESTS

ROOT = Path(__file__).parent.parent.parent
VERIFIED = ROOT / "docs" / "verified.json"
TIMES = ROOT / ".pytest_cache" / "times.jsonl"  # of each test of the last run
BIN = Path(sys.executable).parent
BUDGET_S = {"lint": 120.0, "unit": 90.0, "test": 480.0, "full": 3600.0}
SLOWEST = 10
_GROUPED = ("-n", "2", "--dist", "loadscope")  # as tests/support/groups.py says
_SPREAD = ("-n", "2", "--dist", "worksteal")


class Part(NamedTuple):
    """One command of a tier, by the name that the summary shows. `beside`: it runs while the next part does."""

    name: str
    command: tuple[str, ...]
    beside: bool = False


def pytest_of(name: str, folders: Sequence[str], *options: str) -> Part:
    paths = [f"tests/{folder}" for folder in folders]
    return Part(name, (sys.executable, "-m", "pytest", "--no-header", "-q", *options, *paths))


def lint(files: Sequence[str] = ()) -> list[Part]:
    """Lint, format and types, of these files or of all."""
    ruff = str(BIN / "ruff")
    return [
        Part("lint", (ruff, "check", *(files or ["."]))),
        Part("format", (ruff, "format", "--check", *(files or ["."]))),
        Part("types", (str(BIN / "mypy"), *(f for f in files if f.startswith(("serve/", "tests/")))), beside=True),
    ]


def changed() -> list[str]:
    """Python files that differ from the last commit, or are new."""
    named = ["git", "diff", "--name-only", "--diff-filter=d", "HEAD"], ["git", "ls-files", "-o", "--exclude-standard"]
    told = [subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout for command in named]
    return sorted({path for path in "\n".join(told).split() if path.endswith(".py")})


def parts_of(tier: str, options: Sequence[str]) -> list[Part]:
    every = ("-m", "") if tier == "full" else ()
    if tier == "lint":
        return lint()
    if tier == "unit":
        files = changed()
        return [*(lint(files) if files else []), pytest_of("unit", ["unit"], *_SPREAD, *options)]
    parts = [
        *lint(),
        pytest_of("unit", ["unit"], *_SPREAD, *every, *options),
        pytest_of("integration", ["integration"], *_GROUPED, *every, *options),
        pytest_of("e2e", ["e2e"], "--ignore=tests/e2e/apart", *every, *options),
    ]
    if tier == "full":
        parts.append(pytest_of("e2e, apart", ["e2e/apart"], *_GROUPED, *every, *options))
        parts.append(pytest_of("perf", ["perf"], *every, *options))
    return parts


class Runner:
    """Runs parts, one after the other or one beside the next. `to_the_end`: also after one that failed."""

    def __init__(self, report: Path, to_the_end: bool) -> None:
        self._to_the_end = to_the_end
        self._environment = {**os.environ, REPORT: str(report)}
        self._beside: list[tuple[Part, float, subprocess.Popen[bytes]]] = []
        self.took, self.failed = dict[str, float](), list[str]()

    def run(self, parts: Sequence[Part]) -> None:
        for part in parts:
            print(f"\nstarserve: {part.name}{' (in the background)' if part.beside else ''}", flush=True)
            since = time.monotonic()
            if part.beside:
                quiet = subprocess.Popen(part.command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
                self._beside.append((part, since, quiet))
                continue
            done = subprocess.run(part.command, cwd=ROOT, env=self._environment, check=False)
            self._ended(part, since, done.returncode)
            self._await_the_others()
            if self.failed and not self._to_the_end:
                return
        self._await_the_others()

    def _await_the_others(self) -> None:
        """What they say is shown whole, at their end."""
        for part, since, process in self._beside:
            said, _ = process.communicate()
            print(f"\nstarserve: {part.name}\n{said.decode().rstrip()}", flush=True)
            self._ended(part, since, process.returncode)
        self._beside.clear()

    def _ended(self, part: Part, since: float, status: int) -> None:
        self.took[part.name] = time.monotonic() - since
        if status:
            self.failed.append(part.name)


def main() -> int:
    tier, *options = sys.argv[1:]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        report.touch()
        runner = Runner(report, to_the_end=tier == "full")
        runner.run(parts_of(tier, options))
        told = [json.loads(line) for line in report.read_text().splitlines()]
        TIMES.parent.mkdir(exist_ok=True)
        shutil.copyfile(report, TIMES)
    whole_s = time.monotonic() - began
    print("\n" + "\n".join(summary(tier, runner.took, whole_s, told)), flush=True)
    if complaint := complaint_of(tier, whole_s, runner.failed):
        print(f"\nstarserve: {complaint}")
        return 1
    if tier == "full" and not options:
        write_verified()
    return 0


def complaint_of(tier: str, whole_s: float, failed: Sequence[str]) -> str | None:
    """Why the run is no success."""
    if failed:
        return f"failed: {', '.join(failed)}"
    if whole_s > 2 * BUDGET_S[tier]:
        return f"{whole_s:.0f} s is above twice the budget: look for what hangs or has become slow"
    return None


def summary(tier: str, took: dict[str, float], whole_s: float, told: list[dict[str, object]]) -> list[str]:
    """Lines of at most 80 columns: the slowest tests, what only the full tier covers, and what each part took."""
    ran = {str(line["ran"]): float(str(line["seconds"])) for line in told if "ran" in line}
    slowest = sorted(ran, key=lambda name: -ran[name])[:SLOWEST]
    lines = ["The slowest tests, with what they set up:"] if slowest else []
    for name in slowest:
        file, _, test = name.removeprefix("tests/").partition("::")
        lines += [f"{ran[name]:7.1f} s  {file}", f"           {test[:69]}"]
    if tier == "test":
        lines += ["", "Only in the full tier (`make test-full`):", *left_out(told)]
        lines.append(f"  which last passed on {verified()}")
    lines += ["", *(f"{seconds:7.1f} s  {name}" for name, seconds in took.items())]
    return [*lines, f"{whole_s:7.1f} s  in all, of {BUDGET_S[tier]:.0f} s"]


def left_out(told: list[dict[str, object]]) -> list[str]:
    """Of each file: how many tests only the full tier runs."""
    names = [str(line["left_out"]) for line in told if "left_out" in line]
    of_file = Counter(re.sub(r"::.*", "", name).removeprefix("tests/") for name in names)
    apart = [path for folder in ("e2e/apart", "perf") for path in sorted((TESTS / folder).rglob("test_*.py"))]
    lines = [f"{number:7} in {file}" for file, number in sorted(of_file.items())]
    return [*lines, *(f"    all in {path.relative_to(TESTS)}" for path in apart)]


def verified() -> str:
    if not VERIFIED.exists():
        return "no commit yet"
    known = json.loads(VERIFIED.read_text())
    return f"{known['commit'][:7]}, {known['date']}"


def write_verified() -> None:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    known = {"commit": commit.stdout.strip(), "date": datetime.date.today().isoformat()}
    VERIFIED.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
