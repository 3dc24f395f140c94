"""Attention to a picture beside the attention to the text: decoupled cross-attention."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ThisnessError
from .context import Context
from .intervention import Intervention
from .sites import Site

Layers = Mapping[str, tuple[nn.Module, nn.Module]]
"""to_k_ip and to_v_ip, width -> heads * D, by name of the site."""
_GIVEN, _OWN, _NULL = range(3)


class ImageTokens(Intervention):
    """softmax(Q K_text^T / sqrt(D)) V_text + scale * softmax(Q K_ip^T / sqrt(D)) V_ip.

    Rows of the role "cond" read the tokens as adjustments left them (`given`); rows of second processes read the
    picture's own (`tokens`); "uncond" and "...-uncond" rows read those of no picture (`null`). Keys and values are made
    of them once, not at every step.

    Source: Ye et al., IP-Adapter (2023), eq. 5.

    Attributes:
        layers: by name of the site.
        tokens, null: (M, width), of the picture and of none.
        given: (M, width), what the sentence's rows read.
        scale: 0 leaves the text alone, bit for bit.
    """

    def __init__(self, layers: Layers, tokens: Tensor, null: Tensor, scale: float = 1.0) -> None:
        """
        Args:
            layers: where it acts, each with its projections.
            tokens: (M, width).
            null: (M, width).
            scale: of what is added.
        """
        self.layers, self.tokens, self.null, self.scale = dict(layers), tokens, null, scale
        self.given = tokens
        self._values: dict[str, tuple[Tensor, Tensor]] = {}  # given keys and values that are not made of `given`
        self._absent: set[str] = set()
        self._made: dict[str, tuple[Tensor, Tensor]] = {}  # by site: (3, M, heads * D)
        self._laid: dict[str, tuple[object, Tensor, Tensor]] = {}  # by site, for the rows of a call: (B, H, M, D)

    def match(self, site: Site) -> bool:
        return site.name in self.layers

    def active(self, context: Context) -> bool:
        return self.scale != 0

    def change(self, tokens: Tensor) -> None:
        """Let the sentence's rows read other tokens, those of second processes stay.

        Args:
            tokens: (M, width), or several copies of it, each changed in its way: (n M, width).
        """
        self.given = tokens
        self._values.clear()
        self._made.clear()
        self._laid.clear()

    def change_values(self, values: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Let the sentence's rows read other keys and values, (M, heads * D) each, by name of the site."""
        self._values.update(values)
        self._made.clear()
        self._laid.clear()

    def hide_from(self, role: str) -> None:
        """Let rows of a role see no picture: those of a second process that shows another subject."""
        self._absent.add(role)
        self._laid.clear()

    @torch.no_grad()
    def keys_values(self, name: str) -> tuple[Tensor, Tensor]:
        """(3, M, heads * D) each: of `given`, `tokens` and `null`; made at the first call, and after a change.

        Where `given` is n copies, the others are repeated as often, which attention does not notice.
        """
        if name not in self._made:
            to_k, to_v = self.layers[name]
            like = next(to_k.parameters())
            copies = len(self.given) // len(self.tokens)
            read = (self.given, self.tokens.repeat(copies, 1), self.null.repeat(copies, 1))
            each = torch.stack([tokens.to(like) for tokens in read])
            keys, values = to_k(each), to_v(each)
            if name in self._values:
                keys[_GIVEN], values[_GIVEN] = self._values[name]
            self._made[name] = (keys, values)
        return self._made[name]

    def extra(self, site: Site, attn: nn.Module, q: Tensor, out: Tensor, context: Context) -> Tensor:
        if len(context.rows) != len(q):
            raise ThisnessError(
                f"the model was called with {len(q)} rows but the roles of {len(context.rows)} are known: set "
                "context.rows, or sample with thisness.sample, which does"
            )
        laid = self._laid.get(site.name)
        if laid is None or laid[0] != (context.rows, q.dtype, q.device):
            which = [self._read_by(row.role) for row in context.rows]
            keys, values = (
                each[which].to(q).unflatten(-1, (q.shape[1], -1)).transpose(1, 2).contiguous()
                for each in self.keys_values(site.name)
            )
            laid = self._laid[site.name] = ((context.rows, q.dtype, q.device), keys, values)
        return out + self.scale * F.scaled_dot_product_attention(q, laid[1], laid[2]).to(out.dtype)

    def _read_by(self, role: str) -> int:
        if role == "uncond" or role.endswith("-uncond") or role in self._absent:
            return _NULL
        return _GIVEN if role == "cond" else _OWN
