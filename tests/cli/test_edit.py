"""Oracles: the source's own pixels; the words that are refused."""

import numpy as np
import pytest
from PIL import Image
from tiny_ezigen import random_adapter, write_weights

from thisness import cli
from thisness.bases import load_base


@pytest.fixture(scope="module")
def given(base_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("edit")
    draws = np.random.default_rng(0)
    Image.fromarray(draws.integers(0, 255, (30, 40, 3), np.uint8)).save(folder / "scene.png")
    mask = np.zeros((30, 40), np.uint8)
    mask[8:20, 20:32] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    (folder / "dog").mkdir()
    Image.fromarray(draws.integers(0, 255, (16, 16, 4), np.uint8) // 2 + 127).save(folder / "dog" / "dog.png")
    base = load_base(str(base_folder))
    weights = write_weights(folder / "weights", base, random_adapter(base))
    method = f"ezigen:weights={weights},min_loops=0,max_loops=0"
    return folder, ["--base", base_folder, "--method", method]


def test_a_scene_is_edited_and_what_was_read_serves_again(given, tmp_path):
    folder, words = given
    first = ["edit", folder / "scene.png", "--mask", folder / "mask.png", "--steps", "4", "--seeds", "3"]
    subject = ["--subject", folder / "dog" / "dog.png", "--noun", "dog"]
    assert cli.run([str(w) for w in [*first, *subject, *words, "--out", tmp_path / "a"]]) == 0
    made = np.asarray(Image.open(tmp_path / "a" / "000-seed-3.png"))
    scene, far = np.asarray(Image.open(folder / "scene.png")), np.zeros((30, 40), bool)
    far[:, :14] = True
    assert made.shape == scene.shape and np.array_equal(made[far], scene[far])
    assert np.abs(made[8:20, 20:32].astype(int) - scene[8:20, 20:32]).mean() > 5
    assert (tmp_path / "a" / "sheet.png").is_file()
    again = [*first, "--concept", tmp_path / "a" / "concept", "--base", words[1], "--out", tmp_path / "b"]
    assert cli.run([str(w) for w in again]) == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "b" / "000-seed-3.png")), made)


def test_bad_words_and_masks_are_one_line(given, refused, tmp_path):
    folder, words = given
    start = ["edit", folder / "scene.png"]
    subject = ["--subject", folder / "dog" / "dog.png", "--noun", "dog", *words]
    assert "--mask mask.png" in refused(*start, *subject)
    assert "--mask-model" in refused(*start, "--find", "cat", *subject)
    mask = ["--mask", folder / "mask.png"]
    assert "say what: --subject" in refused(*start, *mask)
    assert "--noun is missing" in refused(*start, *mask, "--subject", folder / "dog" / "dog.png")
    assert "editing is done by ezigen" in refused(*start, *mask, *subject[:4], "--method", "elite")
    for value, said in ((0, "the mask is empty"), (255, "the mask is full")):
        Image.fromarray(np.full((30, 40), value, np.uint8)).save(tmp_path / "m.png")
        assert said in refused(*start, "--mask", tmp_path / "m.png", *subject)
    Image.fromarray(np.full((16, 16), 255, np.uint8)).save(tmp_path / "m.png")
    assert "--resize-mask" in refused(*start, "--mask", tmp_path / "m.png", *subject)
