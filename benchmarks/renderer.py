"""Pictures a second of the Playroom's renderer, plain and compiled.

    .venv/bin/python benchmarks/renderer.py

Target: 100 pictures a second at 128x128 on two cores, compiled, the compiling itself left out.
"""

from __future__ import annotations

import statistics
import time
from functools import partial

import torch
from measure import interleaved, parser, report, spread

from thisness.playroom.render import render
from thisness.playroom.world import random_scene

TARGET = 100.0


def main() -> None:
    options = parser(str(__doc__), repeats=5)
    options.add_argument("--pictures", type=int, default=256, help="pictures in each round")
    options.add_argument("--size", type=int, default=128, help="side in pixels")
    options.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    options.add_argument("--plain-only", action="store_true", help="leave the compiled renderer out (no C++ compiler)")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    scenes = [random_scene(seed, "train") for seed in range(given.pictures)]
    ways = {"plain": False} if given.plain_only else {"plain": False, "compiled": True}
    start = time.perf_counter()
    for compiled in ways.values():
        render(scenes[:64], given.size, compiled=compiled)
    compiling = time.perf_counter() - start
    functions = {name: partial(render, scenes, given.size, compiled=compiled) for name, compiled in ways.items()}
    seconds = interleaved(functions, given.repeats, warmup=0)
    rows = []
    for name, times in seconds.items():
        rates = [given.pictures / value for value in times]
        rows.append({"renderer": name, "pictures/s": statistics.median(rates), "+-": spread(rates)})
    report(
        f"Renderer, {given.size}x{given.size}, {given.pictures} pictures a round, {given.repeats} rounds",
        rows,
        given.json,
        first_calls_with_compiling_in_s=compiling,
        target_pictures_per_s=TARGET,
    )


if __name__ == "__main__":
    main()
