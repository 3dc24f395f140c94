"""What EZIGen costs: calls of the denoiser by a counter, and wall time against the released procedure, in one run.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/ezigen_cost.py --weights FOLDER
    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/ezigen_cost.py --steps 10 --repeats 1 --json cost.json

The released procedure, straightforwardly: it reads the subject, makes a picture with the subject at all steps and one
of the text alone, both of which it only saves, and then the picture. All of it by our code on the
same model, so what it gains is only what it leaves out; keys and values of the subject are computed once in both.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from harmonizing_cost import counted
from measure import interleaved, median_ratio, parser, report, spread

STEPS, LOOPS, FAST = 50, 3, 20
PROMPT = "a {subject} sleeping on the beach"
TARGETS = {"ours": 1.8, "fast": 3.5}
"""How many times as fast as the released procedure, at three loops."""


def expected_calls(steps: int, loops: int, share: float = 0.4) -> dict[str, int]:
    """Calls for each picture: ours, and the released procedure's; both with one call that reads the subject."""
    own = round(share * steps) * loops
    return {"ours": 1 + steps + own, "released": 1 + 3 * steps + own}


def measured(
    base: Any, subject: Any, settings: Mapping[str, Any], repeats: int, steps: int = STEPS, loops: int = LOOPS,
    seconds: Mapping[str, list[float]] | None = None,
) -> tuple[list[dict[str, Any]], bool]:  # fmt: skip
    """Rows of the table; whether both procedures give the same pixels. seconds: instead of a clock's."""
    from thisness.generation import generate
    from thisness.methods.zero_shot import read_subject
    from thisness.sampling import SamplingOptions

    told = {"share": 0.4, **settings, "min_loops": loops, "max_loops": loops}

    def ours(steps: int = steps, scheduler: str = "ddpm") -> Any:
        concept = read_subject("ezigen", subject, base, settings=told)
        options = SamplingOptions(steps=steps, scheduler=scheduler)
        return generate(base, PROMPT, concept=concept, options=options).images[0]

    def released() -> Any:
        concept = read_subject("ezigen", subject, base, settings=told)
        options = SamplingOptions(steps=steps, scheduler="ddpm")
        always = concept.settings | {"share": 1.0, "min_loops": 0, "max_loops": 0}
        full = type(concept)({**concept.manifest, "settings": always}, concept.tensors)
        generate(base, PROMPT, concept=full, options=options)
        generate(base, PROMPT, subject=subject, options=options)
        return generate(base, PROMPT, concept=concept, options=options).images[0]

    fast = min(FAST, steps)
    calls = {"released": released, "ours": ours, "fast": lambda: ours(fast, "dpm++")}
    wanted = expected_calls(steps, loops) | {"fast": expected_calls(fast, loops)["ours"]}
    found, pictures = {}, {}
    for name, call in calls.items():
        with counted(base.denoiser) as count:
            pictures[name] = np.asarray(call())
        found[name] = count["calls"]
    took = seconds or interleaved(calls, repeats)
    table = []
    for name in calls:
        gain = median_ratio(took["released"], took[name])
        goal = TARGETS.get(name)
        table.append(
            {
                "what": f"fast ({fast} steps, dpm++)" if name == "fast" else name, "calls": found[name],
                "by the formula": wanted[name], "seconds": statistics.median(took[name]), "+-": spread(took[name]),
                "times as fast": gain, "target": goal if goal is not None else "-",
                "met": "-" if goal is None else "yes" if gain >= goal else "no",
            }
        )  # fmt: skip
    return table, bool(np.array_equal(pictures["ours"], pictures["released"]))


def run(weights: Path | None, steps: int, repeats: int, json: Path | None, base: str = "playroom-sd") -> dict[str, Any]:
    """Measure, print, and write."""
    from harmonizing_looks import reference

    from thisness.bases import load_base

    own = {"weights": str((weights / "ezigen").resolve())} if weights and (weights / "ezigen").is_dir() else {}
    loaded = load_base(base)
    rows, same = measured(loaded, reference("rufus"), own, repeats, steps)
    return report(
        f"EZIGen, {loaded.name}: {steps} steps, {LOOPS} loops, {repeats} rounds", rows, json, same_pixels=same
    )


def main(words: list[str] | None = None) -> None:
    options = parser(str(__doc__), repeats=5)
    options.add_argument("--weights", type=Path, help="FOLDER/ezigen; embedded ones by default")
    options.add_argument("--base", default="playroom-sd")
    options.add_argument("--steps", type=int, default=STEPS)
    given = options.parse_args(words)
    run(given.weights, given.steps, given.repeats, given.json, given.base)


if __name__ == "__main__":
    main()
