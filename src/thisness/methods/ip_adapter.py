"""IP-Adapter: Text Compatible Image Prompt Adapter for Text-to-Image Diffusion Models.

Ye, Zhang, Liu, Han, Yang (2023, arXiv 2308.06721).

    c_i: a linear layer and LayerNorm of the global embedding     `ImageProjection` (ip-adapter)
    fine-grained features: a query network over the patches       `Resampler` (ip-adapter-plus)
    Z_new = Softmax(QK^T/sqrt(d))V                                `attention.ImageTokens`
            + lambda * Softmax(Q(K')^T/sqrt(d))V'   (eq. 5)
    K' = c_i W'_k, V' = c_i W'_v                                  `projections`: to_k_ip, to_v_ip of each layer
    no picture: c_i of zeros; Plus: of a picture of zeros         `image_features` of `ip_adapter_weights`

One look at one picture: nothing is trained. The reference pose is in the tokens as much as the identity is: that is
what Harmonizing (`orchestrate`, `attention-swap`) is for. Weights have the published names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL.Image import Image, fromarray
from torch import Tensor, nn

from ..adapters.handler import check_format
from ..attention import crossing_sites
from ..attention.image_tokens import ImageTokens
from ..bases import Base
from ..concept import Attached, Concept
from ..errors import ArtefactError, ConfigurationError, ImageError
from ..files import compare_shapes, directory, save_tensors, write_text
from ..subject import Subject
from .ip_adapter_weights import check_encoder, encoder_of, image_features, open_adapter, standard_weights
from .registry import register_method
from .zero_shot import AdapterWeights, ZeroShotMethod

FILE = "image_tokens.safetensors"  # tokens, null: (M, width); features, features_null: what they were made of
HEAD = 64  # width of the resampler's heads, in all published files
Background = Literal["keep", "white", "grey", "black"]
_GREYS = {"white": 255, "grey": 128, "black": 0}


class ImageProjection(nn.Module):
    """(batch, features) -> (batch, tokens, width)."""

    reads = "pooled"

    def __init__(self, features: int, width: int, tokens: int = 4) -> None:
        super().__init__()
        self.proj = nn.Linear(features, tokens * width)
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor) -> Tensor:
        return self.norm(self.proj(features).unflatten(-1, (-1, self.norm.normalized_shape[0])))


class FullProjection(nn.Module):
    """(batch, patches, features) -> (batch, patches, width): every patch a token (ip-adapter-full-face)."""

    reads = "hidden"

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Linear(features, features), nn.GELU(), nn.Linear(features, width), nn.LayerNorm(width)
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.proj(features)


class PerceiverAttention(nn.Module):
    """Queries attend to the picture's features and to each other."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q = nn.Linear(width, heads * HEAD, bias=False)
        self.to_kv = nn.Linear(width, 2 * heads * HEAD, bias=False)
        self.to_out = nn.Linear(heads * HEAD, width, bias=False)

    def forward(self, features: Tensor, queries: Tensor) -> Tensor:
        """(batch, patches, width), (batch, tokens, width) -> (batch, tokens, width)."""
        features, queries = self.norm1(features), self.norm2(queries)
        keys, values = self.to_kv(torch.cat([features, queries], 1)).chunk(2, -1)
        q, k, v = (each.unflatten(-1, (-1, HEAD)).transpose(1, 2) for each in (self.to_q(queries), keys, values))
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Resampler(nn.Module):
    """(batch, patches, features) -> (batch, tokens, out): learned queries read the picture, layer by layer."""

    reads = "hidden"

    def __init__(self, features: int, width: int, out: int, tokens: int = 16, depth: int = 4, heads: int = 12) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, tokens, width) / width**0.5)
        self.proj_in, self.proj_out, self.norm_out = (
            nn.Linear(features, width),
            nn.Linear(width, out),
            nn.LayerNorm(out),
        )
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(width, heads), _feed_forward(width)]) for _ in range(depth)
        )

    def forward(self, features: Tensor) -> Tensor:
        features, queries = self.proj_in(features), self.latents.expand(len(features), -1, -1)
        for layer in self.layers:
            attend, forward = layer.children()
            queries = queries + attend(features, queries)
            queries = queries + forward(queries)
        return self.norm_out(self.proj_out(queries))


def _feed_forward(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, 4 * width, bias=False), nn.GELU(), nn.Linear(4 * width, width, bias=False)
    )


def projections(base: Base) -> dict[str, str]:
    """The cross-attention layers of a base by the number that published files give them.

    The number is the layer's position among all attention layers in diffusers' order: down, up, middle.
    """
    names = [name.removesuffix(".processor") for name in base.denoiser.attn_processors]
    return {str(k): name for k, name in enumerate(names) if base.denoiser.get_submodule(name).is_cross_attention}


