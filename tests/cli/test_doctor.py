"""`thisness doctor`. Oracle: folders of pictures that are made fit or unfit on purpose."""

import numpy as np
import pytest
from PIL import Image

from thisness import cli


@pytest.fixture
def photos(tmp_path):
    """Four different sharp pictures of noise, 128x128."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(4):
        pixels = np.random.default_rng(seed).integers(60, 200, (128, 128, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
    return folder


def test_a_fit_folder(photos, capsys):
    assert cli.run(["doctor", str(photos)]) == 0
    said = capsys.readouterr().out
    assert "4 pictures" in " ".join(said.split()) and "fit to learn from" in said and "torch" in said


def test_an_unfit_folder_exits_with_2_and_names_the_file(photos, capsys):
    (photos / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n cut short")
    assert cli.run(["doctor", str(photos)]) == 2
    captured = capsys.readouterr()
    assert "2.png" in "".join(captured.out.split()) and "not fit" in captured.err


def test_a_folder_that_is_not_there(tmp_path, capsys):
    assert cli.run(["doctor", str(tmp_path / "none")]) == 2
    assert "is not there" in " ".join(capsys.readouterr().out.split())


def test_a_warning_is_told_but_does_not_refuse(photos, capsys):
    for file in sorted(photos.iterdir())[1:]:
        file.unlink()
    assert cli.run(["doctor", str(photos)]) == 0
    assert "warning" in capsys.readouterr().out


def test_brackets_in_a_file_name_are_no_markup(photos, capsys):
    (photos / "0.png").rename(photos / "[red]0.png")
    for file in photos.iterdir():
        Image.open(file).resize((64, 64)).save(file)
    assert cli.run(["doctor", str(photos)]) == 0
    assert "[red]0.png" in "".join(capsys.readouterr().out.split())
