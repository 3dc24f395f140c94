"""Where a model attends."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import ConfigurationError

Kind = Literal["self", "cross", "dual", "single"]


@dataclass(frozen=True)
class Site:
    """One attention layer.

    Args:
        name: its module: "down_blocks.0.attentions.0.transformer_blocks.0.attn2".
        kind: "self" (among positions of the picture), "cross" (from the picture to the text); "dual" and "single" are
            the joint attention of transformers with two streams and with one.
        layer: its number among all layers of its kind, in the order in which they run, from 0.
        resolution: side of its grid of queries at the size that the model was trained at; 0 where the model does not
            say (FLUX, whose layers all see every position of the text and of the picture).
        stage: "down", "mid", "up", or "" where a model has no such stages.
    """

    name: str
    kind: Kind
    layer: int
    resolution: int
    stage: str = ""


def sites_of(model: Any) -> dict[str, Site]:
    """Every attention layer of a denoiser by name, in the order in which they run.

    Raises:
        ConfigurationError: a kind of model whose layers are not known.
    """
    if hasattr(model, "attn_processors") and hasattr(model.config, "num_single_layers"):
        return _transformer_sites(model)
    if not hasattr(model, "attn_processors") or not hasattr(model.config, "down_block_types"):
        raise ConfigurationError(f"attention of a {type(model).__name__} is not known: expected a UNet of diffusers")
    names = [name.removesuffix(".processor") for name in model.attn_processors]
    order = {"down": 0, "mid": 1, "up": 2}
    names.sort(key=lambda name: order[_stage(name)])  # stable: within a stage the order of registration is kept
    counts: dict[str, int] = {}
    sites = {}
    for name in names:
        kind: Kind = "cross" if model.get_submodule(name).is_cross_attention else "self"
        sites[name] = Site(name, kind, counts.get(kind, 0), _resolution(name, model.config), _stage(name))
        counts[kind] = counts.get(kind, 0) + 1
    return sites


def crossing_sites(model: Any, what: str) -> list[Site]:
    """The cross-attention layers of a denoiser, which something acts on.

    Args:
        what: acts on them, for the message.

    Raises:
        ConfigurationError: there are none.
    """
    found = [site for site in sites_of(model).values() if site.kind == "cross"]
    if not found:
        raise ConfigurationError(
            f"{what} acts on cross-attention, which a {type(model).__name__} does not have: use a base with a UNet, "
            "playroom-sd, sd1.5, sdxl ..."
        )
    return found


def _transformer_sites(model: Any) -> dict[str, Site]:
    dual = [f"transformer_blocks.{at}.attn" for at in range(len(model.transformer_blocks))]
    single = [f"single_transformer_blocks.{at}.attn" for at in range(len(model.single_transformer_blocks))]
    sites = [Site(name, "dual", at, 0) for at, name in enumerate(dual)]
    sites += [Site(name, "single", at, 0) for at, name in enumerate(single)]
    return {site.name: site for site in sites}


def _stage(name: str) -> str:
    found = re.search(r"(?:^|\.)(down|mid|up)_block", name)
    if found is None:
        raise ConfigurationError(f"attention layer {name} is in no known stage of a UNet")
    return found[1]


def _resolution(name: str, config: Any) -> int:
    """Down block i works at 1/2**i of the latents' side, the middle at the last one's, up blocks back to the full."""
    side = config.sample_size if isinstance(config.sample_size, int) else config.sample_size[0]
    last = len(config.down_block_types) - 1
    block = re.search(r"(?:^|\.)(down|up)_blocks\.(\d+)", name)
    if block is None:
        return side // 2**last
    depth = int(block[2]) if block[1] == "down" else last - int(block[2])
    return side // 2**depth
