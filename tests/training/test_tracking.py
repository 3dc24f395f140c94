"""Curves for TensorBoard. Oracle: the log's own lines, over a stop and a resume."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import types

import pytest
from training import tiny_run

from thisness.errors import ConfigurationError
from thisness.training import tracking
from thisness.training.progress import Progress, memory_used


class Writer:
    """Stands in for TensorBoard's: a file named as it names them."""

    made = 0

    def __init__(self, log_dir: str, purge_step: int | None = None) -> None:
        import pathlib

        Writer.made += 1
        folder = pathlib.Path(log_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.file = (folder / f"events.out.tfevents.1700000000.myhost.42.{Writer.made}").open("w")
        self.file.write(json.dumps({"purge": purge_step}) + "\n")

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.file.write(json.dumps([step, name, value]) + "\n")

    def close(self) -> None:
        self.file.close()


@pytest.fixture
def tensorboard(monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))


def test_the_curves_are_the_log(tensorboard, tmp_path):
    config = dataclasses.replace(tiny_run.CONFIG, tracker="auto")
    stopped = tiny_run.run(tmp_path, config=config, pause=0.01, stop_after=0.1)[1]
    assert not stopped.finished
    tiny_run.run(tmp_path, config=config)
    files = sorted((tmp_path / "tensorboard").iterdir())
    assert [file.name for file in files] == ["events.out.tfevents.1700000000", "events.out.tfevents.1700000000-1"]
    found: dict[tuple[int, str], float] = {}
    for number, file in enumerate(files):
        first, *points = map(json.loads, file.read_text().splitlines())
        assert first["purge"] == (stopped.steps + 1 if number else None)
        found |= {(step, name): value for step, name, value in points}
    expected = {}
    for line in map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines()):
        numbers = {k: v for k, v in line.items() if k != "step" and not isinstance(v, bool)}
        expected |= {(line["step"], name): value for name, value in numbers.items()}
    assert found == expected and len(expected) > 20


def test_it_decides_nothing_and_may_change_on_resume(tensorboard, tmp_path):
    config = dataclasses.replace(tiny_run.CONFIG, tracker="auto")
    tiny_run.run(tmp_path / "a", config=config, pause=0.01, stop_after=0.1)
    one, _ = tiny_run.run(tmp_path / "a", config=tiny_run.CONFIG)
    other, _ = tiny_run.run(tmp_path / "b", config=tiny_run.CONFIG)
    assert tiny_run.digest(one) == tiny_run.digest(other)


def test_without_it_auto_is_silent_and_a_wish_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # as if it were not there
    assert tracking.scalars("auto", tmp_path, 0) is None and tracking.scalars("off", tmp_path, 0) is None
    with pytest.raises(ConfigurationError, match="pip install tensorboard, or tracker=off"):
        tracking.scalars("tensorboard", tmp_path, 0)
    assert list(tmp_path.iterdir()) == []


def test_the_line_of_progress_says_loss_speed_time_and_memory(capsys):
    import torch

    progress = Progress("learning rex", 0, 100, True, torch.device("cpu"))
    progress.report(25, 50.0, {"step": 25, "seconds": 50.0, "loss": 0.5, "samples/s": 4.0})
    said = capsys.readouterr().err
    assert "step 25/100  loss 0.5  samples/s 4  50 s so far, 2 min 30 s left" in said
    shown = float(re.search(r", ([\d.]+) GiB", said)[1])
    before = memory_used(torch.device("cpu"))
    assert abs(shown - before / 2**30) < 0.1
    held = torch.ones(2**26)  # 256 MiB
    assert 200 * 2**20 < memory_used(torch.device("cpu")) - before < 400 * 2**20 and held.numel()
