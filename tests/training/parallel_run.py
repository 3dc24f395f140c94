"""One process of a run by two: `python parallel_run.py FOLDER STEPS_BEFORE_STOP` prints its weights as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from thisness.training.loop import LoopConfig, Task, train

CONFIG = LoopConfig(steps=6, lr=0.05, clip=0.5, seed=4, checkpoint_seconds=1e9, log_every=2)


class Line(Task):
    """Fits a sum; the weights of each process start elsewhere, the first one's count."""

    name = "line"

    def __init__(self, start: float) -> None:
        self.net = nn.Linear(3, 1)
        nn.init.constant_(self.net.weight, start)
        nn.init.zeros_(self.net.bias)

    def modules(self) -> dict[str, nn.Module]:
        return {"net": self.net}

    def loss(self, step: int, rng: torch.Generator) -> dict[str, Tensor]:
        x = torch.randn(4, 3, generator=rng)
        return {"loss": ((self.net(x) - x.sum(1, keepdim=True)) ** 2).mean()}


if __name__ == "__main__":
    import os

    torch.set_num_threads(1)
    task = Line(start=float(os.environ["RANK"]))
    if sys.argv[2] == "stop":
        train(task, CONFIG, Path(sys.argv[1]), progress=False, stop_after=0.0)
        task = Line(start=7.0)
    train(task, CONFIG, Path(sys.argv[1]), progress=False)
    print(json.dumps([*task.net.weight.flatten().tolist(), *task.net.bias.tolist()]))
