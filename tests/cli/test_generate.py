"""`thisness generate`. Oracle: the stock diffusers pipeline's picture from the same folder; the words of refusals."""

import json
from dataclasses import asdict, dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from thisness import cli
from thisness.adapters import AdapterHandler
from thisness.concept import _HANDLERS, Concept
from thisness.images import read_record
from thisness.methods import METHODS
from thisness.methods.zero_shot import ZeroShotMethod
from thisness.prompt import placeholder_tokens

QUICK = ("--steps", "2", "--guidance", "3")


def test_pictures_are_those_of_the_stock_pipeline(base_folder, stock_pipeline, tmp_path, capsys):
    words = ["generate", "a photo of a dog", "--base", str(base_folder), "--seeds", "3,5", *QUICK, "--batch-size", "1"]
    assert cli.run([*words, "--out", str(tmp_path)]) == 0
    names = ["000-seed-3.png", "001-seed-5.png", "record.json", "sheet.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for name, seed in zip(names, (3, 5), strict=False):
        stock = stock_pipeline(
            "a photo of a dog",
            num_inference_steps=2,
            guidance_scale=3.0,
            height=16,
            width=16,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]
        assert np.array_equal(np.asarray(stock), np.asarray(Image.open(tmp_path / name)))
    assert capsys.readouterr().out.splitlines()[-1].endswith("sheet.png")


def test_the_record_has_what_was_typed(base_folder, tmp_path):
    words = [
        "generate",
        "a cat",
        "--base",
        str(base_folder),
        "--seeds",
        "7",
        *QUICK,
        "--negative",
        "hat",
        "--eta",
        "0.5",
    ]
    assert cli.run([*words, "--scheduler", "ddim", "--out", str(tmp_path)]) == 0
    record = read_record(tmp_path / "000-seed-7.png")
    sampling = record["recipe"]["sampling"]
    assert (record["prompt"], record["negative"], record["seeds"]) == ("a cat", "hat", [7])
    assert (sampling["steps"], sampling["guidance"], sampling["eta"], sampling["scheduler"]) == (2, 3.0, 0.5, "ddim")


def test_a_concept_takes_the_placeholder(base_folder, concept_folder, tmp_path):
    from thisness.concept import Concept

    words = ["generate", "a photo of a {subject}", "--base", str(base_folder), "--concept", str(concept_folder), *QUICK]
    assert cli.run([*words, "--seeds", "0", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "record.json").read_text())
    learned = Concept.load(concept_folder)
    assert record["sentence"] == f"a photo of a {learned.word.text}"
    assert record["concepts"]["subject"]["hash"] == learned.hash


def test_named_concepts_go_to_their_placeholders(base_folder, photos, concept_folder, tmp_path):
    mug = tmp_path / "mug"
    learn = ["learn", "textual-inversion", str(photos), "--noun", "cat", "--name", "mug", "--base", str(base_folder)]
    assert cli.run([*learn, "--steps", "1", "--out", str(mug)]) == 0
    words = [
        "generate",
        "a {rex} with a {mug}",
        "--base",
        str(base_folder),
        *QUICK,
        "--seeds",
        "0",
        "--out",
        str(tmp_path),
    ]
    assert cli.run([*words, "--concept", f"rex={concept_folder}", "--concept", f"mug={mug}"]) == 0
    record = json.loads((tmp_path / "record.json").read_text())
    assert {slot: entry["name"] for slot, entry in record["concepts"].items()} == {"rex": "rex", "mug": "mug"}


def test_what_is_kept_is_said_in_the_sentence_and_replays(base_folder, photos, concept_folder, tmp_path, refused):
    """Learned without masks, mappers and image encoder, in one step."""
    less = ("steps=1", "prior_pictures=0", "gamma=0", "attention_weight=0", "mappers=free")
    learn = ["learn", "detex", str(photos), "--noun", "dog", "--base", str(base_folder), "--out", str(tmp_path / "c")]
    assert cli.run([*learn, *(word for pair in less for word in ("--set", pair))]) == 0
    words = [
        "generate",
        "a {subject}",
        "--base",
        str(base_folder),
        *QUICK,
        "--seeds",
        "0",
        "--out",
        str(tmp_path / "o"),
    ]
    words += ["--concept", str(tmp_path / "c")]
    assert cli.run([*words, "--keep", "pose:2", "--keep", "background:0"]) == 0
    (picture,) = (tmp_path / "o").glob("*-seed-0.png")
    assert read_record(picture)["sentence"] == "a <rex> dog <rex-p-2> in the <rex-b-0>"
    again = ["inspect", str(picture), "--replay", str(tmp_path / "again"), "--base", str(base_folder)]
    assert cli.run([*again, "--concept", str(tmp_path / "c")]) == 0
    assert "write ATTRIBUTE:PICTURE" in refused(*words, "--keep", "pose")
    assert "its pictures are 0 to 3" in refused(*words, "--keep", "pose:4")
    assert "learns no words for pose" in refused(*words[:-1], str(concept_folder), "--keep", "pose:0")


def test_a_subject_gives_its_noun_and_the_references(base_folder, photos, tmp_path):
    words = ["generate", "a {subject}", "--base", str(base_folder), *QUICK, "--seeds", "0"]
    assert cli.run([*words, "--subject", str(photos), "--noun", "cat", "--out", str(tmp_path / "with")]) == 0
    assert cli.run(["generate", "a cat", *words[2:], "--out", str(tmp_path / "without")]) == 0
    assert json.loads((tmp_path / "with/record.json").read_text())["sentence"] == "a cat"
    with_references, without = (Image.open(tmp_path / name / "sheet.png") for name in ("with", "without"))
    assert with_references.width > without.width


@pytest.mark.parametrize(
    "words, says",
    [
        (["a dog", "--adjust", "teaa:alpha=0.2"], "unknown adjustment 'teaa'"),
        (["a dog", "--adjust", "tea:alpha"], "is not of the form key=value"),
        (["a dog", "--attach", "swop"], "unknown attachment 'swop'"),
        (["a dog", "--scheduler", "eular"], "did you mean 'euler'?"),
        (["a {subject}"], "subject"),
        (["a dog " * 40], "token"),
        (["   "], "empty"),
        (["a dog", "--height", "17"], "17"),
        (["a dog", "--device", "warp"], "--device 'warp'"),
        (["a dog", "--device", "cuda:99"], "cuda:99"),
        (["a dog", "--dtype", "int8"], "expected one of float32"),
        (["a dog", "--subject", "photos"], "--noun is missing"),
        (["a dog", "--concept", "a", "--concept", "b"], "needs the name of its placeholder"),
        (["a {rex}", "--concept", "rex=a", "--concept", "rex=b"], "given twice"),
        (["a {subject}", "--concept", "nowhere"], "nowhere"),
        (["a dog", "--steps", "0"], "--steps"),
        (["a dog", "--seeds", "x"], "--seeds"),
    ],
)
def test_refusals_are_one_line(refused, base_folder, tmp_path, words, says):
    assert says in refused("generate", *words, "--base", base_folder, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_base_names_the_nearest(refused):
    assert "did you mean 'playroom-sd'?" in refused("generate", "a dog", "--base", "playrom-sd")


def test_a_file_where_the_folder_should_be(refused, tmp_path):
    (tmp_path / "out").write_text("")
    assert "is a file" in refused("generate", "a dog", "--out", tmp_path / "out")


def test_a_pickle_is_no_base(refused, tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x04")
    said = refused("generate", "a dog", "--base", tmp_path / "model.ckpt")
    assert "diffusers folder" in said


@dataclass(frozen=True)
class LookerSettings:
    weights: str = ""
    brightness: float = 1.0


class Looker(ZeroShotMethod):
    """Reads the mean colour of a picture into a word's row."""

    Settings = LookerSettings
    handler = AdapterHandler()

    def read(self, subject, base, settings):
        mean = float(np.asarray(subject.images[0]).mean()) / 255 * settings.brightness
        row = torch.sin(mean * 10 * torch.arange(float(base.text_encoder.config.hidden_size)))[None]
        tokens = placeholder_tokens(subject.name, 1)
        return Concept.create(
            "looker", subject, base, word=tokens[0], tokens=tokens,
            tensors={"embeddings.safetensors": {"text_encoder": row}}, settings=asdict(settings),
        )  # fmt: skip


@pytest.fixture
def looker(monkeypatch):
    monkeypatch.setitem(METHODS, "looker", Looker)
    monkeypatch.setitem(_HANDLERS, "looker", Looker.handler)
    monkeypatch.setattr(Looker, "name", "looker", raising=False)


def test_a_picture_is_read_without_learning_and_made_again(looker, base_folder, tmp_path, capsys):
    """`--method`: what was read is kept beside the pictures, and the line that `inspect` proposes makes them again."""
    photo = tmp_path / "rex.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)).save(photo)
    words = ["generate", "a {subject}", "--subject", str(photo), "--noun", "dog", "--base", str(base_folder), *QUICK]
    pixels = []
    for name, method in (("dark", "looker:brightness=0.1"), ("again", "looker:brightness=0.1"), ("light", "looker")):
        assert cli.run([*words, "--seeds", "0", "--method", method, "--out", str(tmp_path / name)]) == 0
        pixels.append(np.asarray(Image.open(tmp_path / name / "000-seed-0.png")))
    assert np.array_equal(pixels[0], pixels[1]) and not np.array_equal(pixels[0], pixels[2])
    record = read_record(tmp_path / "dark" / "000-seed-0.png")
    assert record["concepts"]["subject"]["method"] == "looker" and str(tmp_path) not in json.dumps(record)
    capsys.readouterr()
    assert cli.run(["inspect", str(tmp_path / "dark" / "000-seed-0.png")]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert f"--concept {tmp_path / 'dark' / 'concept'}" in line and "--subject" not in line
    replay = ["inspect", str(tmp_path / "dark" / "000-seed-0.png"), "--replay", str(tmp_path / "replayed")]
    assert cli.run([*replay, "--base", str(base_folder), "--concept", str(tmp_path / "dark" / "concept")]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "looker"], "--method looker reads pictures: say which"),
        (["--method", "looker", "--subject", "PHOTO"], "--noun is missing"),
        (["--method", "lookr", "--subject", "PHOTO", "--noun", "dog"], "no method 'lookr'"),
        (["--method", "looker:dark=1", "--subject", "PHOTO", "--noun", "dog"], "no setting 'dark'"),
        (["--method", "textual-inversion", "--subject", "PHOTO", "--noun", "dog"], "has to learn the subject first"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(words, said, looker, base_folder, tmp_path, capsys):
    photo = tmp_path / "rex.png"
    Image.new("RGB", (16, 16), "red").save(photo)
    words = [str(photo) if word == "PHOTO" else word for word in words]
    asked = ["generate", "a {subject}", "--base", str(base_folder), *words, *QUICK, "--out", str(tmp_path / "out")]
    assert cli.run(asked) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert said in told[-1] and not (tmp_path / "out").exists()
