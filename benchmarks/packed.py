"""Steps a second for each subject: several in one batch, against the same subjects one after another.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/packed.py
    .venv/bin/python benchmarks/packed.py --method dreambooth-lora --rows 4 --subjects 8 --device cuda

Both ways train the same words (or low-rank weights) on the same rows, with the same draws, in the same process, in
turns of a few steps. What is prepared once (encoded pictures, class pictures) is not counted. Processor seconds are
counted beside those of the clock: on a shared machine they are the steadier ones.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from measure import parser, report, spread

from thisness.bases import Base, load_base
from thisness.methods import method_named
from thisness.methods.packed import PackedTask, _packed
from thisness.methods.registry import settings_for
from thisness.methods.tuning import prepared_for_training
from thisness.playroom.subjects import held_out_identity, subject_name, write_subject
from thisness.subject import Subject


class Trained:
    """A pack attached to the base, with its optimizer. Only while it is entered."""

    def __init__(self, base: Base, method: str, subjects: list[Subject], settings: Any) -> None:
        self.parts = (base, method, subjects, settings)

    def steps(self, count: int) -> tuple[float, float]:
        """Clock and processor seconds of some updates, after two that are not counted."""
        base, method, subjects, settings = self.parts
        with ExitStack() as stack:
            stack.enter_context(prepared_for_training(base))
            task, _ = stack.enter_context(_packed(method_named(method), base, settings, False, subjects))
            for module in task.modules().values():
                module.to(base.device)
            task.device = base.device
            task.on_start(base.device)
            optimizer = torch.optim.AdamW(task.parameter_groups(), lr=settings.lr, foreach=True)
            self._updates(task, optimizer, 2)
            began = time.perf_counter(), time.process_time()
            self._updates(task, optimizer, count)
            return time.perf_counter() - began[0], time.process_time() - began[1]

    @staticmethod
    def _updates(task: PackedTask, optimizer: torch.optim.Optimizer, count: int) -> None:
        rng = torch.Generator().manual_seed(0)
        for step in range(count):
            optimizer.zero_grad(set_to_none=True)
            task.loss(step, rng)["loss"].backward()
            optimizer.step()
        if task.device.type == "cuda":
            torch.cuda.synchronize()


def main(words: list[str]) -> int:
    options = parser(__doc__ or "", repeats=3)
    options.add_argument("--base", default="playroom-sd")
    options.add_argument("--method", default="textual-inversion")
    options.add_argument("--subjects", type=int, default=4)
    options.add_argument("--rows", default="1,2,4,8", help="of each subject in a step")
    options.add_argument("--steps", type=int, default=8, help="in a turn")
    options.add_argument("--device", default="cpu")
    given = options.parse_args(words)
    base = load_base(given.base, device=given.device)
    with tempfile.TemporaryDirectory() as folder:
        subjects = [
            Subject.from_folder(
                write_subject(Path(folder) / subject_name(i), i, count=4, size=base.resolution),
                held_out_identity(i).noun,
            )
            for i in range(given.subjects)
        ]
    found = []
    for rows in map(int, given.rows.split(",")):
        fixed = {"batch_size": rows, "prior_pictures": 8, "prior_batch": rows, "prior_steps": 4}
        method = method_named(given.method)
        fixed = {key: value for key, value in fixed.items() if key in {each.name for each in fields(method.Settings)}}
        settings = settings_for(method, base, fixed)
        ratios, clocks, apart_rate, packed_rate = [], [], [], []
        for _ in range(given.repeats):
            together = Trained(base, given.method, subjects, settings).steps(given.steps)
            alone = [Trained(base, given.method, [subject], settings).steps(given.steps) for subject in subjects]
            clock, processor = (sum(each[at] for each in alone) for at in (0, 1))
            clocks.append(clock / together[0])
            ratios.append(processor / together[1])
            apart_rate.append(given.steps / processor)
            packed_rate.append(given.steps / together[1])
        found.append(
            {
                "rows of each": rows,
                "steps/s of each, in turn": statistics.median(apart_rate),
                "steps/s of each, packed": statistics.median(packed_rate),
                "ratio": statistics.median(ratios), "spread": spread(ratios),
                "ratio by the clock": statistics.median(clocks),
            }
        )  # fmt: skip
    title = f"{given.method}, {given.subjects} subjects, {given.steps} steps a turn, {given.device}, processor seconds"
    report(title, found, given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
