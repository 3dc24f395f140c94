"""Architectures of the embedded FLUX: diffusers' and transformers' own classes, sized for a laptop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .models import LATENT_CHANNELS, TEXT_LENGTH, make_text_encoder, make_vae

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
    from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
    from transformers import CLIPTextModel, CLIPTokenizer, SiglipVisionModel, T5EncoderModel, T5Tokenizer

CHANNELS = 16  # of latents
SENTENCE = 40  # tokens of T5
POOLED_LENGTH = TEXT_LENGTH  # tokens of CLIP
STATES, POOLED = 128, 96  # widths of T5's states and of CLIP's
HEADS, HEAD = 4, 36
LOOK, PATCH = 72, 8  # side of what the tower of Redux sees, and of one of its 81 patches
GUIDED = 3.0  # what the check and the previews draw with


def make_flux_vae() -> AutoencoderKL:
    """8x down, 16 latent channels, no quantising layers, 1.7 M parameters."""
    return make_vae(CHANNELS, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0)


@torch.no_grad()
def widened(vae: AutoencoderKL) -> AutoencoderKL:
    """The autoencoder of `playroom-sd` with 16 channels: the first 8 are its own, the others are to be learned."""
    made, old = make_flux_vae(), LATENT_CHANNELS
    state = {name: value.clone() for name, value in vae.state_dict().items() if "quant_conv" not in name}
    parameters = dict(vae.state_dict())
    quant, post = parameters["quant_conv.weight"][:, :, 0, 0], parameters["post_quant_conv.weight"][:, :, 0, 0]
    out, bias = state.pop("encoder.conv_out.weight"), state.pop("encoder.conv_out.bias")
    folded = torch.einsum("oi,ichw->ochw", quant, out)
    shift = quant @ bias + parameters["quant_conv.bias"]
    fresh = made.encoder.conv_out.weight.data * 0.3
    weight, moved = fresh.clone(), torch.zeros(2 * CHANNELS)
    moved[CHANNELS:] = -4.0
    for half in (0, 1):  # means, then logarithms of variances
        weight[half * CHANNELS : half * CHANNELS + old] = folded[half * old : (half + 1) * old]
        moved[half * CHANNELS : half * CHANNELS + old] = shift[half * old : (half + 1) * old]
    state |= {"encoder.conv_out.weight": weight, "encoder.conv_out.bias": moved}
    first = state.pop("decoder.conv_in.weight")
    read = made.decoder.conv_in.weight.data * 0.3
    read[:, :old] = torch.einsum("ochw,ci->oihw", first, post)
    added = torch.einsum("ochw,c->o", first, parameters["post_quant_conv.bias"])
    state |= {"decoder.conv_in.weight": read, "decoder.conv_in.bias": state["decoder.conv_in.bias"] + added}
    made.load_state_dict(state)
    return made


def build_t5_tokenizer() -> T5Tokenizer:
    """Unigram of T5's kind, 40 tokens long: a piece for every word that the world's captions use, and letters."""
    import string
    from collections import Counter
    from math import log

    from transformers import T5Tokenizer

    from .captions import ALWAYS, BROADEST, OFTEN, PARENTS, caption
    from .recipes.text import STRANGERS
    from .world import random_scene, rng_of

    counts: Counter[str] = Counter()
    for number in range(20000):
        counts.update(caption(random_scene(number), rng_of("bpe", number), ALWAYS if number % 2 else OFTEN).split())
    counts.update([*STRANGERS, *PARENTS.values(), BROADEST] * 50)
    total, mark = sum(counts.values()), "\u2581"
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), (mark, -8.0)]
    pieces += [(mark + word, log(count / total)) for word, count in sorted(counts.items()) if len(word) > 1]
    for character in string.ascii_letters + string.digits + "-.,;:!?'\"()<>_*&/+":
        pieces += [(character, -14.0), (mark + character, log((counts[character] + 1) / total))]
    made = T5Tokenizer(vocab=list(dict(pieces).items()), extra_ids=0)
    made.model_max_length = SENTENCE
    return made


def make_t5(tokenizer: T5Tokenizer) -> T5EncoderModel:
    """Three layers, width 128."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=-(-len(tokenizer) // 32) * 32,
            d_model=STATES,
            d_kv=32,
            d_ff=256,
            num_layers=3,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            is_encoder_decoder=False,
            use_cache=False,
            dropout_rate=0.0,
        )
    )


def make_flux_clip(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two layers, width 96, with the tokenizer of `playroom-sd`; its state at the end mark is what is used."""
    return make_text_encoder(tokenizer, POOLED, layers=2, hidden=256)


def make_transformer(**changes: Any) -> FluxTransformer2DModel:
    """2 blocks of two streams, 4 of one, 4 heads of 36: 3.0 M parameters. Guidance is an input, as in dev."""
    from diffusers import FluxTransformer2DModel

    sizes: dict[str, Any] = {
        "in_channels": 4 * CHANNELS,
        "num_layers": 2,
        "num_single_layers": 4,
        "attention_head_dim": HEAD,
        "num_attention_heads": HEADS,
        "joint_attention_dim": STATES,
        "pooled_projection_dim": POOLED,
        "guidance_embeds": True,
        "axes_dims_rope": (4, 16, 16),
    }
    return FluxTransformer2DModel(**sizes | changes)


def make_flow_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """As FLUX.1 dev's: the shift follows the number of tokens."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)


def make_tower() -> SiglipVisionModel:
    """Three layers, width 96, 81 patches of 8 px; without a pooling head."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    return SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=LOOK,
            patch_size=PATCH,
            vision_use_head=False,
        )
    )


def make_redux() -> ReduxImageEncoder:
    """An MLP from the tower's width to T5's."""
    from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder

    return ReduxImageEncoder(redux_dim=96, txt_in_features=STATES)


def packed(latents: Tensor) -> Tensor:
    """(B, 16, 16, 16) -> (B, 64, 64), see `bases.flux.pack`."""
    from ..bases.flux import pack

    return pack(latents)
