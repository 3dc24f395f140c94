"""IP-Adapter: image tokens, keys and values computed once, against diffusers, which computes them at every step.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/ip_adapter.py
    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/ip_adapter.py --full --steps 2 --repeats 3

The same random adapter on the same base, the same picture's features, the same noise; in the same process, in turns.
What is timed is the sampling, from the sentence to latents; the latents are compared, too. `--full`: SD 1.5 in its full
size with random weights and latents of 32x32 (256 px) instead of the embedded base (8 GB of memory; full_size.py).
"""

from __future__ import annotations

import copy
import statistics
from typing import Any

import torch
from full_size import full_size
from measure import interleaved, median_ratio, parser, report, spread
from torch import Tensor

from thisness.attention import ImageTokens
from thisness.bases import Base, load_base
from thisness.conditioning import encode, encode_negative
from thisness.methods.ip_adapter import ImageProjection, Resampler, adapter, projections
from thisness.methods.ip_adapter_weights import AdapterWeights
from thisness.sampling import SamplingOptions, sample

PROMPT = "a photo of a dog sleeping on the beach"
SIDE = 256  # in full size
SIZES = {"small": (192, 160, 64, 1), "full": (1024, 1280, 768, 12)}  # pooled, hidden, width of the resampler, heads


def random_adapter(method: str, base: Base, size: str) -> dict[str, Tensor]:
    """Tensors in the published layout."""
    pooled, hidden, inner, heads = SIZES[size]
    width = base.denoiser.config.cross_attention_dim
    plus = method == "ip-adapter-plus"
    image = Resampler(hidden, inner, width, 16, heads=heads) if plus else ImageProjection(pooled, width)
    tensors = {f"image_proj.{name}": each.detach() for name, each in image.state_dict().items()}
    for k, name in projections(base).items():
        shape = base.denoiser.get_submodule(name).to_k.weight.shape
        for part in "kv":
            tensors[f"ip_adapter.{k}.to_{part}_ip.weight"] = 0.05 * torch.randn(shape)
    return tensors


def main() -> None:
    options = parser(str(__doc__), repeats=9)
    options.add_argument("--full", action="store_true", help="a random SD 1.5 UNet in full size")
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--batches", type=int, nargs="+", default=[1])
    given = options.parse_args()
    torch.manual_seed(0)
    base = full_size("sd1.5") if given.full else load_base("playroom-sd")
    size = "full" if given.full else "small"
    side = SIDE if given.full else base.resolution
    sampling = SamplingOptions(steps=given.steps, guidance=3.0, scheduler="ddim", height=side, width=side)
    rows = []
    for method in ("ip-adapter", "ip-adapter-plus"):
        tensors = random_adapter(method, base, size)
        image, layers = adapter(method, AdapterWeights("random", {}, tensors, ""), base)
        pooled, hidden = SIZES[size][:2]
        shape = (1, pooled) if method == "ip-adapter" else (1, 257 if given.full else 65, hidden)
        read = torch.stack([torch.zeros(shape), torch.randn(shape)])  # of no picture, of a picture
        pipe = stock_pipeline(base, tensors)
        for batch in given.batches:
            seeds = tuple(range(batch))

            def ours(
                seeds: tuple[int, ...] = seeds, image: Any = image, layers: Any = layers, read: Any = read
            ) -> Tensor:
                with torch.no_grad():
                    tokens = ImageTokens(layers, image(read[1])[0], image(read[0])[0], 0.6)
                    text, negative = encode(base, PROMPT), encode_negative(base)
                    return sample(base, text, negative, seeds, sampling, interventions=[tokens])

            def stock(seeds: tuple[int, ...] = seeds, pipe: Any = pipe, read: Any = read) -> Tensor:
                return pipe(
                    PROMPT, ip_adapter_image_embeds=[read], num_inference_steps=given.steps,
                    guidance_scale=3.0, height=sampling.height, width=sampling.width, output_type="latent",
                    num_images_per_prompt=len(seeds),
                    generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                ).images  # fmt: skip

            one, other = ours(), stock()
            seconds = interleaved({"diffusers": stock, "ours": ours}, given.repeats)
            rows.append(
                {
                    "method": method,
                    "batch": batch,
                    "diffusers s": statistics.median(seconds["diffusers"]),
                    "ours s": statistics.median(seconds["ours"]),
                    "+- ours": spread(seconds["ours"]),
                    "ours/diffusers": median_ratio(seconds["ours"], seconds["diffusers"]),
                    "relative difference": float((one - other).norm() / other.norm()),
                }
            )
    report(
        f"IP-Adapter: {base.name}, {sampling.height}x{sampling.width}, {given.steps} steps, {given.repeats} rounds",
        rows,
        given.json,
    )


def stock_pipeline(base: Base, tensors: dict[str, Tensor]) -> Any:
    """Plain diffusers with the adapter loaded into a UNet of its own."""
    pipe = base.to_pipeline()
    pipe.register_modules(unet=copy.deepcopy(pipe.unet))
    nested: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in tensors.items():
        group, _, rest = name.partition(".")
        nested[group][rest] = tensor
    pipe.load_ip_adapter(nested, "", "", image_encoder_folder=None)
    pipe.set_ip_adapter_scale(0.6)
    from diffusers import DDIMScheduler

    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


if __name__ == "__main__":
    main()
