"""A tiny task, and a process that trains it: `python tiny_run.py FOLDER PAUSE` prints a digest of the result."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from thisness.training.loop import LoopConfig, Task, TrainResult, train


class TinyTask(Task):
    """Fits noise with dropout: both random streams, a buffer, state of its own, a parameter group of its own."""

    name = "tiny"
    batch_size = 4

    def __init__(self, pause: float = 0.0, bad_step: int | None = None) -> None:
        torch.manual_seed(5)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.2), nn.BatchNorm1d(16), nn.GELU(), nn.Linear(16, 3))
        self.row = nn.Embedding(2, 6)
        self.pause, self.bad_step = pause, bad_step
        self.calls = 0
        self.seen = torch.zeros(3)
        self.previews: list[int] = []

    def modules(self) -> dict[str, nn.Module]:
        return {"net": self.net, "row": self.row}

    def parameter_groups(self) -> list[dict]:
        return [{"params": list(self.net.parameters())}, {"params": [self.row.weight], "lr": 0.1, "weight_decay": 0.0}]

    def loss(self, step: int, rng: torch.Generator) -> dict[str, Tensor]:
        time.sleep(self.pause)
        self.calls += 1
        x, y = torch.randn(4, 6, generator=rng), torch.randn(4, 3, generator=rng)
        out = self.net((x + self.row.weight[torch.randint(0, 2, (4,), generator=rng)]).to(self.device))
        self.seen += out.detach().float().mean(0)
        fit = ((out - y) ** 2).mean()
        if self.bad_step is not None and step + 1 == self.bad_step:
            fit = fit * float("nan")
        return {"loss": fit + 0.01 * self.row.weight.square().mean(), "fit": fit.detach()}

    def extra_state(self) -> dict:
        return {"seen": self.seen, "calls": self.calls}

    def load_extra_state(self, state: dict) -> None:
        self.seen, self.calls = state["seen"].clone(), state["calls"]

    def preview(self, folder: Path, step: int) -> dict[str, float]:
        torch.randn(100)
        self.net.eval()
        self.previews.append(step)
        (folder / f"step-{step}.txt").write_text("seen")
        return {"score": 1.0}


CONFIG = LoopConfig(
    steps=40, lr=0.01, clip=1.0, ema=0.9, warmup=5, schedule="linear-tail", accumulate=2, seed=3,
    checkpoint_seconds=0.05, log_every=7, preview_every=11,
)  # fmt: skip


def digest(task: TinyTask) -> str:
    """A hash of everything that the run decides: weights, average, the task's own state."""
    parts = [*task.net.state_dict().values(), *task.row.state_dict().values(), task.seen]
    parts += [value for module in task.ema.values() for value in module.state_dict().values()]
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts) + str(task.calls).encode()).hexdigest()


def run(folder: Path, pause: float = 0.0, config: LoopConfig = CONFIG, **kwargs) -> tuple[TinyTask, TrainResult]:
    task = TinyTask(pause)
    return task, train(task, config, folder, progress=kwargs.pop("progress", False), **kwargs)


if __name__ == "__main__":
    torch.set_num_threads(1)
    tiny, result = run(Path(sys.argv[1]), pause=float(sys.argv[2]), progress=True)
    print(json.dumps({"digest": digest(tiny), "finished": result.finished, "stopped_by": result.stopped_by}))
