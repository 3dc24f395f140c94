"""Several runs read as one. Oracle: rows by hand; the same rows in one run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from evaluation import synthetic

from thisness import cli
from thisness.errors import ConfigurationError
from thisness.evaluation.joining import joined
from thisness.evaluation.report import gather
from thisness.evaluation.results import Run

PARTS = (
    "benchmark", "recipes", "base", "scored", "identities", "environment", "command", "references", "learning",
    "sizes", "planned", "damaged",
)  # fmt: skip


def run(folder: Path, recipes: dict, base: str = "sd", **more) -> Run:
    folder.mkdir(exist_ok=True)
    made = synthetic.run(folder, recipes, base={"name": base, "dtype": "float32"}, **more)
    return Run(folder=folder, **{name: getattr(made, name) for name in PARTS})


VALUES = {"plain": synthetic.subjects(7, 0.3, 0.2), "own": synthetic.subjects(7, 0.2, 0.5)}


def test_two_runs_say_what_one_run_of_all_recipes_says(tmp_path):
    one, other = ({name: values} for name, values in VALUES.items())
    apart = [run(tmp_path / "a", one), run(tmp_path / "b", other, base="flux", command="b")]
    whole, found = gather(run(tmp_path / "c", VALUES)), gather(joined(apart))
    assert [(each.recipe, each.values, each.front) for each in found.recipes] == [
        (each.recipe, each.values, each.front) for each in whole.recipes
    ]
    assert found.pairs == whole.pairs and found.subjects == 7, "paired on the same toys, sentences, seeds"
    assert found.base == {"name": "sd, flux", "dtype": "float32"} and found.command.endswith("\nb")
    assert {label: each["base"] for label, each in found.definitions.items()} == {"plain": "sd", "own": "flux"}
    assert joined(apart[:1]) is apart[0]


def test_runs_of_other_subjects_and_seeds_are_put_together(tmp_path):
    a, b = run(tmp_path / "a", {"plain": VALUES["plain"]}), run(tmp_path / "b", {"own": VALUES["own"]})
    a = replace(a, benchmark={"name": "toys", "seeds": [0, 1], "subjects": {"x": {"hash": "1"}, "y": {"hash": "2"}}})
    b = replace(b, benchmark={"name": "toys", "seeds": [1, 2], "subjects": {"y": {"hash": "2"}, "z": {"hash": "3"}}})
    found = joined([a, b])
    assert found.benchmark["seeds"] == [0, 1, 2] and list(found.benchmark["subjects"]) == ["x", "y", "z"]
    assert found.planned == a.planned + b.planned and len(found.scored) == len(a.scored) + len(b.scored)


def test_what_cannot_be_compared_is_refused_all_at_once(tmp_path):
    a, b = run(tmp_path / "a", {"plain": VALUES["plain"]}), run(tmp_path / "b", {"plain": VALUES["own"]})
    a = replace(a, benchmark={"name": "toys", "subjects": {"x": {"hash": "1"}}, "cases": {"c": {"text": "a toy"}}})
    b = replace(b, benchmark={"name": "toys", "subjects": {"x": {"hash": "2"}}, "cases": {"c": {"text": "a dog"}}})
    b = replace(b, identities={**b.identities, "clip-i": {"metric": "clip-i", "encoder": "another"}})
    with pytest.raises(ConfigurationError, match="4 problems: a recipe is called plain in more than one") as raised:
        joined([a, b])
    for said in ("'x' of the subjects is another one", "'c' of the cases is another one", "clip-i is computed by"):
        assert said in str(raised.value)


def test_the_command_reports_on_several_runs(tmp_path, capsys):
    from cli.test_bench_report import written

    one, other = written(tmp_path / "one", ("base",)), written(tmp_path / "two", ("learned",))
    assert cli.run(["bench", "report", str(one), str(other), "--out", str(tmp_path / "page")]) == 0
    data = json.loads((tmp_path / "page" / "report.json").read_text())
    assert [each["recipe"] for each in data["recipes"]] == ["base", "learned"]
    assert cli.run(["bench", "report", str(one), str(one)]) == 0, "the same folder twice is one"
    assert cli.run(["bench", "report", str(other), str(written(tmp_path / "three", ("learned",)))]) == 2
    assert "is called learned in more than one of them" in capsys.readouterr().err