def projection_for(method: str, tensors: Mapping[str, Tensor], name: str) -> nn.Module:
    """The module from features to tokens that a file's names and shapes describe, on the meta device.

    Raises:
        ArtefactError: of the other method, or of none that is known here.
    """
    shapes = {key.removeprefix("image_proj."): each.shape for key, each in tensors.items() if key.startswith("image_")}
    kind = ""
    made: nn.Module | None = None
    with torch.device("meta"):
        if shapes.keys() >= {"proj.weight", "norm.weight"}:
            (wide, features), (width,) = shapes["proj.weight"], shapes["norm.weight"]
            kind, made = "ip-adapter", ImageProjection(features, width, wide // width)
        elif shapes.keys() >= {"latents", "proj_in.weight", "proj_out.weight", "layers.0.0.to_q.weight"}:
            depth = 1 + max(int(key.split(".")[1]) for key in shapes if key.startswith("layers."))
            (_, tokens, width), features = shapes["latents"], shapes["proj_in.weight"][1]
            heads = shapes["layers.0.0.to_q.weight"][0] // HEAD
            kind = "ip-adapter-plus"
            made = Resampler(features, width, shapes["proj_out.weight"][0], tokens, depth, heads)
        elif shapes.keys() >= {"proj.0.weight", "proj.2.weight", "proj.3.weight"}:
            kind = "ip-adapter-plus"
            made = FullProjection(shapes["proj.0.weight"][1], shapes["proj.3.weight"][0])
    if made is None:
        raise ArtefactError(
            f"{name} has no image projection that is known here (image_proj.proj and norm, or image_proj.latents and "
            "layers): expected a file of IP-Adapter or IP-Adapter Plus; FaceID files read a face recogniser instead"
        )
    if kind != method:
        raise ArtefactError(f"{name} has the weights of {kind}, not of {method}: use --method {kind}")
    return made


def adapter(
    method: str, weights: AdapterWeights, base: Base
) -> tuple[nn.Module, dict[str, tuple[nn.Module, nn.Module]]]:
    """The projection to tokens, in float32 on the CPU, and to_k_ip, to_v_ip by layer, as the base's own are.

    Raises:
        ArtefactError: names without a place in the base, missing ones, other shapes: all of them in one line.
    """
    image = projection_for(method, weights.tensors, weights.name)
    expect = {f"image_proj.{name}": tuple(each.shape) for name, each in image.state_dict().items()}
    sites = projections(base)
    for k, name in sites.items():
        attn = base.denoiser.get_submodule(name)
        expect |= {f"ip_adapter.{k}.to_{part}_ip.weight": tuple(_own(attn, part).weight.shape) for part in "kv"}
    found = {name: tuple(tensor.shape) for name, tensor in weights.tensors.items()}
    compare_shapes(found, expect, f"{weights.name}, for {base.name!r},")
    tensors = weights.tensors
    image.load_state_dict(
        {name: tensors[f"image_proj.{name}"].float() for name in image.state_dict()}, strict=True, assign=True
    )
    layers: dict[str, tuple[nn.Module, nn.Module]] = {}
    for k, name in sites.items():
        like = _own(base.denoiser.get_submodule(name), "k").weight
        pair = [_linear(tensors[f"ip_adapter.{k}.to_{part}_ip.weight"].to(like)) for part in "kv"]
        layers[name] = (pair[0], pair[1])
    return image.eval().requires_grad_(False), layers


def _own(attn: nn.Module, part: str) -> nn.Linear:
    """to_k or to_v of a layer, without the low-rank weights that may be on it."""
    linear: Any = attn.get_submodule(f"to_{part}")
    return getattr(linear, "base_layer", linear)


def _linear(weight: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    made.weight = nn.Parameter(weight.detach(), requires_grad=False)
    return made


def shown(subject: Subject, background: Background) -> Image:
    """The picture that is read: the subject's first, whole (the paper), or the subject alone before one colour.

    Raises:
        ImageError: the subject is to be alone, and has no mask.
    """
    image, mask = subject.images[0], subject.masks[0]
    if background == "keep":
        return image
    file = subject.files[0] if subject.files else "the picture"
    if mask is None:
        raise ImageError(
            f"{file} has no mask, which background={background} needs: make one with `thisness masks`, or leave "
            "background=keep"
        )
    pixels = np.asarray(image, np.float32) * mask[..., None] + _GREYS[background] * (1 - mask[..., None])
    return fromarray(pixels.round().astype(np.uint8))


class IPAdapterHandler:
    """Attaches the tokens of a concept beside the text's. The base's own weights stay untouched."""

    @contextmanager
    def attach(self, concept: Concept, base: Base) -> Iterator[Attached]:
        concept.check_base(base, other_weights=True)
        model = base.denoiser
        if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
            raise ConfigurationError(
                f"{concept.method} keeps keys and values of its picture from call to call, which a model under "
                "torch.compile cannot do: use the model as it was loaded"
            )
        settings = concept.settings
        weights = open_adapter(concept.method, settings["weights"], base, settings["signature"])
        _, layers = adapter(concept.method, weights, base)
        read = {name: each.to(base.device) for name, each in concept.tensors[FILE].items()}
        tokens = ImageTokens(layers, read["tokens"], read["null"], settings["scale"])
        yield Attached((tokens,), tokens)

    def export(self, concept: Concept, folder: Path, to: str, base: Base | None = None) -> list[Path]:
        """The adapter in the published layout, what its projection reads of the picture, and `usage.txt`.

        Raises:
            ConfigurationError: another format than diffusers.
            ArtefactError: the base is not given, or is another one.
        """
        check_format(to, ("diffusers",))
        if base is None:
            from ..bases import load_base

            base = load_base(concept.manifest["base"]["name"])
        settings, read = concept.settings, concept.tensors[FILE]
        weights = open_adapter(concept.method, settings["weights"], base, settings["signature"])
        pooled = read["features"].ndim == 1
        features = torch.stack([read["features_null"], read["features"]])
        embeds = features[:, None] if pooled else features[:, None, :, :]  # (2, pictures, ...)
        with directory(folder) as building:
            save_tensors(building / "ip-adapter.safetensors", weights.tensors, {"format": "pt"})
            save_tensors(building / "image_embeds.safetensors", {"image_embeds": embeds}, {"format": "pt"})
            write_text(building / "usage.txt", usage(concept))
        return [folder / name for name in ("ip-adapter.safetensors", "image_embeds.safetensors", "usage.txt")]


def usage(concept: Concept) -> str:
    """Lines of Python that load what `export` wrote."""
    return "\n".join(
        [
            f"# {concept.name} ({concept.noun}), read by {concept.method}; pipe is a pipeline of its base",
            "from safetensors.torch import load_file",
            'pipe.load_ip_adapter(".", "", "ip-adapter.safetensors", image_encoder_folder=None)',
            f"pipe.set_ip_adapter_scale({concept.settings['scale']})",
            'embeds = load_file("image_embeds.safetensors")["image_embeds"]  # of no picture, of the picture',
            f'pipe("a photo of a {concept.word.text}", ip_adapter_image_embeds=[embeds])',
            "# without guidance (guidance_scale <= 1): ip_adapter_image_embeds=[embeds[1:]]",
            "",
        ]
    )


@dataclass(frozen=True)
class IPAdapterSettings:
    """Raises ValueError for a scale out of range."""

    weights: str = field(
        default="",
        metadata={
            "help": "FILE.safetensors, REPOSITORY:PATH.safetensors or a folder; the embedded ones, or the published "
            "ones for the base"
        },
    )
    image_encoder: str = field(
        default="", metadata={"help": "a CLIP folder, hub id or REPOSITORY:FOLDER; the weights' own"}
    )
    scale: float = field(default=0.6, metadata={"help": "of the attention to the picture, 0 (text alone) to 2"})
    background: Background = field(
        default="keep", metadata={"help": "of the picture: keep (the paper), or a colour in its place; needs a mask"}
    )

    def __post_init__(self) -> None:
        if not 0 <= self.scale <= 2:
            raise ValueError(f"scale {self.scale} must be in 0 ... 2")


@register_method("ip-adapter")
class IPAdapter(ZeroShotMethod):
    """Four tokens of the picture's global embedding."""

    Settings = IPAdapterSettings
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"scale": 0.5},  # of the authors' readme, where there is text beside the picture
        "small": {"scale": 1.0},
    }
    handler = IPAdapterHandler()

    @torch.no_grad()
    def read(self, subject: Subject, base: Base, settings: IPAdapterSettings) -> Concept:
        crossing_sites(base.denoiser, self.name)
        image = shown(subject, settings.background)
        given = settings.weights or standard_weights(self.name, base)
        weights = open_adapter(self.name, given, base)
        projection, _ = adapter(self.name, weights, base)
        reads = str(projection.reads)
        width = int(weights.tensors[_READS[type(projection)]].shape[1])
        encoder = settings.image_encoder or encoder_of(weights, reads, width)
        check_encoder(weights, encoder)
        features, null = image_features(image, encoder, reads, base.device)
        if features.shape[-1] != width:
            raise ArtefactError(
                f"image_encoder {encoder} gives {reads} features of width {features.shape[-1]}, and {weights.name} "
                f"reads {width}: give the image encoder that it was trained with"
            )
        features, null = features.cpu(), null.cpu()
        tensors = {
            "tokens": projection(features)[0],
            "null": projection(null)[0],
            "features": features[0],
            "features_null": null[0],
        }
        own = asdict(settings) | {"weights": given, "image_encoder": encoder, "signature": weights.signature}
        return Concept.create(self.name, subject, base, word=subject.noun, tensors={FILE: tensors}, settings=own)


_READS = {
    ImageProjection: "image_proj.proj.weight",
    FullProjection: "image_proj.proj.0.weight",
    Resampler: "image_proj.proj_in.weight",
}


@register_method("ip-adapter-plus")
class IPAdapterPlus(IPAdapter):
    """Tokens that learned queries read of the picture's patches."""
