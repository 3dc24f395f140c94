"""`ip-adapter` and `ip-adapter-plus` for the embedded base: draw a picture again, told what is in it and shown it.

As the paper trains: base and image encoder frozen, to_k_ip and to_v_ip begin as the base's to_k and to_v, the picture,
the text, or both are dropped in 5 % of the rows each. The picture that is shown is the one that is drawn, and the pose
is left unsaid in half of the captions: so the tokens carry the pose, too, which is the bias that Harmonizing is about.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...attention import Context, ImageTokens, Intervention, Site, Where, attached, probabilities
from ...bases import Base
from ...conditioning import encode
from ...files import save_tensors, write_json
from ...methods.image_encoders import EMBEDDED, open_encoder
from ...methods.ip_adapter import ImageProjection, Resampler, projections
from ...methods.ip_adapter_weights import encoded, encoder_signature
from ...training.diffusion import cumulative_alphas, noised, target
from ...training.loop import LoopConfig, Task
from ..captions import ATTRIBUTES, OFTEN, caption
from ..data import PlayroomData
from ..models import LATENT_SIZE
from .common import draw, picture_grid
from .unet import sample_timesteps

IP_ADAPTER = LoopConfig(
    steps=2000,
    lr=1e-3,
    betas=(0.9, 0.99),
    weight_decay=0.01,
    warmup=50,
    schedule="linear-tail",
    tail=0.4,
    final_fraction=0.02,
    clip=1.0,
    ema=0.998,
    precision="auto",
    seed=13,
    preview_every=400,
)
TOKENS = {"ip-adapter": 4, "ip-adapter-plus": 16}
WIDTH, HEADS = 64, 1  # of the resampler; its depth is the published one, which diffusers' loader takes for granted
DROP = 0.05  # each: the picture, the text, both
SUBJECT_WEIGHT = 1.5
MENTION = {**OFTEN, "pose": 0.5}
SHOWN = 8  # toys of a preview


def make_adapter(method: str, base: Base, vision: Any) -> nn.ModuleDict:
    """What is trained; its names are those of the published files.

    Args:
        method: "ip-adapter" or "ip-adapter-plus".
        base: whose keys and values the adapter's begin as.
        vision: the image encoder.
    """
    width, tokens = base.denoiser.config.cross_attention_dim, TOKENS[method]
    if method == "ip-adapter":
        image: nn.Module = ImageProjection(vision.config.projection_dim, width, tokens)
    else:
        image = Resampler(vision.config.hidden_size, WIDTH, width, tokens, heads=HEADS)
    layers = nn.ModuleDict()
    for k, name in projections(base).items():
        attn, pair = base.denoiser.get_submodule(name), nn.ModuleDict()
        for part in "kv":
            weight = attn.get_submodule(f"to_{part}").weight.detach()
            pair[f"to_{part}_ip"] = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            pair[f"to_{part}_ip"].load_state_dict({"weight": weight.clone()})
        layers[k] = pair
    return nn.ModuleDict({"image_proj": image, "ip_adapter": layers})


class TrainedTokens(Intervention):
    """As `ImageTokens` at scale 1, with tokens for each row and gradients, by plain attention."""

    where = Where(kinds=("cross",))

    def __init__(self, adapter: nn.ModuleDict, sites: dict[str, str], tokens: Tensor) -> None:
        """sites: numbers in the adapter by name of the site; tokens: (B, M, width)."""
        self.adapter, self.sites, self.tokens = adapter, sites, tokens

    def extra(self, site: Site, attn: nn.Module, q: Tensor, out: Tensor, context: Context) -> Tensor:
        pair: Any = self.adapter["ip_adapter"][self.sites[site.name]]  # type: ignore[index]
        k, v = (
            to(self.tokens).unflatten(-1, (q.shape[1], -1)).transpose(1, 2) for to in (pair["to_k_ip"], pair["to_v_ip"])
        )
        return out + probabilities(q, k, None).to(v.dtype) @ v


def drops(count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which rows lose the picture and which the text, (count,) of bool: 5 % one, 5 % the other, 5 % both."""
    drawn = torch.rand(count, generator=rng)
    both = (drawn >= 2 * DROP) & (drawn < 3 * DROP)
    return (drawn < DROP) | both, ((drawn >= DROP) & (drawn < 2 * DROP)) | both


