"""Low-rank weights and learned words as kohya-ss writes them and AUTOMATIC1111 and ComfyUI read them.

    unet.down_blocks.0.attentions.0.proj_in.lora_A.weight  lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight
    text_encoder.encoder.layers.0.self_attn.q_proj.lora_B  lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up
    of two text encoders (SDXL)                            lora_te1_..., lora_te2_...

Source: kohya-ss/sd-scripts, networks/lora.py; the blocks of the UNet keep diffusers' names, which all of them read, for
SDXL too.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import ConfigurationError
from ..files import listed
from .lora import pairs_of

WORDS = ("clip_l", "clip_g")  # of SDXL's two encoders, in their order
WORD_KEYS = {
    "sdxl": {"text_encoder": "clip_l", "text_encoder_2": "clip_g"},
    "flux": {"text_encoder": "clip_l", "text_encoder_2": "t5"},
}
"""By family and text encoder: the name of its rows in a file of words for several encoders."""


def kohya_lora(
    tensors: Mapping[str, Tensor], two_encoders: bool, name: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Names, and the metadata that tools show.

    Args:
        tensors: "PART.MODULE.lora_A.weight" (rank, in ...), "PART.MODULE.lora_B.weight" (out, rank ...), to be applied
            with scale 1: alpha is the rank.
        two_encoders: the base has two text encoders.
        name: that tools show.

    Raises:
        ConfigurationError: weights of a part that the format does not know.
    """
    pairs = pairs_of(tensors)
    two_encoders = two_encoders or any(module.startswith("text_encoder_2.") for module in pairs)
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te1" if two_encoders else "lora_te"}
    prefixes["text_encoder_2"] = "lora_te2"
    if unknown := [module for module in pairs if module.partition(".")[0] not in prefixes]:
        raise ConfigurationError(f"the format of kohya has no place for {listed(unknown)}: export to diffusers")
    written: dict[str, Tensor] = {}
    for module, (a, b) in pairs.items():
        part, _, rest = module.partition(".")
        if part != "unet" and not rest.startswith("text_model."):  # as before transformers 5
            rest = f"text_model.{rest}"
        key = f"{prefixes[part]}_{rest.replace('.', '_')}"
        written |= {f"{key}.lora_down.weight": a, f"{key}.lora_up.weight": b}
        written[f"{key}.alpha"] = torch.tensor(float(a.shape[0]))
    ranks = {a.shape[0] for a, _ in pairs.values()}
    rank = str(max(ranks)) if len(ranks) == 1 else "Dynamic"
    facts = {"ss_network_module": "networks.lora", "ss_network_dim": rank, "ss_network_alpha": rank}
    return written, {**facts, "ss_output_name": name}


def kohya_words(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A word's rows: "emb_params" (tokens, width) of one encoder, "clip_l" and "clip_g" of two."""
    if len(rows) == 1:
        return {"emb_params": next(iter(rows.values()))}
    return {key: rows[encoder] for key, encoder in zip(WORDS, sorted(rows), strict=True)}
