"""`thisness sweep`. Oracle: a toy measure computed from the kept pictures; the words of refusals."""

import json

import numpy as np
import pytest

from thisness import cli
from thisness.cli import sweep as command
from thisness.images import load_image


class Toy:
    def __init__(self, name, channel):
        self.name, self.identity, self.channel = name, {"channel": channel}, channel

    def score(self, items):
        return [float(np.asarray(item.picture.image)[..., self.channel].mean()) for item in items]


def words(base_folder, photos, out, *more):
    return ["sweep", "a {subject} sleeping", "--subject", str(photos), "--noun", "dog", "--base", str(base_folder),
            "--steps", "1", "--seeds", "0-1", "--out", str(out), *more]  # fmt: skip


def test_a_curve_with_its_numbers(base_folder, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "measures", lambda names, preset, device: [Toy(names[0], 0), Toy(names[1], 1)])
    out = tmp_path / "out"
    assert cli.run(words(base_folder, photos, out, "--over", "guidance=1,3")) == 0
    data = json.loads((out / "sweep.json").read_text())
    kept = [np.asarray(load_image(path))[..., 1].mean() for path in (out / "pictures").iterdir()]
    assert len(kept) == 4
    assert np.mean([each["y"]["mean"] for each in data["curve"]]) == pytest.approx(np.mean(kept))
    assert load_image(out / "sweep.png").width > 400
    said = capsys.readouterr().out
    assert said.startswith("guidance=1") and f"dino-i {data['curve'][0]['y']['mean']:.3f}" in said


@pytest.mark.parametrize(
    "more, said",
    [
        (["--over", "guidence=1,2"], "did you mean 'guidance'"),
        (["--over", "guidance=1"], "2 to 24"),
        (["--over", "guidance=1,2", "--preset", "thisnes"], "did you mean 'thisness'"),
        (["--over", "guidance=1,2", "--x", "clip-tt"], "clip-tt"),
        (["--over", "guidance=1,2", "--noun", ""], "--noun is missing"),
        ([], "--over"),
    ],
)
def test_refusals(refused, more, said, base_folder, photos, tmp_path):
    assert said in refused(*words(base_folder, photos, tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()
