"""Faster, slower or undecided; and refused where two reports cannot be compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from serve.__main__ import cli
from serve.bench.compare import compare
from serve.bench.report import Metric, Report, ReportError

A = Report("batch", {"engine.dtype": "float32"}, {"output_tokens_s": Metric([100, 101, 99], "higher")}, 0.1)


def like_a(*values: float, **changes: object) -> Report:
    return replace(A, metrics={"output_tokens_s": Metric(values, "higher")}, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ((120, 121, 119), "faster"),
        ((80, 81, 79), "slower"),
        ((101, 102, 100), "undecided"),  # clear, and too little to matter
        ((60, 200, 110), "undecided"),  # much, and too noisy to tell
    ],
)
def test_a_verdict_needs_a_difference_that_is_clear_and_matters(values: tuple[float, ...], says: str) -> None:
    (verdict,) = compare(A, like_a(*values))
    assert verdict.says == says
    assert verdict.low < verdict.ratio < verdict.high


def test_a_lower_latency_is_faster() -> None:
    before = replace(A, metrics={"ttft_s": Metric([1.0, 1.1, 0.9], "lower")})
    after = replace(A, metrics={"ttft_s": Metric([0.5, 0.55, 0.45], "lower")})
    assert compare(before, after)[0].says == "faster"


def test_the_interval_holds_the_true_ratio_in_95_of_100_noisy_pairs() -> None:
    import random

    draw, held = random.Random(0), 0
    for _ in range(400):
        one, other = ([100 * f * draw.lognormvariate(0, 0.1) for _ in range(4)] for f in (1.0, 1.2))
        (verdict,) = compare(like_a(*one), like_a(*other))
        held += verdict.low <= 1.2 <= verdict.high
    assert 0.92 < held / 400 < 0.99


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (like_a(1, 2, 3, conditions={"engine.dtype": "bfloat16"}), "engine.dtype: float32 and bfloat16"),
        (like_a(1, 2, 3, cached_share=0.6), "prefix cache held 10 % of A's prompt tokens and 60 % of B's"),
        (like_a(1, 2, 3, verdict="INVALID: the client lagged"), "B may not be used: INVALID: the client lagged"),
        (like_a(1, 2, 3, kind="load"), "A is a report of batch, B of load"),
        (like_a(1, 2), "at least 3 runs"),
        (like_a(0, 2, 3), "a value is not above 0"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_its_reason(other: Report, sentence: str) -> None:
    with pytest.raises(ReportError, match=sentence):
        compare(A, other)


def test_a_difference_that_is_meant_is_named_and_must_be_there() -> None:
    other = like_a(120, 121, 119, conditions={"engine.dtype": "bfloat16"})
    assert compare(A, other, ["engine.dtype"])[0].says == "faster"
    with pytest.raises(ReportError, match="it does not differ"):
        compare(A, A, ["engine.dtype"])


def test_the_command_prints_the_interval_and_fails_when_b_is_slower(tmp_path: Path) -> None:
    A.save(tmp_path / "a.json")
    like_a(80, 81, 79).save(tmp_path / "b.json")
    done = CliRunner().invoke(cli, ["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    assert done.exit_code == 1
    assert "0.800" in done.output
    assert "slower" in done.output
    back = CliRunner().invoke(cli, ["bench", "compare", str(tmp_path / "b.json"), str(tmp_path / "a.json")])
    assert (back.exit_code, "faster" in back.output) == (0, True)


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"metrics": {"x": 3}}), "\x00"])
def test_a_file_that_is_no_report_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    done = CliRunner().invoke(cli, ["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "a.json")])
    assert done.exit_code == 2
    assert "is no report" in " ".join(done.output.split())
