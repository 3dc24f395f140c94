"""Oracle: two streams of data in one process, gradients averaged by hand."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn
from training.parallel_run import CONFIG, Line

from thisness.training.loop import _seed

SCRIPT = Path(__file__).with_name("parallel_run.py")


def by_hand() -> list[float]:
    task = Line(0.0)
    streams = [torch.Generator().manual_seed(_seed(CONFIG.seed, rank, 0)) for rank in (0, 1)]
    optimizer = torch.optim.AdamW(task.net.parameters(), lr=CONFIG.lr, weight_decay=CONFIG.weight_decay)
    for step in range(CONFIG.steps):
        optimizer.zero_grad()
        for stream in streams:
            (task.loss(step, stream)["loss"] / 2).backward()
        nn.utils.clip_grad_norm_(task.net.parameters(), CONFIG.clip)
        optimizer.step()
    return [*task.net.weight.flatten().tolist(), *task.net.bias.tolist()]


def by_two(folder: Path, how: str) -> list[list[float]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(Path(__file__).parents[2] / "src"), str(Path(__file__).parents[1])])
    shared = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": path}
    command = [sys.executable, str(SCRIPT), str(folder), how]
    processes = [
        subprocess.Popen(command, env=shared | {"RANK": str(rank), "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE)
        for rank in (0, 1)
    ]
    results = [process.communicate(timeout=120)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes)
    return [json.loads(result) for result in results]


def test_two_processes_equal_averaged_gradients_and_resume(tmp_path):
    one, two = by_two(tmp_path / "whole", "whole")
    assert one == two
    torch.testing.assert_close(torch.tensor(one), torch.tensor(by_hand()), rtol=0, atol=1e-6)
    assert by_two(tmp_path / "stopped", "stop") == [one, one]  # each process's random state is in the checkpoint
    steps = [json.loads(line)["step"] for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6]
