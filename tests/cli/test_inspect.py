"""`thisness inspect`. Oracle: what the commands wrote just before; pixels of a replay; files damaged on purpose."""

import json
import shutil

import pytest
from PIL import Image

from thisness import cli
from thisness.images import read_record, save_png

QUICK = ("--steps", "2", "--guidance", "3")


@pytest.fixture(scope="module")
def made(base_folder, concept_folder, tmp_path_factory):
    """Three pictures of the concept, in batches of two."""
    folder = tmp_path_factory.mktemp("made")
    words = [
        "generate",
        "a photo of a {subject}",
        "--base",
        str(base_folder),
        "--concept",
        str(concept_folder),
        "--seeds",
        "4-6",
    ]
    assert cli.run([*words, *QUICK, "--batch-size", "2", "--out", str(folder)]) == 0
    return folder


def said(capsys, *words):
    capsys.readouterr()
    assert cli.run(["inspect", *map(str, words)]) == 0
    return capsys.readouterr().out


def test_a_picture(made, capsys):
    text = said(capsys, made / "001-seed-5.png")
    assert "a picture made by thisness" in text and "seed: 5\n" in text and "a photo of a {subject}" in text
    assert "steps 2" in text and "rex" in text and "--replay" in text


def test_a_folder_of_pictures_and_its_record(made, capsys):
    for path in (made, made / "record.json"):
        assert "the record of 3 pictures" in said(capsys, path) and "seeds: 4, 5, 6" in said(capsys, path)


def test_a_concept(concept_folder, base_folder, capsys):
    text = said(capsys, concept_folder)
    assert "is a concept, whole and undamaged" in text
    assert "rex, a dog" in text and "dreambooth-lora" in text and "steps 2" in text
    assert f"--concept {concept_folder}" in text


def test_a_base(base_folder, capsys):
    text = said(capsys, base_folder)
    assert "a base of the family sd" in text and "unet: UNet2DConditionModel" in text


def test_a_file_of_weights(base_folder, stock_pipeline, capsys):
    (file,) = (base_folder / "unet").glob("*.safetensors")
    text = said(capsys, file)
    parameters = sum(parameter.numel() for parameter in stock_pipeline.unet.parameters())
    assert f"{parameters:,} values" in text and "conv_in.weight: (8, 4, 3, 3) float32" in text


def test_a_picture_from_elsewhere(tmp_path, capsys):
    Image.new("RGB", (20, 18)).save(tmp_path / "x.png")
    assert "20x18 pixels without a record" in said(capsys, tmp_path / "x.png")


@pytest.mark.parametrize("number, seed", [(0, 4), (1, 5), (2, 6)])
def test_replay_makes_the_same_pixels(made, base_folder, concept_folder, tmp_path, capsys, number, seed):
    path = made / f"{number:03d}-seed-{seed}.png"
    text = said(capsys, path, "--replay", tmp_path, "--base", base_folder, "--concept", concept_folder)
    assert "the same, bit for bit" in text
    (again,) = tmp_path.glob(f"*-seed-{seed}.png")
    assert Image.open(again).tobytes() == Image.open(path).tobytes()


def test_replay_of_a_record_makes_all(made, base_folder, concept_folder, tmp_path, capsys):
    said(capsys, made, "--replay", tmp_path, "--base", base_folder, "--concept", concept_folder)
    assert len(list(tmp_path.glob("*-seed-*.png"))) == 3


def test_a_replay_that_comes_out_otherwise_exits_with_1(made, base_folder, concept_folder, tmp_path, capsys):
    record = read_record(made / "000-seed-4.png")
    record["images"][0]["sha256"] = "0" * 64
    save_png(Image.open(made / "000-seed-4.png"), tmp_path / "x.png", record)
    words = [
        "inspect",
        tmp_path / "x.png",
        "--replay",
        tmp_path / "again",
        "--base",
        base_folder,
        "--concept",
        concept_folder,
    ]
    assert cli.run([str(word) for word in words]) == 1
    assert "not bit for bit" in capsys.readouterr().err


def test_what_a_replay_needs_is_said(refused, made, base_folder, tmp_path):
    path = made / "000-seed-4.png"
    assert "--base" in refused("inspect", path, "--replay", tmp_path)
    assert "--concept" in refused("inspect", path, "--replay", tmp_path, "--base", base_folder)


def test_a_damaged_concept_is_refused(refused, concept_folder, tmp_path):
    copy = tmp_path / "rex"
    shutil.copytree(concept_folder, copy)
    file = next(copy.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    assert file.name in refused("inspect", copy)


@pytest.mark.parametrize("name", ["model.ckpt", "learned.bin", "x.pt"])
def test_pickles_are_refused_with_the_way_out(refused, tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04\x95")
    assert "safetensors" in refused("inspect", tmp_path / name)


def test_what_is_none_of_ours(refused, tmp_path):
    assert "not there" in refused("inspect", tmp_path / "none")
    assert "is none of" in refused("inspect", tmp_path)
    (tmp_path / "x.json").write_text("[]")
    assert "no record" in refused("inspect", tmp_path / "x.json")
    Image.new("RGB", (20, 18)).save(tmp_path / "x.png")
    assert "no record" in refused("inspect", tmp_path / "x.png", "--replay", tmp_path / "again")


def test_a_record_cannot_write_control_sequences_to_the_terminal(made, tmp_path, capsys):
    record = json.loads((made / "record.json").read_text())
    record["base"]["name"] = "\x1b[2Jtiny\u202e"
    (tmp_path / "x.json").write_text(json.dumps(record))
    text = said(capsys, tmp_path / "x.json")
    assert "?[2Jtiny?" in text and "\x1b" not in text and "\u202e" not in text


def test_make_it_again_names_where_the_very_concept_lies(made, concept_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, tmp_path / "pictures" / "out")
    picture = tmp_path / "pictures" / "out" / "001-seed-5.png"
    assert "--concept FOLDER-OF-REX" in said(capsys, picture)
    (tmp_path / "concepts" / "rex").mkdir(parents=True)
    (tmp_path / "concepts" / "rex" / "concept.json").write_text("{}")  # of that name, but not the one
    assert "--concept FOLDER-OF-REX" in said(capsys, picture)
    shutil.copytree(concept_folder, tmp_path / "pictures" / "other-name")
    assert f"--concept {tmp_path / 'pictures' / 'other-name'}" in said(capsys, picture)
