"""`thisness learn` of several folders. Oracle: the manifests against what was typed."""

import json

import numpy as np
import pytest
from PIL import Image

from thisness import cli
from thisness.adapters import REPLACED
from thisness.concept import Concept


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """rex/ with noun.txt, mimi/ with the playroom's truth.json, spot/ that says nothing."""
    root = tmp_path_factory.mktemp("toys")
    for seed, name in enumerate(("rex", "mimi", "spot")):
        (root / name).mkdir()
        pixels = np.random.default_rng(seed).integers(60, 200, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name / "0.png")
    (root / "rex/noun.txt").write_text("dog\n")
    (root / "mimi/truth.json").write_text(json.dumps({"name": "mimi", "noun": "cat", "scenes": []}))
    return root


@pytest.fixture
def call(base_folder, tmp_path):
    def words(method, *more):
        return ["learn", method, *map(str, more), "--base", str(base_folder), "--out", str(tmp_path / "out")]

    return words


def test_a_concept_for_each_folder_with_the_noun_that_it_says(call, toys, tmp_path, capsys):
    words = call("textual-inversion", toys / "rex", toys / "mimi", "--steps", 2, "--batch-size", 2)
    assert cli.run(words) == 0
    for name, noun in (("rex", "dog"), ("mimi", "cat")):
        concept = Concept.load(tmp_path / "out" / name)
        assert (concept.name, concept.noun, concept.method) == (name, noun, "textual-inversion")
        assert (concept.settings["steps"], concept.settings["batch_size"]) == (2, 2)
    assert f"--concept {tmp_path / 'out' / 'rex'}" in capsys.readouterr().out


def test_nouns_typed_are_for_all_or_for_each(call, toys, tmp_path):
    two = (toys / "rex", toys / "spot", "--steps", 1)
    assert cli.run(call("textual-inversion", *two, "--noun", "cat")) == 0
    assert [Concept.load(tmp_path / "out" / name).noun for name in ("rex", "spot")] == ["cat", "cat"]
    assert cli.run(call("textual-inversion", *two, "--noun", "cat", "--noun", "dog")) == 0
    assert [Concept.load(tmp_path / "out" / name).noun for name in ("rex", "spot")] == ["cat", "dog"]


def test_notes_name_the_subject(call, toys, capsys):
    assert cli.run(call("textual-inversion", toys / "rex", toys / "mimi", "--steps", 1)) == 0
    said = capsys.readouterr().err
    assert all(f"note: {name}: 1 picture" in said for name in ("rex", "mimi"))


def test_joint_concepts_are_attached_by_generate(call, toys, base_folder, tmp_path, capsys):
    more = ("--joint", "--steps", 1, "--set", "prior_pictures=0")
    assert cli.run(call("custom-diffusion", toys / "rex", toys / "mimi", *more)) == 0
    rex, mimi = (Concept.load(tmp_path / "out" / name) for name in ("rex", "mimi"))
    assert all(tensor.equal(mimi.tensors[REPLACED][key]) for key, tensor in rex.tensors[REPLACED].items())
    said = capsys.readouterr().out
    assert '"a {rex} beside a {mimi}" --concept rex=' in said
    words = ["generate", "a {rex} on a {mimi}", "--base", base_folder, "--steps", 1, "--seeds", 0]
    words += ["--concept", f"rex={tmp_path / 'out/rex'}", "--concept", f"mimi={tmp_path / 'out/mimi'}"]
    assert cli.run([*map(str, words), "--out", str(tmp_path / "made")]) == 0


def test_refusals_are_one_line(refused, call, toys, tmp_path):
    rex, mimi, spot = (toys / name for name in ("rex", "mimi", "spot"))
    assert f"--noun (what kind of thing it is) is missing for {spot}" in refused(*call("detex", rex, spot))
    assert "2 nouns (--noun) for 3 folders" in refused(
        *call("detex", rex, mimi, spot, "--noun", "dog", "--noun", "cat")
    )
    assert "--joint is for custom-diffusion, not textual-inversion" in refused(
        *call("textual-inversion", rex, mimi, "--joint")
    )
    assert "give at least two subjects" in refused(*call("custom-diffusion", rex, "--joint"))
    assert "each gives its concept's name" in refused(*call("textual-inversion", rex, mimi, "--name", "x"))
    assert "custom-diffusion cannot learn several subjects in one batch" in refused(
        *call("custom-diffusion", rex, mimi)
    )
    assert "two subjects are called rex" in refused(*call("textual-inversion", rex, rex))
    assert "2 problems" in refused(*call("textual-inversion", tmp_path / "a", tmp_path / "b", "--noun", "dog"))
    assert "track_collapse follows the learning of one" in refused(
        *call("textual-inversion", rex, mimi, "--track-collapse")
    )
    assert not (tmp_path / "out").exists()
