"""What the runner itself costs for each picture, and how pictures a minute grow with workers.

The first part replaces generation and scoring by stand-ins that take no time: what is left is planning, handing out,
writing pictures and lines, and reading them again. The second part makes pictures with a real base in one and in two
local processes and, where Ray is installed, in as many actors of Ray; each engine is warmed up by pictures that do not
count, for a run of any length starts its workers once.
"""

from __future__ import annotations

import importlib.util
import io
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measure import parser, report
from PIL import Image

from thisness.evaluation.engines import open_engine, run_jobs
from thisness.evaluation.items import Benchmark, BenchSubject, Case, Item
from thisness.evaluation.jobs import Make, Setup, portable
from thisness.evaluation.runner import run_benchmark
from thisness.evaluation.worker import Worker

TARGET_MS = 5.0


class StandIn(Worker):
    """Gives the same 128x128 picture for everything, at once."""

    file = b""

    def pictures(self, job: Make) -> list[bytes]:
        if not StandIn.file:
            pixels = np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            StandIn.file = buffer.getvalue()
        return [StandIn.file for _ in job.rows]


class Nothing:
    """A metric that looks at nothing."""

    name = "nothing"
    identity = {"metric": "nothing"}

    def score(self, items: Sequence[Item]) -> list[float | None]:
        return [0.0] * len(items)


def benchmark(folder: Path, cases: int, seeds: int) -> Benchmark:
    """One subject, so many sentences."""
    file = folder / "subject.png"
    Image.new("RGB", (128, 128), "red").save(file)
    place = (("subject", "rex"),)
    sentences = tuple(Case(f"case-{number}", place, "a {subject} on a beach", "background") for number in range(cases))
    return Benchmark("stand-in", (BenchSubject("rex", "dog", (file,)),), sentences, tuple(range(seeds)))


def overhead(base: Any, pictures: int, batch: int, repeats: int) -> list[dict[str, Any]]:
    """Milliseconds a picture of a whole run, less what a run of a single batch takes (loading, checks)."""
    rows = []
    for turn in range(repeats):
        seconds, busy = [], []
        for cases in (1, pictures // batch):
            with tempfile.TemporaryDirectory() as name:
                given = benchmark(Path(name), cases, batch)
                start, began = time.perf_counter(), time.process_time()
                run_benchmark(
                    given, ["base"], Path(name) / "run", base=base, metrics=[Nothing()], batch_size=batch,
                    progress=False, worker=StandIn,
                )  # fmt: skip
                seconds.append(time.perf_counter() - start)
                busy.append(time.process_time() - began)
        made = pictures // batch * batch - batch
        took, used = seconds[1] - seconds[0], busy[1] - busy[0]
        row = {"round": turn + 1, "pictures": made, "ms/picture": 1000 * took / made}
        rows.append({**row, "of it computing": 1000 * used / made})
    return rows


def scaling(base: str, engine: str, workers: int, batches: int, batch: int, steps: int) -> float:
    """Pictures a second of workers that have begun."""
    from thisness.evaluation.recipes import parse_recipe
    from thisness.evaluation.starting import start

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = portable(benchmark(folder, batches + workers, batch))
        begun = start(
            folder, given, [parse_recipe("base")], base, "cpu", "float32", 1, batch, {"steps": steps}, "", False
        )
        setup = Setup(base, begun.signature, "cpu", "float32", 1, folder, given, begun.recipes, (Nothing(),))
        by_case: dict[str, list[Any]] = {}
        for row in begun.rows:
            by_case.setdefault(row.case, []).append(row)
        jobs = [Make(tuple(rows), "base") for rows in by_case.values()]
        with open_engine(engine, workers, setup) as opened:

            def check(job: Any, outcome: Any) -> None:
                if outcome.kind != "done":
                    raise RuntimeError(outcome.failure)

            run_jobs(opened, jobs[:workers], check)
            start_time = time.perf_counter()
            run_jobs(opened, jobs[workers:], check)
            return batches * batch / (time.perf_counter() - start_time)


def main() -> None:
    options = parser(__doc__ or "", repeats=3)
    options.add_argument("--base", default="playroom-sd", help="for both parts")
    options.add_argument("--pictures", type=int, default=400, help="of the stand-in, in each round")
    options.add_argument("--batch", type=int, default=4, help="pictures made at once")
    options.add_argument("--batches", type=int, default=12, help="of real pictures, in each round")
    options.add_argument("--steps", type=int, default=10, help="sampling steps of real pictures")
    options.add_argument("--engines", nargs="*", default=None, help="local, ray; none at all measures overhead only")
    given = options.parse_args()

    from thisness.bases import load_base

    rows = overhead(load_base(given.base), given.pictures, given.batch, given.repeats)
    engines = given.engines
    if engines is None:
        engines = ["local", "ray"] if importlib.util.find_spec("ray") else ["local"]
    speeds: dict[str, list[float]] = {}
    for turn in range(given.repeats if engines else 0):
        order = [(engine, workers) for engine in engines for workers in (1, 2)]
        for engine, workers in order if turn % 2 == 0 else reversed(order):
            speed = scaling(given.base, engine, workers, given.batches, given.batch, given.steps)
            speeds.setdefault(f"{engine} {workers}", []).append(speed)
    medians = {name: statistics.median(found) for name, found in speeds.items()}
    summary: dict[str, Any] = {
        "overhead_ms": statistics.median(row["ms/picture"] for row in rows),
        "computing_ms": statistics.median(row["of it computing"] for row in rows),
        "target_ms": TARGET_MS,
        **{f"{name}_pictures_per_second".replace(" ", "_"): value for name, value in medians.items()},
    }
    for engine in engines:
        pairs = zip(speeds[f"{engine} 2"], speeds[f"{engine} 1"], strict=True)
        summary[f"{engine}_speedup_of_two"] = statistics.median(two / one for two, one in pairs)
    report("the runner: overhead with stand-ins, pictures a second with workers", rows, given.json, **summary)


if __name__ == "__main__":
    main()
