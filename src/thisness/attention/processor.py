"""The one attention processor: diffusers' `AttnProcessor2_0`, with places where interventions act.

With no intervention active it computes the same operations in the same order, so the same bits. In the place of the
plain `AttnProcessor`, which training on a CPU uses for its faster backward pass, it goes by the probabilities, which
whoever reads them shares: the same up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .context import Context
from .intervention import Intervention
from .sites import Site


class HookedProcessor:
    """Attention of a UNet, with interventions.

    Attributes:
        original: the processor in whose place this one is.
        site: where it is.
        interventions: that match the site, in the order in which they act.
        context: shared by all sites.
    """

    def __init__(self, original: Any, site: Site, interventions: Sequence[Intervention], context: Context) -> None:
        self.original, self.site, self.interventions, self.context = original, site, tuple(interventions), context
        self.plain = type(original).__name__ == "AttnProcessor"

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the model made meanwhile is a plain one: what is attached stays with the original model."""
        return self.original

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """hidden_states: (B, Lq, width) or (B, width, h, w); encoder_hidden_states: (B, Lk, width), None for self."""
        site, context = self.site, self.context
        acting = [each for each in self.interventions if each.active(context)]
        residual = hidden_states
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        grid = hidden_states.shape if hidden_states.ndim == 4 else None
        if grid is not None:
            hidden_states = hidden_states.view(grid[0], grid[1], grid[2] * grid[3]).transpose(1, 2)
        batch = hidden_states.shape[0]
        if attention_mask is not None:
            keys = (hidden_states if encoder_hidden_states is None else encoder_hidden_states).shape[1]
            attention_mask = attn.prepare_attention_mask(attention_mask, keys, batch)
            attention_mask = attention_mask.view(batch, attn.heads, -1, attention_mask.shape[-1])
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        encoded = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is not None and attn.norm_cross:
            encoded = attn.norm_encoder_hidden_states(encoded)

        for each in acting:
            hidden_states, encoded = each.inputs(site, hidden_states, encoded, context)
        q, k, v = attn.to_q(hidden_states), attn.to_k(encoded), attn.to_v(encoded)
        for each in acting:
            q, k, v = each.qkv(site, attn, q, k, v, context)
        width = k.shape[-1] // attn.heads
        q, k, v = (each.view(batch, -1, attn.heads, width).transpose(1, 2) for each in (q, k, v))
        if attn.norm_q is not None:
            q = attn.norm_q(q)
        if attn.norm_k is not None:
            k = attn.norm_k(k)
        if attention_mask is not None and attention_mask.shape[-1] < k.shape[-2]:  # keys were appended: all see them
            attention_mask = F.pad(attention_mask, (0, k.shape[-2] - attention_mask.shape[-1]))
        for each in acting:
            attention_mask = each.mask(site, q, k, attention_mask, context)
        if attention_mask is not None:
            attention_mask = attention_mask.to(q.dtype)

        readers = [each for each in acting if each.reads_probs(site, q, k, context)]
        out = None
        if readers or self.plain:
            probs = probabilities(q, k, attention_mask)
            for each in readers:
                probs = each.probs(site, probs, context)
            if self.plain or any(each.edits_probs for each in readers):
                out = probs.to(v.dtype) @ v
        if out is None:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask, dropout_p=0.0, is_causal=False)
        for each in acting:
            out = each.extra(site, attn, q, out, context)

        out = out.transpose(1, 2).reshape(batch, -1, attn.heads * width).to(q.dtype)
        out = attn.to_out[1](attn.to_out[0](out))
        if grid is not None:
            out = out.transpose(-1, -2).reshape(grid)
        if attn.residual_connection:
            out = out + residual
        return out / attn.rescale_output_factor


def probabilities(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(D) + mask), in float32.

    Args:
        q: (B, H, Lq, D).
        k: (B, H, Lk, D).
        mask: broadcastable to (B, H, Lq, Lk), or None.

    Returns:
        (B, H, Lq, Lk).

    Source: Vaswani et al., Attention Is All You Need (2017), eq. 1.
    """
    scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    return (scores if mask is None else scores + mask).softmax(-1)
