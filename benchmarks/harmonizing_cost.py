"""What Harmonizing costs beside its host alone: wall time in one run, in turns, and rows of the denoiser.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/harmonizing_cost.py --method ip-adapter
    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/harmonizing_cost.py --weights FOLDER --steps 10 --json cost.json

One sentence by the host, with orchestration, with the swap (window 0.1 to 0.7), with both; eleven sentences of one
subject by the host, and with the swap sharing one `SubjectTrajectory`. Weights make no difference to times.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measure import interleaved, median_ratio, parser, report, spread

TARGETS = {"orchestrate": 1.01, "swap": 1.8, "eleven sharing": 1.15}
"""Ratios to the host alone, for as many sentences."""
PROMPTS = (
    "a {subject} sleeping", "a {subject} sitting", "a {subject} jumping", "a {subject} running", "a {subject} waving",
    "a {subject} standing", "a {subject} sleeping on the beach", "a {subject} running in the snow",
    "a {subject} sitting with a red ball", "a {subject} jumping with a blue balloon", "a {subject} waving at night",
)  # fmt: skip


@contextmanager
def counted(denoiser: Any) -> Iterator[dict[str, int]]:
    """Calls of a denoiser, and their rows."""
    found = {"calls": 0, "rows": 0}

    def count(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first = args[0] if args else kwargs["sample"]
        found["calls"] += 1
        found["rows"] += len(first)

    hook = denoiser.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield found
    finally:
        hook.remove()


def expected_rows(steps: int, stop: float, guided: bool = True) -> dict[str, float]:
    """UNet rows for each picture by the spec's table: 2 a step, and 2 more until the window ends."""
    branch = 2 if guided else 1
    last = round(steps * stop)
    return {
        "host": branch * steps, "orchestrate": branch * steps, "swap": branch * (steps + last),
        "both": branch * (steps + last), "eleven": 11 * branch * steps,
        "eleven sharing": 11 * branch * steps + branch * last,
    }  # fmt: skip


def functions(base: Any, concept: Any, options: Any) -> dict[str, Callable[[], Any]]:
    """What is timed."""
    from thisness.generation import generate
    from thisness.methods.harmonizing_swap import AttentionSwap
    from thisness.methods.harmonizing_trajectory import SubjectTrajectory

    def one(adjust: tuple[str, ...] = (), attach: tuple[str, ...] = ()) -> Any:
        return generate(base, PROMPTS[0], concept=concept, adjust=adjust, interventions=attach, options=options)

    def eleven(shared: bool) -> None:
        swap = [AttentionSwap().sharing(SubjectTrajectory())] if shared else []
        for prompt in PROMPTS:
            generate(base, prompt, concept=concept, interventions=swap, options=options)

    return {
        "host": one,
        "orchestrate": lambda: one(("orchestrate",)),
        "swap": lambda: one((), ("attention-swap",)),
        "both": lambda: one(("orchestrate",), ("attention-swap",)),
        "eleven": lambda: eleven(False),
        "eleven sharing": lambda: eleven(True),
    }


def measured(
    base: Any, concept: Any, options: Any, repeats: int, seconds: Mapping[str, list[float]] | None = None
) -> list[dict[str, Any]]:
    """Rows of the table; seconds: instead of those of a clock."""
    calls = functions(base, concept, options)
    steps = len(_timesteps(base, options))
    wanted = expected_rows(steps, 0.7, (options.resolved(base).guidance or 0) > 1)
    rows = {}
    for name, call in calls.items():
        with counted(base.denoiser) as found:
            call()
        rows[name] = found["rows"]
    took = seconds or interleaved(calls, repeats)
    table = []
    for name in calls:
        beside = "eleven" if name.startswith("eleven") else "host"
        ratio = median_ratio(took[name], took[beside])
        goal = TARGETS.get(name)
        table.append(
            {
                "what": name, "rows": rows[name], "by the spec": round(wanted[name]),
                "seconds": statistics.median(took[name]), "+-": spread(took[name]), "ratio": ratio,
                "target": goal if goal is not None else "-",
                "met": "-" if goal is None else "yes" if ratio <= goal else "no",
            }
        )  # fmt: skip
    return table


def _timesteps(base: Any, options: Any) -> Any:
    from thisness.sampling import make_scheduler

    settled = options.resolved(base)
    scheduler = make_scheduler(base, settled.scheduler)
    scheduler.set_timesteps(settled.steps)
    return scheduler.timesteps


def run(
    method: str, weights: Path | None, steps: int | None, repeats: int, json: Path | None, base: str
) -> dict[str, Any]:
    """Measure, print, and write."""
    from thisness.bases import load_base
    from thisness.evaluation.benchmarks import playroom
    from thisness.methods.zero_shot import read_subject
    from thisness.sampling import SamplingOptions

    loaded = load_base(base)
    own = {"weights": str((weights / method).resolve())} if weights and (weights / method).is_dir() else {}
    toy = playroom.toy(0).load()
    concept = read_subject(
        method, type(toy)(toy.name, toy.noun, toy.images[:1], toy.masks[:1], toy.files[:1]), loaded, settings=own
    )
    options = SamplingOptions(steps=steps)
    count = len(_timesteps(loaded, options))
    title = f"Harmonizing on {method}, {loaded.name}: {count} steps, {repeats} rounds"
    return report(title, measured(loaded, concept, options, repeats), json)


def main(words: list[str] | None = None) -> None:
    options: argparse.ArgumentParser = parser(str(__doc__), repeats=5)
    options.add_argument("--method", default="ip-adapter")
    options.add_argument("--weights", type=Path, help="FOLDER/METHOD; embedded ones by default")
    options.add_argument("--base", default="playroom-sd")
    options.add_argument("--steps", type=int)
    given = options.parse_args(words)
    run(given.method, given.weights, given.steps, given.repeats, given.json, given.base)


if __name__ == "__main__":
    main()
