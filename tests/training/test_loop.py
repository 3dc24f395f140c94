"""Oracles: an uninterrupted run (bit for bit), a hand-written AdamW loop, the schedules' formulas."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from training.tiny_run import CONFIG, TinyTask, digest, run

from thisness.errors import ConfigurationError, ThisnessError
from thisness.training.checkpoint import steps_on_disk
from thisness.training.loop import LoopConfig, Task, train

SCRIPT = Path(__file__).with_name("tiny_run.py")
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2] / "src"), str(Path(__file__).parents[1])]),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums in another order round differently: equality holds for one number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple[str, list[dict]]:
    """Digest and log of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    task, result = run(folder)
    assert result.finished and result.steps == 40
    return digest(task), read_log(folder)


def read_log(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "samples/s")} for line in lines]


def start(folder: Path, pause: float) -> subprocess.Popen:
    command = [sys.executable, str(SCRIPT), str(folder), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def wait_for_step(folder: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while not any(found >= step for found in steps_on_disk(folder)):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr and process.stderr.read()
        time.sleep(0.005)


def test_killed_run_ends_as_the_uninterrupted_one(tmp_path, uninterrupted):
    process = start(tmp_path, pause=0.05)
    wait_for_step(tmp_path, 5, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 5 <= steps_on_disk(tmp_path)[0] < 40
    task, result = run(tmp_path)
    assert result.finished
    assert digest(task) == uninterrupted[0]
    assert read_log(tmp_path) == uninterrupted[1]  # no line doubled, none missing, means over the same steps


def test_sigterm_saves_says_so_and_goes_on(tmp_path, uninterrupted):
    process = start(tmp_path, pause=0.05)
    wait_for_step(tmp_path, 1, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    report = json.loads(out)
    assert process.returncode == 0 and report["stopped_by"] == "SIGTERM" and not report["finished"]
    last = err.strip().splitlines()[-1]
    assert "stopped by SIGTERM at step" in last and "the same command goes on" in last
    assert digest(run(tmp_path)[0]) == uninterrupted[0]


def test_stop_after_then_resume(tmp_path, uninterrupted):
    _, first = run(tmp_path, stop_after=0.0)
    assert not first.finished and first.stopped_by == "stop_after" and first.steps == 1
    task, second = run(tmp_path)
    assert digest(task) == uninterrupted[0] and second.seconds > first.seconds


def test_resuming_a_finished_run_changes_nothing(tmp_path, uninterrupted):
    run(tmp_path)
    task, result = run(tmp_path)
    assert result.finished and task.previews == [] and digest(task) == uninterrupted[0]
    assert read_log(tmp_path) == uninterrupted[1]


def test_damaged_newest_checkpoint_is_passed_over(tmp_path, uninterrupted, capsys):
    run(tmp_path, config=replace(CONFIG, checkpoint_seconds=0.0))
    assert steps_on_disk(tmp_path) == [40, 39]
    path = tmp_path / "checkpoints" / "step-000000040" / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    (tmp_path / "checkpoints" / "step-000000099").mkdir()  # as if killed on a file system without atomic renames
    task, _ = run(tmp_path, progress=True)
    assert digest(task) == uninterrupted[0]
    said = capsys.readouterr().err
    assert "passing over the checkpoint of step 40" in said and "passing over the checkpoint of step 99" in said


def test_other_configuration_is_shown_and_refused(tmp_path):
    run(tmp_path, stop_after=0.0)
    with pytest.raises(ConfigurationError, match=r"config\.lr: 0\.01 -> 0\.02"):
        run(tmp_path, config=replace(CONFIG, lr=0.02))
    run(tmp_path, config=replace(CONFIG, log_every=3, keep=1, preview_every=0), stop_after=0.0)  # no influence
    _, fresh = run(tmp_path, config=replace(CONFIG, lr=0.02, steps=2), resume=False)
    assert fresh.finished and steps_on_disk(tmp_path) == [2]


def test_nan_stops_with_the_step_and_keeps_the_last_good_checkpoint(tmp_path):
    task = TinyTask(bad_step=20)
    with pytest.raises(ThisnessError, match=r"fit, loss became NaN or infinite in step 20 of 40 .*learning rate"):
        train(task, replace(CONFIG, checkpoint_seconds=0.0), tmp_path, progress=False)
    assert steps_on_disk(tmp_path) == [19, 18]


def test_disk_full_leaves_the_last_valid_checkpoint_and_says_so(tmp_path, uninterrupted):
    run(tmp_path, stop_after=0.0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (600, limits[1])
        )  # every file ends after 600 bytes: a real failed write
        with pytest.raises(ThisnessError, match="cannot write .*make room"):
            run(tmp_path, config=replace(CONFIG, log_every=0, preview_every=0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert steps_on_disk(tmp_path) == [1]
    assert digest(run(tmp_path)[0]) == uninterrupted[0]


def test_equals_a_hand_written_loop(tmp_path):
    """Against twelve lines of plain PyTorch with the same draws, no dropout."""
    config = LoopConfig(steps=6, lr=0.05, weight_decay=0.1, warmup=3, schedule="cosine", clip=0.5, log_every=0)

    class Line(Task):
        def __init__(self) -> None:
            torch.manual_seed(0)
            self.net = nn.Linear(4, 1)

        def modules(self):
            return {"net": self.net}

        def loss(self, step, rng):
            x = torch.randn(8, 4, generator=rng)
            return {"loss": ((self.net(x) - x.sum(1, keepdim=True)) ** 2).mean()}

    task, other = Line(), Line()
    train(task, config, tmp_path, progress=False)
    seed = torch.Generator().manual_seed(0)  # seed 0, process 0, stream 0
    optimizer = torch.optim.AdamW(other.net.parameters(), lr=0.05, weight_decay=0.1)
    for step in range(6):
        optimizer.param_groups[0]["lr"] = (
            0.05 * (0.01 + 0.99 * (1 + math.cos(math.pi * step / 6)) / 2) * min(1, (step + 1) / 3)
        )
        optimizer.zero_grad()
        other.loss(step, seed)["loss"].backward()
        nn.utils.clip_grad_norm_(other.net.parameters(), 0.5)
        optimizer.step()
    torch.testing.assert_close(task.net.weight, other.net.weight, rtol=0, atol=1e-7)


def test_schedules():
    assert [LoopConfig(steps=4, lr=1).factor(step) for step in range(4)] == [1, 1, 1, 1]
    tail = LoopConfig(steps=10, lr=1, schedule="linear-tail", tail=0.5, final_fraction=0.2)
    assert [round(tail.factor(step), 6) for step in (0, 5, 7, 9)] == [1, 1, 0.68, 0.36]
    cosine = LoopConfig(steps=10, lr=1, schedule="cosine", final_fraction=0.0, warmup=2)
    assert cosine.factor(0) == 0.5 and cosine.factor(5) == pytest.approx(0.5)


def test_all_configuration_errors_at_once():
    with pytest.raises(ConfigurationError, match="steps must.*lr must.*ema must"):
        LoopConfig(steps=0, lr=-1, ema=2.0)


def test_caller_keeps_its_random_state_and_its_signals(tmp_path):
    TinyTask()
    torch.manual_seed(9)
    state, handler = torch.get_rng_state(), signal.getsignal(signal.SIGTERM)
    task = TinyTask.__new__(TinyTask)
    before = torch.get_rng_state()
    assert torch.equal(state, before) and task is not None
    line = nn.Linear(2, 2)
    state = torch.get_rng_state()

    class Small(Task):
        def modules(self):
            return {"line": line}

        def loss(self, step, rng):
            return {"loss": line(torch.randn(3, 2)).square().mean()}

    train(Small(), LoopConfig(steps=2, lr=0.1), tmp_path, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert signal.getsignal(signal.SIGTERM) is handler


def test_half_precision_and_homeless_parameters_are_refused(tmp_path):
    class Bad(TinyTask):
        def parameter_groups(self):
            return [{"params": [nn.Parameter(torch.zeros(1))]}]

    with pytest.raises(ConfigurationError, match=r"none of modules\(\)"):
        train(Bad(), CONFIG, tmp_path, progress=False)
    half = TinyTask()
    half.net.to(torch.bfloat16)
    with pytest.raises(ConfigurationError, match="bfloat16: what is trained must be float32"):
        train(half, CONFIG, tmp_path, progress=False)


def test_log_lines_are_readable_without_a_terminal(tmp_path, capsys):
    run(tmp_path, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if line.startswith("tiny: step ") and "left" in line]) == 6  # 7, 14, ... 35, 40
    assert lines[-1].startswith("tiny: done: 40 steps")
    logged = [entry for entry in read_log(tmp_path) if "preview" not in entry]
    assert [entry["step"] for entry in logged] == [7, 14, 21, 28, 35, 40]
    assert all(math.isfinite(entry["loss"]) and math.isfinite(entry["fit"]) for entry in logged)


def test_checkpoints_of_an_unknown_configuration_are_refused(tmp_path):
    """As a run leaves them whose folder was deleted while it lasted; resume=False begins anew."""
    run(tmp_path)
    (tmp_path / "run.json").unlink()
    with pytest.raises(ConfigurationError, match=r"checkpoints but no run\.json"):
        run(tmp_path)
    assert steps_on_disk(tmp_path)
    train(TinyTask(), CONFIG, tmp_path, resume=False, progress=False)
    assert (tmp_path / "run.json").is_file()
