"""References on FLUX: keys and values kept, against everything in every step.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/flux_cost.py                 the embedded model's sizes
    .venv/bin/python benchmarks/flux_cost.py --full --device cuda --side 512   FLUX's width and depth, random weights
    .venv/bin/python benchmarks/flux_cost.py --full --double 1 --single 2      ... fewer blocks, for what has no GPU

The same transformer (random weights: times do not depend on them), text, picture and references; one picture's steps by
the sentence alone, with references in every step ("joint", as published; "independent", recomputed), and with their
keys and values computed once ("cached"). Operations are counted by torch and stand beside the formula of 24 d^2 for a
token and 4 d for a pair of query and key in each block, which knows nothing of low-rank weights and embedders.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from measure import interleaved, median_ratio, parser, report, spread

FULL = {"num_attention_heads": 24, "attention_head_dim": 128, "joint_attention_dim": 4096, "in_channels": 64,
        "pooled_projection_dim": 768, "guidance_embeds": True, "axes_dims_rope": (16, 56, 56)}  # fmt: skip
TARGET = 1.6  # cached against joint, 512 px and a reference of 512 px


def by_the_formula(blocks: int, d: int, text: int, noisy: int, reference: int) -> dict[str, tuple[float, float]]:
    """Operations (in each step, once) by what is measured."""

    def cost(queries: int, keys: int) -> float:
        return blocks * (24.0 * d * d * queries + 4.0 * d * queries * keys)

    main = text + noisy
    inside = cost(reference, reference)
    return {
        "sentence": (cost(main, main), 0.0),
        "joint": (cost(main + reference, main + reference), 0.0),
        "independent": (cost(main, main + reference) + inside, 0.0),
        "cached": (cost(main, main + reference), inside),
    }


def prepared(
    model: Any, text: int, side: int, references: int, device: str, dtype: Any
) -> dict[str, Callable[..., Any]]:
    """By what is measured a function of the number of steps."""
    import torch

    from thisness.attention import attached
    from thisness.bases.flux import position_ids
    from thisness.methods.flux_references import Reference, References, RowLora, fresh_lora, reference_ids

    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Any:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    config = model.config
    words, pooled = drawn(1, text, config.joint_attention_dim), drawn(1, config.pooled_projection_dim)
    noisy = drawn(1, side * side, config.in_channels)
    places = position_ids(side, side, device)
    items = [
        Reference(drawn(side * side, config.in_channels), reference_ids(side, side, (0, -side * (number + 1))))
        for number in range(references)
    ]
    tensors = {name: each.detach().to(device, dtype) for name, each in fresh_lora(model, "full", 16).items()}

    def steps_of(count: int) -> None:
        with torch.no_grad():
            for number in range(count):
                model(
                    hidden_states=noisy, timestep=torch.full((1,), 1 - number / count, device=device, dtype=dtype),
                    guidance=torch.full((1,), 3.5, device=device), pooled_projections=pooled,
                    encoder_hidden_states=words, txt_ids=torch.zeros(text, 3, device=device), img_ids=places,
                    return_dict=False,
                )  # fmt: skip
        if device == "cuda":
            torch.cuda.synchronize()

    def with_references(mode: Any, cache: bool) -> Callable[[int], None]:
        def run(count: int) -> None:
            there = References(items, RowLora(tensors), mode, cache=cache)
            with there.installed(model), attached(model, there):
                steps_of(count)

        return run

    return {
        "sentence": steps_of,
        "joint": with_references("joint", False),
        "independent": with_references("independent", False),
        "cached": with_references("independent", True),
    }


def operations(run: Callable[[int], None]) -> tuple[float, float]:
    """In each step, and once."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    totals = []
    for count in (1, 3):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run(count)
        totals.append(float(counter.get_total_flops()))
    each = (totals[1] - totals[0]) / 2
    return each, totals[0] - each


def main(words: list[str] | None = None) -> None:
    import torch

    options = parser(str(__doc__), repeats=5)
    options.add_argument("--full", action="store_true", help="FLUX.1's width; else the embedded model's")
    options.add_argument("--double", type=int, help="blocks of two streams; as published or embedded by default")
    options.add_argument("--single", type=int, help="blocks of one stream")
    options.add_argument("--side", type=int, help="of the picture and of each reference in pixels")
    options.add_argument("--references", type=int, default=1)
    options.add_argument("--steps", type=int, default=28)
    options.add_argument("--device", default="cpu")
    options.add_argument("--count", action="store_true", help="operations, too: two further runs of each kind")
    given = options.parse_args(words)
    from diffusers import FluxTransformer2DModel

    from thisness.playroom.flux_models import SENTENCE, make_transformer

    changes = {
        key: value for key, value in (("num_layers", given.double), ("num_single_layers", given.single)) if value
    }
    dtype = torch.bfloat16 if given.device == "cuda" else torch.float32
    torch.manual_seed(0)
    sizes: Mapping[str, Any] = {**FULL, "num_layers": 19, "num_single_layers": 38, **changes}
    with torch.device(given.device):
        model = FluxTransformer2DModel(**sizes) if given.full else make_transformer(**changes)
    model = model.to(dtype).eval().requires_grad_(False)
    text, pixels = (512, given.side or 512) if given.full else (SENTENCE, given.side or 128)
    side = pixels // 16
    runs = prepared(model, text, side, given.references, given.device, dtype)
    took = interleaved({name: partial(run, given.steps) for name, run in runs.items()}, given.repeats)
    config = model.config
    d = config.num_attention_heads * config.attention_head_dim
    blocks = config.num_layers + config.num_single_layers
    formula = by_the_formula(blocks, d, text, side * side, given.references * side * side)
    if given.references > 1:  # references do not read each other
        extra = blocks * 4.0 * d * side**4 * given.references * (given.references - 1)
        formula = {
            name: (each - extra * (name in ("joint", "independent")), once - extra * (name == "cached"))
            for name, (each, once) in formula.items()
        }
    rows = []
    for name in runs:
        row = {
            "what": name, "seconds": statistics.median(took[name]), "+-": spread(took[name]),
            "times as fast as joint": median_ratio(took["joint"], took[name]),
            "times the sentence's": median_ratio(took[name], took["sentence"]),
            "by the formula": sum(formula["joint"][part] * factor for part, factor in ((0, given.steps), (1, 1)))
            / sum(formula[name][part] * factor for part, factor in ((0, given.steps), (1, 1))),
        }  # fmt: skip
        if given.count:
            each, once = operations(runs[name])
            row |= {"GFLOP a step": each / 1e9, "formula": formula[name][0] / 1e9, "once": once / 1e9}
        rows.append(row)
    gain = rows[-1]["times as fast as joint"]
    kind = "FLUX.1's width" if given.full else "playroom-flux"
    title = (
        f"{kind}, {config.num_layers} + {config.num_single_layers} blocks, {pixels} px, {given.references} reference(s)"
    )
    report(
        f"{title}, {given.references} reference(s), {given.steps} steps, {given.repeats} rounds, {given.device}",
        rows,
        given.json,
        cached_against_joint=gain,
        target=TARGET if given.full and pixels == 512 else "none",
    )


if __name__ == "__main__":
    main()
