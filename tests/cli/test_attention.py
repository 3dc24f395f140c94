"""`thisness attention`. Oracle: the pictures of `thisness generate`; input that must be refused in one line."""

import json

import pytest
from PIL import Image

from thisness import cli

QUICK = ("--steps", "2", "--guidance", "3")


def test_maps_of_a_concept_and_the_same_pictures_as_generate(base_folder, concept_folder, tmp_path):
    same = ["--base", str(base_folder), "--concept", str(concept_folder), "--seeds", "5", *QUICK]
    sentence = "a {subject} on the beach"
    assert cli.run(["attention", sentence, *same, "--words", "beach,{subject}", "--out", str(tmp_path / "a")]) == 0
    assert cli.run(["generate", sentence, *same, "--out", str(tmp_path / "g")]) == 0
    seen, made = (Image.open(tmp_path / path / "000-seed-5.png") for path in ("a/pictures", "g"))
    assert seen.tobytes() == made.tobytes()
    numbers = json.loads((tmp_path / "a" / "attention.json").read_text())
    assert [each["word"] for each in numbers["words"]][0] == "beach" and len(numbers["words"]) == 2
    assert numbers["pictures"][0]["seed"] == 5 and numbers["steps"] == {"first": 0, "last": 1, "of": 2}
    assert (tmp_path / "a" / "attention.png").is_file()


@pytest.mark.parametrize(
    "words, said",
    [
        (["--noun", "dog", "--words", "beech"], "did you mean 'beach'"),
        (["--noun", "dog", "--during", "5-2"], "--during"),
        (["--noun", "dog", "--during", "1-2", "--steps", "2"], "0 to 1"),
        (["--noun", "dog", "--layers", "x"], "--layers"),
        (["--noun", "dog", "--resolution", "7"], "resolution 7"),
        (["--noun", "dog", "--concept", "somewhere"], "leave out"),
        ([], "--noun dog"),
    ],
)
def test_what_does_not_fit_is_refused(refused, base_folder, words, said):
    assert said in refused("attention", "a {subject} on the beach", "--base", base_folder, *words)


def test_a_mask_of_another_size_is_refused(refused, base_folder, tmp_path):
    Image.new("L", (20, 18), 255).save(tmp_path / "mask.png")
    words = ["--base", base_folder, "--noun", "dog", "--mask", tmp_path / "mask.png", *QUICK]
    assert "20x18 but the picture is 16x16" in refused("attention", "a {subject} on the beach", *words)


def test_a_file_in_the_way_is_refused(refused, tmp_path):
    (tmp_path / "x").write_text("x")
    assert "is a file" in refused("attention", "a dog", "--out", tmp_path / "x")
