"""FLUX's attention: diffusers' `FluxAttnProcessor`, with places where interventions act.

With no intervention active it computes the same operations in the same order, so the same bits.

Joint attention reads text and picture in one sequence, the text first: queries, keys, outputs and maps are over all of
it. What differs from a UNet's attention: `inputs` gets the picture's rows (all rows in "single" layers) and the text's;
`qkv` gets queries and keys that are normed and rotated already, so that recorded ones keep the positions they had.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigurationError
from .context import Context
from .intervention import Intervention
from .processor import probabilities
from .sites import Site

TAKE_MASKS = ("native", "_native", "flex", "xformers")  # beginnings of the names of back-ends that apply any mask


class HookedFluxProcessor:
    """Joint attention of a FLUX transformer, with interventions.

    Attributes:
        original: the processor in whose place this one is.
        site: where it is.
        interventions: that match the site, in the order in which they act.
        context: shared by all sites.
    """

    def __init__(self, original: Any, site: Site, interventions: Sequence[Intervention], context: Context) -> None:
        self.original, self.site, self.interventions, self.context = original, site, tuple(interventions), context
        self._attention_backend, self._parallel_config = original._attention_backend, original._parallel_config

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the model made meanwhile is a plain one: what is attached stays with the original model."""
        return self.original

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Any = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """hidden_states: (B, N, width), in "single" layers text and picture; encoder_hidden_states: (B, M, width)."""
        site, context = self.site, self.context
        acting = [each for each in self.interventions if each.active(context)]
        for each in acting:
            text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            hidden_states, text = each.inputs(site, hidden_states, text, context)
            encoder_hidden_states = None if encoder_hidden_states is None else text

        q, k, v = projected(attn, hidden_states, encoder_hidden_states, image_rotary_emb)
        if acting:
            flat = (each.flatten(2) for each in (q, k, v))  # (B, L, H*D)
            q, k, v = flat
            for each in acting:
                q, k, v = each.qkv(site, attn, q, k, v, context)
            q, k, v = (each.unflatten(-1, (-1, attn.head_dim)) for each in (q, k, v))
        plain = [each for each in acting if type(each).attend is Intervention.attend]
        own = [each for each in acting if type(each).attend is not Intervention.attend]
        mask = self._mask(plain, q, k, attention_mask)

        readers = [e for e in acting if e.reads_probs(site, q.transpose(1, 2), k.transpose(1, 2), context)]
        out = None
        if len(own) == 1 and mask is None and not readers:
            made = own[0].attend(site, q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), context)
            out = None if made is None else made.transpose(1, 2)
        if out is None:
            mask = self._mask(own, q, k, mask)
        if readers:
            probs = probabilities(q.transpose(1, 2), k.transpose(1, 2), _additive(mask, q))
            for each in readers:
                probs = each.probs(site, probs, context)
            if any(each.edits_probs for each in readers):
                out = (probs.to(v.dtype) @ v.transpose(1, 2)).transpose(1, 2)
        if out is None:
            out = self._attend(q, k, v, mask)
        for each in acting:
            heads = out.transpose(1, 2)
            changed = each.extra(site, attn, q.transpose(1, 2), heads, context)
            out = out if changed is heads else changed.transpose(1, 2)
        return given_back(attn, out.flatten(2, 3).to(q.dtype), encoder_hidden_states)

    def _mask(self, acting: Sequence[Intervention], q: Tensor, k: Tensor, mask: Any) -> Any:
        """What was given where nobody changes it, else with what interventions add."""
        if isinstance(mask, Tensor) and mask.shape[-1] < k.shape[1]:  # keys were appended: all see them
            mask = F.pad(mask, (0, k.shape[1] - mask.shape[-1]), value=mask.dtype == torch.bool)
        for each in acting:
            if type(each).mask is not Intervention.mask:
                added = each.mask(self.site, q.transpose(1, 2), k.transpose(1, 2), _additive(mask, q), self.context)
                mask = None if added is None else added.to(q.dtype)
        return mask

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        backend = self._attention_backend
        name = str(getattr(backend, "value", backend))
        if mask is not None and backend is not None and not name.startswith(TAKE_MASKS):
            raise ConfigurationError(
                f"the attention back-end {name!r} leaves masks out, which this needs: "
                'transformer.set_attention_backend("native")'
            )
        return dispatch_attention_fn(q, k, v, attn_mask=mask, backend=backend, parallel_config=self._parallel_config)


def projected(
    attn: Any, hidden: Tensor, text: Tensor | None, rotary: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a joint sequence, text first, normed and rotated: (B, L, H, D) each."""
    from diffusers.models.embeddings import apply_rotary_emb

    parts = [
        each.unflatten(-1, (-1, attn.head_dim)) for each in (attn.to_q(hidden), attn.to_k(hidden), attn.to_v(hidden))
    ]
    q, k, v = attn.norm_q(parts[0]), attn.norm_k(parts[1]), parts[2]
    if text is not None and attn.added_kv_proj_dim is not None:
        own = [
            part(text).unflatten(-1, (-1, attn.head_dim))
            for part in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        ]
        q = torch.cat([attn.norm_added_q(own[0]), q], 1)
        k = torch.cat([attn.norm_added_k(own[1]), k], 1)
        v = torch.cat([own[2], v], 1)
    if rotary is not None:
        q = apply_rotary_emb(q, rotary, sequence_dim=1)
        k = apply_rotary_emb(k, rotary, sequence_dim=1)
    return q, k, v


def given_back(attn: Any, out: Tensor, text: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
    """What the heads gave, (B, L, H*D), as the block expects it: the picture's rows and the text's, or all of them."""
    if text is None:
        return out
    length = text.shape[1]
    own, out = out.split_with_sizes([length, out.shape[1] - length], 1)
    return attn.to_out[1](attn.to_out[0](out.contiguous())), attn.to_add_out(own.contiguous())


def _additive(mask: Any, q: Tensor) -> Tensor | None:
    """A mask of True where a key is read, as what is added to the scores."""
    if mask is None or (isinstance(mask, Tensor) and mask.dtype != torch.bool):
        return mask
    if not isinstance(mask, Tensor):
        raise ConfigurationError("an intervention cannot add to a block mask: give the mask as a tensor")
    return torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, float("-inf"))
