"""What EZIGen costs: calls of the denoiser by a counter, and wall time against the released procedure, in one run.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/ezigen_cost.py --weights FOLDER
    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/ezigen_cost.py --steps 10 --repeats 1 --json cost.json
    .venv/bin/python benchmarks/ezigen_cost.py --base random:sd2.1-base --device cuda --dtype bfloat16
    .venv/bin/python benchmarks/ezigen_cost.py --base random:sd2.1-base --device cuda --dtype bfloat16 --compile

The released procedure, straightforwardly: it reads the subject, makes a picture with the subject at all steps and one
of the text alone, both of which it only saves, and then the picture. All of it by our code on the
same model, so what it gains is only what it leaves out; keys and values of the subject are computed once in both.
`random:NAME` is a model of the published size with random weights and a fresh adapter (full_size.py); `--compile`: the
denoiser under torch.compile, in its place, which the slot and the reading of the subject bear.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from full_size import RANDOM, opened, peak, settled
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
    seconds: Mapping[str, list[float]] | None = None, side: int | None = None,
) -> tuple[list[dict[str, Any]], bool]:  # fmt: skip
    """Rows of the table; whether both procedures give the same pixels. seconds: instead of a clock's."""
    from thisness.generation import generate
    from thisness.methods.zero_shot import read_subject
    from thisness.sampling import SamplingOptions

    told = {"share": 0.4, **settings, "min_loops": loops, "max_loops": loops}

    def picture(concept: Any, steps: int, scheduler: str = "ddpm", **more: Any) -> Any:
        options = SamplingOptions(steps=steps, scheduler=scheduler, height=side, width=side)
        made = generate(base, PROMPT, concept=concept, options=options, **more).images[0]
        settled(str(base.device))
        return made

    def ours(steps: int = steps, scheduler: str = "ddpm") -> Any:
        return picture(read_subject("ezigen", subject, base, settings=told), steps, scheduler)

    def released() -> Any:
        concept = read_subject("ezigen", subject, base, settings=told)
        always = concept.settings | {"share": 1.0, "min_loops": 0, "max_loops": 0}
        picture(type(concept)({**concept.manifest, "settings": always}, concept.tensors), steps)
        picture(None, steps, subject=subject)
        return picture(concept, steps)

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


def fresh_adapter(base: Any, folder: Path) -> str:
    """Weights for a model that none were trained for: copies of its self-attention; times do not depend on them."""
    from thisness.methods.ezigen_adapter import EZIGenAdapter
    from thisness.methods.ezigen_training import save_weights

    save_weights(folder, base, EZIGenAdapter.of(base.denoiser))
    return str(folder)


def run(
    weights: Path | None, steps: int, repeats: int, json: Path | None, base: str = "playroom-sd", *,
    device: str = "cpu", dtype: str = "float32", side: int | None = None, compiled: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Measure, print, and write."""
    from harmonizing_looks import reference

    own = {"weights": str((weights / "ezigen").resolve())} if weights and (weights / "ezigen").is_dir() else {}
    loaded = opened(base, device, dtype)
    with tempfile.TemporaryDirectory() as folder:
        if base.startswith(RANDOM) and not own:
            own = {"weights": fresh_adapter(loaded, Path(folder))}
        if compiled:
            loaded.denoiser.compile()
        rows, same = measured(loaded, reference("rufus"), own, repeats, steps, side=side)
    how = f"{side or loaded.resolution} px, {dtype} on {device}{', compiled' if compiled else ''}"
    title = f"EZIGen, {loaded.name}, {how}: {steps} steps, {LOOPS} loops, {repeats} rounds"
    return report(title, rows, json, same_pixels=same, memory=peak(device))


def main(words: list[str] | None = None) -> None:
    options = parser(str(__doc__), repeats=5)
    options.add_argument("--weights", type=Path, help="FOLDER/ezigen; embedded ones by default")
    options.add_argument("--base", default="playroom-sd", help="or random:sd2.1-base, random:sd1.5")
    options.add_argument("--steps", type=int, default=STEPS)
    options.add_argument("--device", default="cpu")
    options.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    options.add_argument("--side", type=int, help="in pixels; the base's own by default")
    options.add_argument("--compile", action="store_true", help="the denoiser under torch.compile")
    given = options.parse_args(words)
    run(
        given.weights, given.steps, given.repeats, given.json, given.base, device=given.device, dtype=given.dtype,
        side=given.side, compiled=given.compile,
    )  # fmt: skip


if __name__ == "__main__":
    main()
