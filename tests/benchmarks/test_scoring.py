"""The benchmark of scoring. Oracle: its plain loop and our metrics give the same values, so that times compare."""

import json
import sys

import pytest


@pytest.mark.parametrize("words", [[], ["--one-reference"]])
def test_both_loops_give_the_same_values(monkeypatch, tmp_path, words):
    import scoring

    file = tmp_path / "x.json"
    given = ["--pictures", "3", "--references", "2", "--repeats", "1", "--json", str(file), *words]
    monkeypatch.setattr(sys, "argv", ["scoring", *given])
    scoring.main()
    result = json.loads(file.read_text())
    rates = {row["loop"]: row["pictures/s"] for row in result["rows"]}
    assert set(rates) == {"plain", "ours"} and min(rates.values()) > 0
    assert result["largest_difference_of_a_value"] < 1e-4
    assert result["target_ratio"] == 1.5 and str(tmp_path) not in file.read_text()
