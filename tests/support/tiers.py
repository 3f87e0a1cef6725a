"""A pytest plugin: the tier of each test is its folder, and what a run took and left out is written down.

The file that STARSERVE_TEST_REPORT names gets a line of JSON per test that ran and per test that was left out.
`tests.support.run` reads it.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.support.groups import Groups, turn_of

TESTS = Path(__file__).parent.parent
TIERS = ("unit", "integration", "e2e", "perf")
REPORT = "STARSERVE_TEST_REPORT"
_LEFT_OUT = "left_out"  # what a worker of pytest-xdist tells the process that started it


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(tier_of(item.path))
    items.sort(key=lambda item: turn_of(item.nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Groups | None:
    return Groups(config, log) if config.getoption("dist") == "loadscope" else None


def tier_of(path: Path) -> str:
    """The folder of `tests/` that a file lies in."""
    tier = path.relative_to(TESTS).parts[0]
    if tier not in TIERS:
        raise pytest.UsageError(f"{path}: a test lies in one of {', '.join(TIERS)}")
    return tier


class Report:
    """What one run of pytest did. In a worker it only remembers what was left out, and tells it at the end."""

    def __init__(self, config: pytest.Config, file: Path | None) -> None:
        self._config, self._file = config, file
        self._seconds = defaultdict[str, float](float)
        self._left_out = set[str]()

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        self._left_out |= {item.nodeid for item in items}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Set-up, call and end of each test; the set-up of a shared fixture counts for the first that wants it."""
        self._seconds[report.nodeid] += report.duration

    def pytest_testnodedown(self, node: Any) -> None:
        self._left_out |= set(getattr(node, "workeroutput", {}).get(_LEFT_OUT, ()))

    def pytest_sessionfinish(self) -> None:
        told = getattr(self._config, "workeroutput", None)
        if told is not None:
            told[_LEFT_OUT] = sorted(self._left_out)
        elif self._file is not None:
            with self._file.open("a") as file:
                for name, seconds in self._seconds.items():
                    file.write(json.dumps({"ran": name, "seconds": round(seconds, 3)}) + "\n")
                for name in sorted(self._left_out):
                    file.write(json.dumps({"left_out": name}) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    file = os.environ.get(REPORT)
    config.pluginmanager.register(Report(config, Path(file) if file else None))
