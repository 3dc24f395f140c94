"""What finds the subject in made pictures, by name and in a run. Oracles: masks that are chosen; the refusals."""

import numpy as np
import pytest
from PIL import Image

from thisness.errors import UserError
from thisness.evaluation import metrics
from thisness.evaluation.benchmarks import load_benchmark
from thisness.evaluation.items import Benchmark, BenchSubject, Case
from thisness.evaluation.jobs import Score, Setup
from thisness.evaluation.metrics import open_masker
from thisness.evaluation.plan import Row
from thisness.evaluation.scoring import Scorer


def test_none_is_none_and_a_slip_of_the_pen_is_told():
    assert open_masker("none") is None and open_masker("") is None
    with pytest.raises(UserError, match="did you mean 'playroom'"):
        open_masker("playrom")
    with pytest.raises(UserError, match="name a folder, or a hub id"):
        open_masker("./nowhere/at-all")


class LeftHalf:
    identity = {"masker": "left half"}

    def __call__(self, image, noun):
        assert noun == "dog"
        mask = np.zeros((image.height, image.width), np.float32)
        mask[:, : image.width // 2] = 1
        return mask


def test_a_run_gives_its_masker_to_its_metrics(tmp_path, monkeypatch):
    """The silhouette of the reference is its left half: the same as the made one's, or none without a masker."""
    for name in ("dog", "dog_mask"):
        pixels = np.zeros((16, 16), np.uint8)
        pixels[:, :8] = 255
        Image.fromarray(pixels).convert("L" if name == "dog_mask" else "RGB").save(tmp_path / f"{name}.png")
    subject = BenchSubject("rex", "dog", (tmp_path / "dog.png",), (tmp_path / "dog_mask.png",))
    cases = (Case("c", (("subject", "rex"),), "a {subject}"),)
    asked = []
    monkeypatch.setattr(
        metrics, "open_masker", lambda name, device: asked.append(name) or (LeftHalf() if name else None)
    )
    (tmp_path / "images").mkdir()
    Image.new("RGB", (16, 16), "red").save(tmp_path / "images" / "a.png")
    row = Row("a", "picture", "base", "rex", "c", "", 0, "a {subject}", "a dog", (("subject", "rex"),), (0,))
    values = {}
    for masker in ("", "left"):
        setup = Setup("tiny", "", "cpu", "float32", 1, tmp_path, Benchmark("b", (subject,), cases, (0,)), {},
                      metrics=("copy-pose:by=silhouette",), masker=masker)  # fmt: skip
        scorer = Scorer(setup, lambda name: subject.load())
        said = scorer.score(Score((row,), ("copy-pose:by=silhouette",)))
        assert not said["problems"]
        values[masker] = said["values"]["copy-pose:by=silhouette"]
    assert values == {"": [None], "left": [1.0]} and asked == ["", "left"]


def test_the_playroom_brings_its_own(tmp_path):
    assert load_benchmark("playroom", tmp_path, "smoke").masker == "playroom"
    assert Benchmark("mine", (), (), ()).masker == ""