class IPAdapterTask(Task):
    """Draw a picture that is shown."""

    def __init__(
        self, method: str, base: Base, data: PlayroomData, held_out: PlayroomData, latents: np.ndarray,
        batch_size: int = 16,
    ) -> None:  # fmt: skip
        """latents: of the pictures, (N, *latent_shape) unscaled."""
        from diffusers.models.attention_processor import AttnProcessor

        self.name, self.base, self.data, self.held_out = method, base, data, held_out
        self.latents, self.batch_size = latents, batch_size
        base.denoiser.requires_grad_(False).set_attn_processor(AttnProcessor())  # its backward is faster on a CPU
        self.vision, _ = open_encoder(EMBEDDED)
        torch.manual_seed(IP_ADAPTER.seed)
        self.adapter = make_adapter(method, base, self.vision)
        self.reads = str(self.adapter["image_proj"].reads)
        self.sites = {name: k for k, name in projections(base).items()}
        self.alphas = cumulative_alphas(base.scheduler)

    def modules(self) -> dict[str, nn.Module]:
        return {"adapter": self.adapter}

    def settings(self) -> dict[str, Any]:
        return {"base": self.base.signature, "encoder": encoder_signature(), "batch_size": self.batch_size}

    def on_start(self, device: torch.device) -> None:
        self.base.to(device)
        self.vision.to(device)
        self.alphas = self.alphas.to(device)

    def loss(self, step: int, rng: torch.Generator) -> dict[str, Tensor]:
        device = self.base.device
        rows = draw(rng, len(self.data), self.batch_size)
        words = Random(int(torch.randint(0, 1 << 40, (), generator=rng)))
        no_picture, no_text = drops(len(rows), rng)
        sentences = [
            "" if drop else caption(self.data.scene(int(row)), words, MENTION)
            for row, drop in zip(rows, no_text, strict=True)
        ]
        clean = torch.from_numpy(self.latents[rows]).float() * self.base.vae.config.scaling_factor
        noise, t = torch.randn(clean.shape, generator=rng), sample_timesteps(len(rows), rng).to(device)
        clean, noise, alpha = clean.to(device), noise.to(device), self.alphas[t]
        mask = torch.from_numpy(self.data.masks[rows].max(1)).float().to(device)[:, None] / 255
        weight = 1 + SUBJECT_WEIGHT * nn.functional.adaptive_avg_pool2d(mask, LATENT_SIZE)
        with torch.no_grad():
            text = encode(self.base, sentences)
            features, null = encoded(self.vision, self.data.pictures(rows).to(device), self.reads)
            dropped = no_picture.to(device).view(-1, *[1] * (features.ndim - 1))
            features = torch.where(dropped, null, features)
        acting = TrainedTokens(self.adapter, self.sites, self.adapter["image_proj"](features))
        with attached(self.base.denoiser, acting):
            prediction = self.base.predict(noised(clean, noise, alpha), t, text)
        wanted = target(clean, noise, alpha, self.base.prediction_type)
        return {"loss": ((prediction.float() - wanted) ** 2 * weight).mean() / weight.mean()}

    @torch.no_grad()
    def preview(self, folder: Path, step: int) -> dict[str, float]:
        """Held-out toys: shown; drawn in another pose; drawn in another place."""
        from ...sampling import SamplingOptions, sample

        adapter: Any = self.ema.get("adapter", self.adapter)
        options, rows = SamplingOptions(steps=20, guidance=3.0), range(0, 4 * SHOWN, 4)
        pictures = self.held_out.pictures(rows)
        features, null = encoded(self.vision, pictures.to(self.base.device), self.reads)
        tokens, nothing = adapter["image_proj"](features), adapter["image_proj"](null)[0]
        pairs = {name: adapter["ip_adapter"][k] for name, k in self.sites.items()}
        layers = {name: (pair["to_k_ip"], pair["to_v_ip"]) for name, pair in pairs.items()}
        made = [pictures]
        for ending in ("sleeping", "in the snow"):
            drawn = []
            for number, row in enumerate(rows):
                noun = ATTRIBUTES["class"][int(self.held_out.labels[row, 0])]
                acting = ImageTokens(layers, tokens[number], nothing)
                text = encode(self.base, f"a photo of a {noun} {ending}")
                latents = sample(self.base, text, None, [number], options, interventions=[acting])
                drawn.append(self.base.decode(latents).float().cpu())
            made.append(torch.cat(drawn))
        picture_grid(torch.cat(made), folder / f"preview-{step:06d}.png", len(pictures))
        return {}

    def save(self, folder: Path) -> None:
        """config.json and model.safetensors with the averaged weights in half precision."""
        adapter: Any = self.ema.get("adapter", self.adapter)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().half().cpu() for name, tensor in adapter.state_dict().items()}
        save_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
        encoder = {"name": EMBEDDED, "signature": encoder_signature()}
        base = {"base": self.base.signature, "base_name": self.base.name}
        config = {"method": self.name, **base, "image_encoder": encoder, "tokens": TOKENS[self.name]}
        write_json(folder / "config.json", config)
