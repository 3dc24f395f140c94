"""`thisness learn`. Oracle: the concept's manifest against what was typed; what a second call leaves untouched."""

import json

import pytest

from thisness import cli
from thisness.concept import Concept


def call(base_folder, photos, folder, *more):
    return [
        "learn",
        "textual-inversion",
        str(photos),
        "--noun",
        "dog",
        "--base",
        str(base_folder),
        "--out",
        str(folder),
        *more,
    ]


def test_the_manifest_has_what_was_typed(base_folder, photos, tmp_path, capsys):
    words = call(base_folder, photos, tmp_path / "rex", "--name", "rexy", "--steps", "3", "--lr", "0.02", "--seed", "5")
    assert cli.run([*words, "--batch-size", "2", "--set", "vectors=3"]) == 0
    learned = Concept.load(tmp_path / "rex")
    settings = learned.manifest["settings"]
    assert (learned.name, learned.noun, learned.method) == ("rexy", "dog", "textual-inversion")
    assert [settings[key] for key in ("steps", "lr", "seed", "batch_size", "vectors")] == [3, 0.02, 5, 2, 3]
    assert len(learned.manifest["tokens"]) == 3
    said = capsys.readouterr().out
    assert str(tmp_path / "rex") in said and "thisness generate" in said


def test_a_second_call_does_nothing_and_fresh_learns_anew(base_folder, photos, tmp_path):
    words = call(base_folder, photos, tmp_path / "rex", "--steps", "2")
    assert cli.run(words) == 0
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "rex").iterdir()}
    assert cli.run(words) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "rex").iterdir()} == files
    assert cli.run([*words, "--fresh"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "rex").iterdir()} != files


def test_the_folder_has_the_concepts_name_by_default(base_folder, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["learn", "textual-inversion", str(photos), "--noun", "dog", "--base", str(base_folder), "--steps", "1"]
    assert cli.run(words) == 0
    assert Concept.load(tmp_path / "concepts/rex").name == "rex"


@pytest.mark.parametrize(
    "words, says",
    [
        (["--set", "stepz=3"], "did you mean 'steps'?"),
        (["--set", "steps"], "is not of the form key=value"),
        (["--set", "schedule=wavy", "--set", "flip=3"], "2 problems"),
        (["--preset", "huge"], "small"),
        (["--lr", "-1"], "lr"),
        (["--noun", ""], "--noun"),
        (["--name", "../rex"], "name"),
    ],
)
def test_refusals_are_one_line(refused, base_folder, photos, tmp_path, words, says):
    assert says in refused(*call(base_folder, photos, tmp_path / "rex", *words))
    assert not (tmp_path / "rex").exists()


def test_an_unknown_method_names_the_nearest(refused, base_folder, photos):
    said = refused("learn", "dreambooth-laro", photos, "--noun", "dog", "--base", base_folder)
    assert "did you mean 'dreambooth-lora'?" in said


def test_pictures_must_be_there(refused, base_folder, tmp_path):
    assert "photos" in refused("learn", "textual-inversion", "--noun", "dog", "--base", base_folder)
    assert "none" in refused("learn", "textual-inversion", tmp_path / "none", "--noun", "dog", "--base", base_folder)


def test_settings_are_listed_with_their_meaning(capsys):
    from thisness.methods import METHODS

    for name, method in METHODS.items():
        assert cli.run(["learn", name, "--settings"]) == 0
        said = capsys.readouterr().out
        assert all(f"  {key} = " in said for key in method.Settings.__dataclass_fields__)
        assert all(f"  {preset}: " in said for preset in method.presets)


def test_previews_are_kept_with_the_concept(base_folder, photos, tmp_path):
    words = call(base_folder, photos, tmp_path / "rex", "--steps", "2", "--preview-every", "2")
    assert cli.run(words) == 0
    assert list((tmp_path / "rex/previews").glob("*.png"))
    lines = (tmp_path / "rex/log.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 2
