"""Datasets on disk: resumable, refused when they are of another kind, equal to a direct render."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from thisness.errors import ConfigurationError, UserError
from thisness.playroom import data as module
from thisness.playroom.data import dataset
from thisness.playroom.render import render
from thisness.playroom.sheets import contact_sheet, write_dataset
from thisness.playroom.subjects import write_subject
from thisness.playroom.world import random_scene


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of four pictures, rendered in this process without a compiler."""
    from concurrent.futures import ThreadPoolExecutor

    monkeypatch.setattr(module, "BLOCK", 4)
    monkeypatch.setattr(module, "ProcessPoolExecutor", lambda n, **kw: ThreadPoolExecutor(1))
    monkeypatch.setattr(module, "render", lambda scenes, size, **kw: render(scenes, size, compiled=False))


def test_rows_equal_a_direct_render_and_a_stopped_dataset_goes_on(tmp_path: Path, in_process: None) -> None:
    first = dataset(tmp_path / "d", 4, size=32)
    kept = first.images[:4].copy()
    state = json.loads((tmp_path / "d" / "state.json").read_text())
    assert state["done"] == [0]
    more = dataset(tmp_path / "d", 9, size=32)
    assert len(more) == 12 and np.array_equal(more.images[:4], kept)
    direct = render([random_scene(i) for i in range(12)], 32)
    assert np.array_equal(more.images, direct.images.numpy()) and np.array_equal(more.masks, direct.masks.numpy())
    pictures = more.pictures([3, 7])
    assert torch.equal(((pictures + 1) * 127.5).round().to(torch.uint8), direct.images[[3, 7]])


def test_a_block_that_is_missing_is_rendered_again(tmp_path: Path, in_process: None) -> None:
    whole = dataset(tmp_path / "d", 8, size=32).images.copy()
    state_file = tmp_path / "d" / "state.json"
    state = json.loads(state_file.read_text())
    state["done"] = [1]
    state_file.write_text(json.dumps(state))
    with (tmp_path / "d" / "images.u8").open("r+b") as file:
        file.write(b"\0" * 4 * 3 * 32 * 32)
    assert np.array_equal(dataset(tmp_path / "d", 8, size=32).images, whole)


def test_another_kind_of_pictures_is_refused(tmp_path: Path, in_process: None) -> None:
    dataset(tmp_path / "d", 4, size=32)
    with pytest.raises(ConfigurationError, match="another folder"):
        dataset(tmp_path / "d", 4, size=48)


def test_subject_folder_has_pictures_masks_and_truth(tmp_path: Path) -> None:
    folder = write_subject(tmp_path / "rufus", 0, size=64)
    truth = json.loads((folder / "truth.json").read_text())
    assert truth["noun"] == "dog" and len(truth["scenes"]) == 4
    for i in range(4):
        with Image.open(folder / f"{i:02d}.png") as picture, Image.open(folder / f"{i:02d}_mask.png") as mask:
            assert picture.mode == "RGB" and picture.size == mask.size == (64, 64)
            assert 0.05 < np.asarray(mask).mean() / 255 < 0.6


def test_dataset_folder_has_captions_and_truth(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", count=3, seed=40, size=32)
    lines = [json.loads(line) for line in (tmp_path / "set" / "metadata.jsonl").read_text().splitlines()]
    assert [line["file_name"] for line in lines] == ["00000040.png", "00000041.png", "00000042.png"]
    for line in lines:
        assert line["truth"]["toys"][0]["identity"]["noun"] in line["text"]
        assert (tmp_path / "set" / line["file_name"]).exists()


def test_unknown_sheet_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="poses"):
        contact_sheet("posse", tmp_path / "x.png")
