"""What TEA's arithmetic costs: one word, an encoded sentence, SDXL's two blocks with the pooled vector, T5's sequence.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/tea_cost.py
    .venv/bin/python benchmarks/tea_cost.py --device cuda

Text encoders are not in it: their second run on the class's sentence is one encoding, before sampling begins.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

from measure import interleaved, parser, report, spread

TARGET = 1.0  # ms, 77 x 768
CALLS = 50  # in one round
SHAPES = {
    "word, 1 x 768": (1, (768,)),
    "sentence, 77 x 768": (77, (768,)),
    "SDXL, 77 x (768 + 1280)": (77, (768, 1280)),
    "T5, 512 x 4096": (512, (4096,)),
}


def prepared(length: int, widths: tuple[int, ...], device: str) -> Callable[[], None]:
    """One adjustment at the defaults, `CALLS` times."""
    import torch

    from thisness.methods.tea import adjust_sequence

    generator = torch.Generator().manual_seed(0)
    source, target = (torch.randn(length, sum(widths), generator=generator).to(device) for _ in range(2))
    partners = list(range(length))

    def run() -> None:
        for _ in range(CALLS):
            adjust_sequence(source, target, partners, 0.2, widths=widths)
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def main(words: list[str] | None = None) -> None:
    options = parser(str(__doc__), repeats=9)
    options.add_argument("--device", default="cpu")
    given = options.parse_args(words)
    took = interleaved({name: prepared(*shape, given.device) for name, shape in SHAPES.items()}, given.repeats)
    rows = []
    for name, seconds in took.items():
        each = [1000 * value / CALLS for value in seconds]
        asked = name == "sentence, 77 x 768"
        rows.append(
            {
                "what": name,
                "ms": statistics.median(each),
                "+-": spread(each),
                "target, ms": TARGET if asked else "-",
                "met": ("yes" if statistics.median(each) <= TARGET else "no") if asked else "-",
            }
        )
    report(f"TEA at alpha 0.2, {given.device}: one adjustment", rows, given.json)


if __name__ == "__main__":
    main()
