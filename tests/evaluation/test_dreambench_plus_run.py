"""AlignGen on a folder of DreamBench++'s layout, judged over a chat endpoint. Oracle: what the endpoint was asked and
said, beside the values and the arithmetic of the run."""

import json
from statistics import fmean

import pytest
import tiny_flux
import torch
from evaluation.judge_server import fair, serving
from PIL import Image

from thisness import cli
from thisness.bases import Base
from thisness.evaluation.results import read_run
from thisness.methods.aligngen_training import Trainables, TrainingConfig, save_weights
from thisness.methods.redux import open_redux

THINGS = {"animal/00": "cat", "object/11": "robot"}


@pytest.fixture
def server(monkeypatch):
    with serving(monkeypatch) as running:
        yield running


@pytest.fixture
def copy(tmp_path):
    """A user's copy: two subjects with nine sentences each."""
    root = tmp_path / "copy"
    for number, (key, noun) in enumerate(THINGS.items()):
        for kind in ("images", "captions"):
            (root / kind / key).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (60 + 120 * number, 90, 30)).save(root / "images" / f"{key}.jpg")
        sentences = [f"a {noun} in scene {number}" for number in range(9)]
        (root / "captions" / f"{key}.txt").write_text("\n".join([noun, *sentences]) + "\n")
    return root


@pytest.fixture
def made(tmp_path):
    """A base in a folder, and weights for it."""
    pipe = tiny_flux.pipeline()
    pipe.save_pretrained(tmp_path / "base")
    base = Base.from_pipeline(pipe, name="tiny-flux")
    redux = tiny_flux.redux_folder(tmp_path / "redux")
    trained = Trainables.fresh(base, rank=4, dem={"inner": 32, "heads": 4, "hidden": 64})
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    more = {"redux": str(redux), "redux_signature": open_redux(str(redux)).signature}
    save_weights(tmp_path / "align", base, trained, TrainingConfig(), **more)
    return tmp_path / "base", tmp_path / "align"


def test_from_the_copy_to_the_judged_table(server, copy, made, tmp_path, capsys):
    base, weights = made
    words = [
        "bench", "run", "dreambench++", "--folder", str(copy), "--base", str(base), "--out", str(tmp_path / "run"),
        "--recipes", f'alone=base;aligngen=aligngen:weights="{weights}"', "--sampling", "steps=1",
        "--metrics", "dino-i:encoder=playroom-identity", "--judge", "openai:passes=1",
    ]  # fmt: skip
    assert cli.run(words) == 0, capsys.readouterr().err
    run = read_run(tmp_path / "run")
    assert len(run.scored) == 2 * 2 * 9 and not any(row.failure for row in run.scored)
    assert len({row.image.read_bytes() for row in run.scored if row.recipe == "aligngen"}) == 18
    assert len(server.bodies) == 2 * 36, "concept and prompt, once each"
    asked = {
        column: [body for body in server.bodies if (len(body["messages"][2]["content"]) == 4) == (column == "cp")]
        for column in ("cp", "pf")
    }
    for column, bodies in asked.items():
        values = [row.values[f"openai:{column}"] for row in run.scored]
        assert fmean(values) == pytest.approx(fmean(fair(body) for body in bodies) / 4), column
    asked_before = len(server.bodies)
    assert cli.run(words) == 0 and len(server.bodies) == asked_before, "nothing is asked twice"
    assert cli.run(["bench", "report", str(tmp_path / "run"), "--out", str(tmp_path / "page")]) == 0
    said = json.loads(next((tmp_path / "page").glob("*.json")).read_text())
    table = {each["recipe"]: each["values"] for each in said["recipes"]}
    for label in ("alone", "aligngen"):
        values = [row.values["openai:cp"] for row in run.scored if row.recipe == label]
        assert table[label]["openai:cp"]["mean"] == pytest.approx(fmean(values))
