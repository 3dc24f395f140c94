"""`thisness compare`. Oracle: `thisness generate` with the same words; the words of refusals."""

import json

import pytest

from thisness import cli
from thisness.images import load_image

QUICK = ("--steps", "1", "--guidance", "2", "--seeds", "3", "--tile", "32")


def test_concepts_and_the_base_side_by_side(base_folder, photos, concept_folder, tmp_path, capsys):
    words = ["compare", "a {subject} sleeping", "--base", str(base_folder), "--concept", f"Rex={concept_folder}",
             "--base-too", "--subject", str(photos), "--noun", "dog", *QUICK]  # fmt: skip
    assert cli.run([*words, "--out", str(tmp_path / "sheet.png")]) == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "sheet.png")]
    data = json.loads((tmp_path / "sheet.json").read_text())
    assert data["columns"] == ["base", "Rex"] and load_image(tmp_path / "sheet.png").width > 3 * 32
    for column, words in (("base", ["a dog sleeping"]), ("Rex", ["a {subject} sleeping", "--concept"])):
        more = [str(concept_folder)] if column == "Rex" else []
        out = tmp_path / column
        given = ["generate", *words, *more, "--base", str(base_folder), *QUICK[:6], "--out", str(out)]
        assert cli.run(given) == 0
        record = next(each["record"] for each in data["records"] if each["column"] == column)
        assert record["images"] == json.loads((out / "record.json").read_text())["images"]


def test_recipes_are_learned_beside_the_sheet(base_folder, photos, tmp_path):
    words = ["compare", "a {subject} sleeping", "--base", str(base_folder), "--subject", str(photos), "--noun", "dog",
             "--recipe", "base,ti=textual-inversion:steps=1", *QUICK, "--out", str(tmp_path / "a.png")]  # fmt: skip
    assert cli.run(words) == 0
    assert json.loads((tmp_path / "a.json").read_text())["columns"] == ["base", "ti"]
    assert (tmp_path / "a.concepts" / "ti" / "COMPLETE.json").is_file()


@pytest.mark.parametrize(
    "words, said",
    [
        (["a {subject}"], "no column"),
        (["a dog", "--base-too", "--noun", "dog"], "no placeholder"),
        (["a {subject}", "--base-too"], "--noun is missing"),
        (["a {subject}", "--recipe", "base"], "--subject is missing"),
        (["a {subject}", "--base-too", "--noun", "dog", "--out", "a.jpg"], "ends in .png"),
        (["a {subject}", "--concept", "A=x", "--concept", "A=y"], "two columns are called 'A'"),
        (["a {subject}", "--concept", "nowhere"], "nowhere"),
    ],
)
def test_refusals(refused, words, said, base_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in refused("compare", *words, "--base", base_folder)
    assert not list(tmp_path.iterdir())
