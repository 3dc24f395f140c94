"""What IP-Adapters are trained by: the loss of a batch of pictures, whatever the data.

    adapter = make_adapter("ip-adapter", base, vision)
    training = IPAdapterTraining(base, adapter)
    no_picture, no_text = drops(count, rng)
    parts = training.loss(Batch(targets, sentences, without(features, null, no_picture)), rng)
    parts["loss"].backward()
    save_weights(FOLDER, "ip-adapter", base, adapter, {"name": ENCODER})    # what `weights=FOLDER` of the method reads

As the paper trains: base and image encoder frozen, to_k_ip and to_v_ip begin as the base's to_k and to_v, the picture
that is shown is the one that is drawn, and the picture, the text, or both are dropped in 5 % of the rows each.

Source: Ye et al., IP-Adapter (2023), section 3.2 and 4.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import Context, Intervention, Site, Where, attached, probabilities
from ..bases import Base
from ..conditioning import encode
from ..files import save_tensors, write_json
from ..training.diffusion import cumulative_alphas, noised, target
from .ip_adapter import HEAD, ImageProjection, Resampler, projections
from .zero_shot import CONFIG, WEIGHTS

TOKENS = {"ip-adapter": 4, "ip-adapter-plus": 16}
DROP = 0.05  # each: the picture, the text, both


@dataclass(frozen=True, eq=False)
class Batch:
    """Pictures, shown and drawn.

    Args:
        targets: (B, C, h, w) latents to draw, in the denoiser's scale.
        sentences: (B) what each shows; "" where the text is dropped.
        features: (B, width) or (B, patches, width) of the pictures that are shown; the null where they are dropped.
        mask: (B, 1, H, W) in [0, 1], where the loss counts more; None for none.
    """

    targets: Tensor
    sentences: Sequence[str]
    features: Tensor
    mask: Tensor | None = None


def make_adapter(method: str, base: Base, vision: Any, tokens: int = 0, width: int = 0) -> nn.ModuleDict:
    """What is trained; its names are those of the published files.

    Args:
        method: "ip-adapter" or "ip-adapter-plus".
        base: whose keys and values the adapter's begin as.
        vision: the image encoder.
        tokens: of a picture; 0: the published number.
        width: of the resampler, a multiple of 64, the width of its heads; 0: the text's, at most 1280, as published.
    """
    text, tokens = base.denoiser.config.cross_attention_dim, tokens or TOKENS[method]
    if method == "ip-adapter":
        image: nn.Module = ImageProjection(vision.config.projection_dim, text, tokens)
    else:
        width = width or max(min(text, 1280) // HEAD, 1) * HEAD
        image = Resampler(vision.config.hidden_size, width, text, tokens, heads=width // HEAD)
    layers = nn.ModuleDict()
    for k, name in projections(base).items():
        attn, pair = base.denoiser.get_submodule(name), nn.ModuleDict()
        for part in "kv":
            weight = attn.get_submodule(f"to_{part}").weight.detach().float()
            pair[f"to_{part}_ip"] = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            pair[f"to_{part}_ip"].load_state_dict({"weight": weight.clone()})
        layers[k] = pair
    return nn.ModuleDict({"image_proj": image, "ip_adapter": layers})


class TrainedTokens(Intervention):
    """As `ImageTokens` at scale 1, with tokens for each row and gradients, by plain attention."""

    where = Where(kinds=("cross",))

    def __init__(self, adapter: nn.ModuleDict, sites: Mapping[str, str], tokens: Tensor) -> None:
        """sites: numbers in the adapter by name of the site; tokens: (B, M, width)."""
        self.adapter, self.sites, self.tokens = adapter, sites, tokens

    def extra(self, site: Site, attn: nn.Module, q: Tensor, out: Tensor, context: Context) -> Tensor:
        pair: Any = self.adapter["ip_adapter"][self.sites[site.name]]  # type: ignore[index]
        k, v = (
            to(self.tokens).unflatten(-1, (q.shape[1], -1)).transpose(1, 2) for to in (pair["to_k_ip"], pair["to_v_ip"])
        )
        return out + probabilities(q, k, None).to(v.dtype) @ v


class IPAdapterTraining:
    """The loss of batches on a base that stays as it is.

    Args:
        base: with a UNet and a noise schedule.
        adapter: of `make_adapter`; what gets gradients.
        subject_weight: added to the loss's weight of 1 where the mask is.
        levels: draws steps of the noise schedule, (count,) int64; uniform by default.

    Attributes:
        reads: "pooled" or "hidden", what the adapter reads of the image encoder.
        sites: numbers in the adapter by name of the site.

    Raises:
        ConfigurationError: a base without a noise schedule.
    """

    def __init__(
        self, base: Base, adapter: nn.ModuleDict, subject_weight: float = 0.0,
        levels: Callable[[int, torch.Generator], Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.base, self.adapter, self.subject_weight = base, adapter, subject_weight
        self.alphas = cumulative_alphas(base.scheduler)
        self.levels = levels or (lambda count, rng: torch.randint(0, len(self.alphas), (count,), generator=rng))
        self.reads = str(adapter["image_proj"].reads)
        self.sites = {name: k for k, name in projections(base).items()}

    def loss(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        """One batch's "loss". rng: on the CPU: noise and noise levels."""
        noise = torch.randn(batch.targets.shape, generator=rng)
        return {"loss": self.mean(batch, noise, self.levels(len(batch.targets), rng))}

    def mean(self, batch: Batch, noise: Tensor, t: Tensor, adapter: nn.ModuleDict | None = None) -> Tensor:
        """The weighted mean of squared errors.

        Args:
            batch: as of `loss`.
            noise: (B, C, h, w).
            t: (B,) steps of the noise schedule.
            adapter: another one than that which is trained: its average.
        """
        base, device, adapter = self.base, self.base.device, adapter or self.adapter
        clean, noise, t = batch.targets.to(device), noise.to(device), t.to(device)
        alpha = self.alphas.to(device)[t]
        with torch.no_grad():
            text = encode(base, batch.sentences)
        acting = TrainedTokens(adapter, self.sites, adapter["image_proj"](batch.features.to(device)))
        with attached(base.denoiser, acting):
            prediction = base.predict(noised(clean, noise, alpha).to(base.dtype), t, text)
        errors = (prediction.float() - target(clean, noise, alpha, base.prediction_type)) ** 2
        if batch.mask is None:
            return errors.mean()
        inside = F.adaptive_avg_pool2d(batch.mask.to(device), (int(clean.shape[-2]), int(clean.shape[-1])))
        weight = 1 + self.subject_weight * inside
        return (errors * weight).mean() / weight.mean()


