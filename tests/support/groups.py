"""Which tests run one after the other in one worker, and in which order.

Tests of one group share what they start, such as the imports of vLLM. Everything is read from a test's name, because
that is all that the process which hands out work knows.
"""

from __future__ import annotations

import re
from typing import Any

from xdist.scheduler import LoadScopeScheduling

VARIANTS = ("haproxy", "plain", "cluster")  # of the stacks in tests/e2e
_VARIANT = re.compile(rf"\[(?:.*-)?({'|'.join(VARIANTS)})(?:-.*)?\]$")
_ENGINES = re.compile(
    r"integration/(engines/test_engines|wire/test_real_engine|starcoder/test_(parity|adapters|checkpoints))\.py"
)
# Each of these takes long by itself, so they begin first, and apart.
_LONG = re.compile(r"integration/bench/test_(batch|model)\.py::(\w+)")


class Groups(LoadScopeScheduling):
    """Hands out groups in the order in which they were collected."""

    def __init__(self, config: Any, log: Any) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


def group_of(name: str) -> str:
    """The group of a test, by its node id."""
    if _ENGINES.search(name):
        return "engines"
    if long := _LONG.search(name):
        return long[0]
    return name.split("::")[0]


def turn_of(name: str) -> tuple[int, int, bool, bool]:
    """Sorts tests: long ones first; of e2e a variant's together, what breaks a stack late, what stops it last."""
    variant = variant_of(name)
    place = len(VARIANTS) if variant is None else VARIANTS.index(variant)
    first = 0 if _LONG.search(name) else 1 if _ENGINES.search(name) else 2
    return place, first, "e2e/test_stopping.py" in name, "e2e/test_breaking.py" in name


def variant_of(name: str) -> str | None:
    found = _VARIANT.search(name) if "tests/e2e/" in name else None
    return found[1] if found else None
