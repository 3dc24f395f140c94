"""Stand-ins for benchmarks and metrics, and a process that runs them: `python toys.py BASE WORK OUT SETTINGS-AS-JSON`.

The base and the pictures are tiny; what is made is real: generation, learning, files.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from thisness.evaluation.items import Benchmark, BenchSubject, Case
from thisness.evaluation.worker import Worker

RECIPES = (
    "base+sampling:steps=2",
    "words=textual-inversion:steps=2+sampling:steps=2",
    "lora=dreambooth-lora:steps=2,rank=2,prior_pictures=2,prior_steps=1+sampling:steps=2",
)


class Redness:
    """Mean of the red channel."""

    name = "redness"
    identity = {"metric": "redness", "version": 1}

    def score(self, items):
        return [float(np.asarray(item.picture.image)[..., 0].mean() / 255) for item in items]


class Nearness:
    """Of the picture's mean colour to its references', to its baseline's, and to the other seeds'."""

    name = "nearness"
    identity = {"metric": "nearness", "version": 1}

    def score(self, items):
        def mean(picture):
            return np.asarray(picture.image, np.float64).mean((0, 1)) / 255

        by_group = {}
        for item in items:
            by_group.setdefault((item.recipe, item.subject, item.case), []).append(mean(item.picture))
        values = []
        for item in items:
            if not item.references:
                values.append(None if item.baseline is None else -abs(mean(item.picture) - mean(item.baseline)).sum())
                continue
            near = -abs(mean(item.picture) - np.mean([mean(each) for each in item.references], 0)).sum()
            spread = np.std(by_group[item.recipe, item.subject, item.case], 0).sum()
            values.append(float(near + spread))
        return values


class Broken:
    """Fails."""

    name = "broken"
    identity = {"metric": "broken"}

    def score(self, items):
        raise RuntimeError("this metric is broken")


class Killed(Worker):
    """Ends its own process, hard, at the first job of the kind named in the file WORK/kill, once."""

    def do(self, job):
        wish = self.setup.folder.parent / "kill"
        if wish.is_file() and wish.read_text() == type(job).__name__:
            wish.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().do(job)


def benchmark(work: Path, subjects=("rex", "mia")) -> Benchmark:
    """Two subjects of two pictures, five sentences, two seeds."""
    known = []
    for number, name in enumerate(subjects):
        files = []
        for picture in range(2):
            file = work / "subjects" / name / f"{picture}.png"
            if not file.is_file():
                file.parent.mkdir(parents=True, exist_ok=True)
                draws = np.random.default_rng(10 * number + picture)
                Image.fromarray(draws.integers(60, 200, (16, 16, 3), np.uint8)).save(file)
            files.append(file)
        known.append(BenchSubject(name, ("dog", "cat")[number % 2], tuple(files)))
    cases = [
        Case(f"{name}-{word}", (("subject", name),), f"a {{subject}} {text}", family, context=text)
        for name in subjects
        for word, text, family in (("sleeping", "sleeping", "pose"), ("beach", "on the beach", "background"))
    ]
    cases.append(Case("drift-hat", (), "a red hat", "drift"))
    return Benchmark("toy", tuple(known), tuple(cases), (0, 1), preset="none")


def main(base: str, work: str, out: str, settings: str = "{}") -> None:
    from thisness.evaluation.runner import run_benchmark

    given = {"recipes": list(RECIPES), "progress": False, "batch_size": 2, **json.loads(settings)}
    run_benchmark(benchmark(Path(work)), given.pop("recipes"), out, base=base, metrics=[Redness(), Nearness()], **given)


if __name__ == "__main__":
    main(*sys.argv[1:])