def drops(count: int, rng: torch.Generator, share: float = DROP) -> tuple[Tensor, Tensor]:
    """Which rows lose the picture, and which the text, (count,) bool: a share the one, as many the other, or both."""
    drawn = torch.rand(count, generator=rng)
    both = (drawn >= 2 * share) & (drawn < 3 * share)
    return (drawn < share) | both, ((drawn >= share) & (drawn < 2 * share)) | both


def without(features: Tensor, null: Tensor, dropped: Tensor) -> Tensor:
    """Features (B, ...) of which the rows in `dropped` (B,) are those of no picture (1, ...)."""
    return torch.where(dropped.to(features.device).view(-1, *[1] * (features.ndim - 1)), null, features)


def save_weights(
    folder: Path, method: str, base: Base, adapter: nn.ModuleDict, encoder: Mapping[str, Any], **more: Any
) -> None:
    """Write config.json and model.safetensors in half precision: what `weights=FOLDER` reads.

    Args:
        folder: made if need be.
        method: "ip-adapter" or "ip-adapter-plus".
        base: that it was trained on.
        adapter: whose weights.
        encoder: "name" of the image encoder, and its "signature" where it is the embedded one.
        more: further entries of config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().half().cpu() for name, tensor in adapter.state_dict().items()}
    save_tensors(folder / WEIGHTS, tensors, {"format": "pt"})
    of = {"base": base.signature, "base_name": base.name}
    tokens = TOKENS[method]
    write_json(folder / CONFIG, {"method": method, **of, "image_encoder": dict(encoder), "tokens": tokens, **more})
