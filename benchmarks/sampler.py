"""Our sampler against the stock diffusers pipeline: wall time of the same picture, prompt to pixels.

    .venv/bin/python benchmarks/sampler.py
    .venv/bin/python benchmarks/sampler.py --base random:sd1.5 --device cuda --dtype bfloat16

Both make the same pictures from the same seeds in the same process, in turns; the pictures are compared, too.
Target: at most 1.02 times the stock pipeline's time.
"""

from __future__ import annotations

import statistics

import numpy as np
import torch
from full_size import opened
from measure import interleaved, median_ratio, parser, report, spread

from thisness.generation import generate
from thisness.sampling import SamplingOptions

TARGET = 1.02
PROMPT = "a photo of a brown dog sitting on the beach"


def main() -> None:
    options = parser(str(__doc__), repeats=15)
    options.add_argument("--base", default="playroom-sd", help="embedded name, local folder, hub id, random:sd1.5")
    options.add_argument("--steps", type=int, default=20, help="sampling steps")
    options.add_argument("--guidance", type=float, default=3.0)
    options.add_argument("--batches", type=int, nargs="+", default=[1, 4], help="batch sizes to measure")
    options.add_argument("--device", default="cpu")
    options.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    given = options.parse_args()
    base = opened(given.base, given.device, given.dtype)
    pipe = base.to_pipeline()
    pipe.set_progress_bar_config(disable=True)
    sampling = SamplingOptions(steps=given.steps, guidance=given.guidance)
    rows = []
    for batch in given.batches:
        seeds = tuple(range(batch))

        def ours(batch: int = batch, seeds: tuple[int, ...] = seeds) -> list:
            return generate(base, PROMPT, seeds=seeds, options=sampling, batch_size=batch).images

        def stock(batch: int = batch, seeds: tuple[int, ...] = seeds) -> list:
            return pipe(
                PROMPT,
                num_inference_steps=given.steps,
                guidance_scale=given.guidance,
                height=base.resolution,
                width=base.resolution,
                num_images_per_prompt=batch,
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            ).images

        pairs = zip(ours(), stock(), strict=True)
        equal = all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)
        seconds = interleaved({"stock": stock, "ours": ours}, given.repeats)
        rows.append(
            {
                "batch": batch,
                "stock s": statistics.median(seconds["stock"]),
                "+- stock": spread(seconds["stock"]),
                "ours s": statistics.median(seconds["ours"]),
                "+- ours": spread(seconds["ours"]),
                "ours/stock": median_ratio(seconds["ours"], seconds["stock"]),
                "same pictures": equal,
            }
        )
    report(
        f"Sampler: {base.name}, {base.resolution}x{base.resolution}, {given.steps} steps, guidance {given.guidance}, "
        f"{given.repeats} rounds",
        rows,
        given.json,
        target_ratio=TARGET,
    )


if __name__ == "__main__":
    main()
