"""`starserve bench ledger`, small."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from serve.__main__ import cli


def test_the_ledger_is_measured_empty_and_full_and_in_a_flood(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = CliRunner().invoke(cli, ["bench", "ledger", "--rows", "2000", "--requests", "400", "--save", str(report)])
    assert done.exit_code == 0, done.output
    read = json.loads(report.read_text())
    assert [point["table_rows"] for point in read["measured"]] == [0, 2000]
    flood = read["floods"]["sqlite"]
    assert flood["rows"] + flood["counted"] == flood["refusals"] == 10_000
    assert 50 <= flood["rows"] <= 10 * flood["seconds"] + 11
