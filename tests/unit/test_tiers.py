"""What runs the tests: tiers, groups, budgets."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.groups import group_of, turn_of
from tests.support.run import BUDGET_S, Part, Runner, complaint_of, parts_of, summary

E2E = "tests/e2e"


@pytest.mark.parametrize(
    ("name", "group"),
    [
        (f"{E2E}/apart/test_moving.py::test_e[balanced]", f"{E2E}/apart/test_moving.py"),
        ("tests/integration/engines/test_engines.py::test_f[vllm]", "engines"),
        ("tests/integration/starcoder/test_parity.py::test_g[two stages]", "engines"),
        ("tests/integration/bench/test_batch.py::test_h", "integration/bench/test_batch.py::test_h"),
        ("tests/integration/test_check.py::test_i[plain]", "tests/integration/test_check.py"),
    ],
)
def test_tests_that_share_what_they_start_are_one_group(name: str, group: str) -> None:
    assert group_of(name) == group


def test_of_a_variant_what_breaks_a_stack_comes_late_and_what_stops_it_last() -> None:
    ordered = [
        f"{E2E}/test_tenancy.py::test_a[haproxy]",
        f"{E2E}/test_breaking.py::test_b[haproxy]",
        f"{E2E}/test_stopping.py::test_c[haproxy]",
        f"{E2E}/test_stack.py::test_d[plain-/v1/completions-change3]",
        f"{E2E}/test_models.py::test_d[deeper than the stack-plain]",
        f"{E2E}/apart/test_moving.py::test_e[balanced]",
    ]
    mixed = [ordered[place] for place in (5, 2, 3, 4, 1, 0)]
    assert sorted(mixed, key=turn_of) == ordered


def test_the_first_part_that_fails_ends_a_run_but_not_that_of_everything(tmp_path: Path) -> None:
    parts = [Part("good", ("true",)), Part("beside", ("true",), beside=True), Part("bad", ("false",)), Part("late", ())]
    runner = Runner(tmp_path / "report", to_the_end=False)
    runner.run(parts)
    assert (list(runner.took), runner.failed) == (["good", "bad", "beside"], ["bad"])
    runner = Runner(tmp_path / "report", to_the_end=True)
    runner.run([*parts[:3], Part("late", ("true",))])
    assert (list(runner.took)[-1], runner.failed) == ("late", ["bad"])


def test_what_fails_beside_another_part_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runner = Runner(tmp_path / "report", to_the_end=False)
    runner.run([Part("types", ("sh", "-c", "echo wrong; exit 1"), beside=True), Part("unit", ("true",))])
    assert runner.failed == ["types"]
    assert "wrong" in capsys.readouterr().out


def test_twice_its_budget_fails_a_run() -> None:
    budget = BUDGET_S["test"]
    assert complaint_of("test", 2 * budget, []) is None
    assert "above twice the budget" in str(complaint_of("test", 2 * budget + 1, []))
    assert complaint_of("test", 1, ["unit"]) == "failed: unit"


def test_a_summary_names_the_slowest_and_what_only_the_full_tier_runs_within_80_columns() -> None:
    told: list[dict[str, object]] = [
        {"ran": f"tests/unit/test_{i}.py::test_{'long' * 30}", "seconds": float(i)} for i in range(20)
    ]
    told += [{"left_out": f"tests/e2e/test_a.py::test_{i}"} for i in range(3)]
    lines = summary("test", {"unit": 12.0}, 13.0, told)
    assert [line.split()[0] for line in lines if ".py" in line and " s " in line] == [f"{19.0 - i}" for i in range(10)]
    assert "      3 in e2e/test_a.py" in lines
    assert "    all in perf/bench/test_ladder.py" in lines
    assert "   13.0 s  in all, of 480 s" in lines
    assert max(map(len, lines)) <= 80


def test_perf_is_run_by_the_full_tier_alone() -> None:
    for tier, perf in (("unit", False), ("test", False), ("full", True)):
        assert ("perf" in [part.name for part in parts_of(tier, [])]) is perf
