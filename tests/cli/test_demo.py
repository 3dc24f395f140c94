"""`thisness demo`. Oracle: the files it leaves, their records, and the ground truth of the reference pictures."""

import json

import pytest
from PIL import Image

from thisness import cli
from thisness.cli.demo import SCENES, new_scenes
from thisness.images import read_record
from thisness.playroom.captions import PLACES
from thisness.playroom.subjects import reference_scenes


@pytest.fixture(scope="module")
def shown(base_folder, tmp_path_factory):
    """The quick demo, run once."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    assert cli.run(["demo", "--quick", "--base", str(base_folder), "--out", str(folder)]) == 0
    return folder


def test_leaves_references_concept_scenes_and_sheet(shown):
    truth = json.loads((shown / "references/truth.json").read_text())
    assert (truth["name"], truth["noun"]) == ("rufus", "dog")
    assert len([path for path in (shown / "references").glob("*.png") if "mask" not in path.name]) == 4
    manifest = json.loads((shown / "concept/concept.json").read_text())
    assert (manifest["name"], manifest["method"]) == ("rufus", "dreambooth-lora")
    page = Image.open(shown / "sheet.png")
    assert page.width > 6 * 256  # four references and two scenes side by side


def test_each_scene_is_of_the_learned_toy_and_replays(shown, base_folder, tmp_path, capsys):
    from thisness.concept import Concept

    paths = sorted((shown / "scenes").glob("*.png"))
    records = [read_record(path) for path in paths]
    assert [record["prompt"] for record in records] == new_scenes(0)[:2]
    assert {record["concepts"]["subject"]["hash"] for record in records} == {Concept.load(shown / "concept").hash}
    words = ["inspect", paths[0], "--replay", tmp_path, "--base", base_folder, "--concept", shown / "concept"]
    assert cli.run([str(word) for word in words]) == 0
    assert "the same, bit for bit" in capsys.readouterr().out


def test_a_second_call_makes_nothing_anew_but_the_sheet(shown, base_folder, capsys):
    kept = [path for part in ("concept", "scenes") for path in (shown / part).iterdir()]
    before = {path: path.stat().st_mtime_ns for path in kept}
    assert cli.run(["demo", "--quick", "--base", str(base_folder), "--out", str(shown)]) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == before
    assert capsys.readouterr().out == f"{shown / 'sheet.png'}\n"


def test_a_damaged_or_foreign_scene_is_drawn_again(shown, base_folder):
    first, second = sorted((shown / "scenes").glob("*.png"))
    pixels = Image.open(first).tobytes(), Image.open(second).tobytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(b"\x89PNG\r\n\x1a\n")
    assert cli.run(["demo", "--quick", "--base", str(base_folder), "--out", str(shown)]) == 0
    assert (Image.open(first).tobytes(), Image.open(second).tobytes()) == pixels


@pytest.mark.parametrize("index", range(20))
def test_the_scenes_are_new(index):
    """No sentence is a scene that the reference pictures show."""
    sentences = new_scenes(index)[:SCENES]
    assert len(set(sentences)) == SCENES
    for scene in reference_scenes(index):
        pose = "" if scene.subject.pose == "upright" else scene.subject.pose
        same = [s for s in sentences if pose in s and any(s.endswith(place) for place in PLACES[scene.background])]
        others = [s for s in same if not pose and ("tilted" in s or "upside down" in s)]
        assert same == others


def test_an_unknown_toy_names_the_nearest(refused):
    assert "did you mean 'rufus'?" in refused("demo", "--toy", "rufsu")
