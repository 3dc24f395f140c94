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


def test_that_another_concept_is_replaced_is_said_before(base_folder, photos, tmp_path, capsys):
    words = call(base_folder, photos, tmp_path / "rex", "--steps", "1")
    assert cli.run(words) == 0
    assert cli.run(words) == 0
    assert "note:" not in capsys.readouterr().err
    assert cli.run([*words, "--lr", "0.5"]) == 0
    note = f"note: {tmp_path / 'rex'} holds rex by textual-inversion, learned otherwise: it is replaced"
    assert note in capsys.readouterr().err
    assert Concept.load(tmp_path / "rex").settings["lr"] == 0.5


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
        (["--steps", "5", "--set", "steps=6"], "--steps 5 and --set steps=6: say it once"),
        (["--set", "weight_decay=-1"], "weight_decay must not be negative"),
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


def notes_of(capsys) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]


def copied(photos, folder, *names):
    """Some of the pictures under other names."""
    folder.mkdir()
    for number, name in enumerate(names):
        (folder / f"{number}.png").write_bytes((photos / name).read_bytes())
    return folder


def test_good_pictures_need_no_note(base_folder, photos, tmp_path, capsys):
    assert cli.run(call(base_folder, photos, tmp_path / "rex", "--steps", "1")) == 0
    assert notes_of(capsys) == []


def test_one_picture_is_enough_and_what_suffers_is_said(base_folder, photos, tmp_path, capsys):
    assert cli.run(call(base_folder, copied(photos, tmp_path / "one", "0.png"), tmp_path / "x", "--steps", "1")) == 0
    (note,) = notes_of(capsys)
    assert "1 picture: its pose, light and background are learned with the thing" in note


def test_copies_among_the_pictures_are_told(base_folder, photos, tmp_path, capsys):
    pictures = copied(photos, tmp_path / "twice", "0.png", "1.png", "0.png")
    assert cli.run(call(base_folder, pictures, tmp_path / "x", "--steps", "1")) == 0
    (note,) = notes_of(capsys)
    assert "0.png = 2.png: the same picture twice" in note


def test_a_noun_of_several_tokens_is_told(base_folder, photos, tmp_path, capsys):
    words = call(base_folder, photos, tmp_path / "x", "--steps", "1")
    words[words.index("dog")] = "dax"
    assert cli.run(words) == 0
    (note,) = notes_of(capsys)
    assert "has no token for the noun 'dax' and reads 'd' 'a' 'x'" in note
    assert "starts from the last one, 'x' (--set start=WORD)" in note
    words[words.index("dax")] = "red hat"
    assert cli.run([*words, "--fresh"]) == 0
    assert "the noun 'red hat' is 2 tokens; the learned word starts from the last one, 'hat'" in notes_of(capsys)[0]
    assert cli.run([*words, "--fresh", "--set", "start=dog"]) == 0
    assert notes_of(capsys) == []


def test_an_article_before_the_noun_is_told(base_folder, photos, tmp_path, capsys):
    words = call(base_folder, photos, tmp_path / "x", "--steps", "1")
    words[words.index("dog")] = "A dog"
    assert cli.run(words) == 0
    (note,) = notes_of(capsys)
    assert "the noun 'A dog' begins with 'A'" in note and "(--noun 'dog')" in note


def test_no_pictures_and_names_that_would_be_one_word(refused, base_folder, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no PNG, JPEG or WebP picture is in it" in refused(*call(base_folder, tmp_path / "empty", tmp_path / "x"))
    said = refused(*call(base_folder, photos, tmp_path / "x", "--name", "V"))
    assert "a-z" in said and "'v'" in said  # to CLIP <V> and <v> are one word
    assert not (tmp_path / "x").exists()


def test_a_run_cut_short_is_not_gone_on_with_under_other_settings(base_folder, photos, tmp_path, refused):
    from thisness.bases import load_base
    from thisness.methods import Stopped, learn
    from thisness.subject import Subject

    subject, base = Subject.from_folder(photos, noun="dog"), load_base(str(base_folder))
    given = {"steps": 3, "checkpoint_seconds": 0.0, "progress": False}
    with pytest.raises(Stopped):
        learn("textual-inversion", subject, base, folder=tmp_path / "x", stop_after=0.0, **given)
    said = refused(*call(base_folder, photos, tmp_path / "x", "--steps", "3", "--lr", "0.5"))
    assert "lr: 0.02 -> 0.5" in said and "use the old one to go on" in said


def test_curves_that_cannot_be_drawn_are_refused(base_folder, photos, tmp_path, refused):
    said = refused(*call(base_folder, photos, tmp_path / "x", "--tracker", "wandb"))
    assert "auto, tensorboard, off" in said
