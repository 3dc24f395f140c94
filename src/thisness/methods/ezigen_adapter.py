"""EZIGen's adapter: attention from the picture to features of the subject, between self- and cross-attention.

    u  = norm(h)                                                     `Site.forward`
    q  = Wq u;  k = Wk [u; g s];  v = Wv [u; g s]                    `Site.project` (once a subject), `attend`
    a  = Wo softmax(q k^T / sqrt(d)) v
    h' = h + scale (a + u)      residual "official": the released code  } `Site.forward`
    h' = h + scale gate a       residual "plain": the paper, gated      }

u: positions of the picture; s: features of the subject, what enters self-attention of the same block. Without a
subject its keys are absent, which is not the same as zero keys.

Source: Duan et al., EZIGen: Enhancing Zero-Shot Personalized Image Generation with Precise Subject Encoding and
Decoupled Guidance (arXiv 2409.08091), eq. 3; gate and residuals as in their code and in docs/ezigen.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import Context, Intervention
from ..attention import Site as Place
from ..attention.slots import blocks_of
from ..errors import ArtefactError, ConfigurationError, raise_all

RESIDUALS = ("plain", "official")
UNSUBJECT = "unsubject"  # role of rows that read the sentence, and no subject


@dataclass(frozen=True, eq=False)
class KeysValues:
    """What one site reads of a subject.

    Attributes:
        keys, values: (1 or rows, subject tokens, C).
        bias: (subject tokens,) added to the logits, or None for none.
    """

    keys: Tensor
    values: Tensor
    bias: Tensor | None = None

    def rows(self, count: int) -> KeysValues:
        """One row for each of `count`."""
        return KeysValues(self.keys.expand(count, -1, -1), self.values.expand(count, -1, -1), self.bias)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v. q: (B, Lq, C); k, v: (B, Lk, C); bias: (Lk,) -> (B, Lq, C)."""
    q, k, v = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (q, k, v))
    if q.requires_grad or k.requires_grad:  # the fused kernel's backward pass is slow on a CPU
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        out = (scores if bias is None else scores + bias).softmax(-1) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype)[None])
    return out.transpose(1, 2).flatten(-2)


class Site(nn.Module):
    """The adapter at one transformer block. width: C; heads: of its attention."""

    def __init__(self, width: int, heads: int, residual: str = "plain") -> None:
        super().__init__()
        self.heads, self.residual = heads, residual
        self.norm = nn.LayerNorm(width)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.to_out = nn.Linear(width, width)
        self.feature_scale = nn.Parameter(torch.ones(()))  # g
        if residual == "plain":
            self.gate = nn.Parameter(torch.zeros(()))

    def project(self, features: Tensor, bias: Tensor | None = None) -> KeysValues:
        """The subject's keys and values. features: (B, tokens, C), what entered self-attention."""
        scaled = self.feature_scale * features
        return KeysValues(self.to_k(scaled), self.to_v(scaled), bias)

    def forward(self, hidden: Tensor, subject: KeysValues | None, scale: float = 1.0) -> Tensor:
        """hidden: (B, L, C), the residual stream; subject: of 1 or B rows, None for none."""
        u = self.norm(hidden)
        q, k, v, bias = self.to_q(u), self.to_k(u), self.to_v(u), None
        if subject is not None:
            subject = subject.rows(len(hidden))
            if subject.bias is not None:
                bias = torch.cat([subject.bias.new_zeros(k.shape[1]), subject.bias])
            k, v = torch.cat([k, subject.keys], 1), torch.cat([v, subject.values], 1)
        a = self.to_out(attend(q, k, v, self.heads, bias))
        if self.residual == "official":
            return hidden + scale * (a + u)
        return hidden + scale * self.gate * a

    @torch.no_grad()
    def mass(self, hidden: Tensor, subject: KeysValues) -> Tensor:
        """How much of its attention each position pays to the subject, over the heads: (B, L, C) -> (B, L)."""
        u, subject = self.norm(hidden), subject.rows(len(hidden))
        q, own, other = (
            each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (self.to_q(u), self.to_k(u), subject.keys)
        )
        scores = q @ torch.cat([own, other], 2).transpose(-1, -2) / math.sqrt(q.shape[-1])
        if subject.bias is not None:
            scores = scores + torch.cat([subject.bias.new_zeros(own.shape[2]), subject.bias])
        return scores.softmax(-1)[..., own.shape[2] :].sum(-1).mean(1)


class EZIGenAdapter(nn.Module):
    """One `Site` for each transformer block, in the order in which they run. It is no part of the denoiser.

    Args:
        names: of the blocks' cross-attentions.
        widths, heads: of each.
        residual: "plain" (gated, as new) or "official" (the released weights).
    """

    def __init__(
        self, names: Sequence[str], widths: Sequence[int], heads: Sequence[int], residual: str = "plain"
    ) -> None:
        super().__init__()
        if residual not in RESIDUALS:
            raise ConfigurationError(f"residual {residual!r}: expected one of {', '.join(RESIDUALS)}")
        self.names, self.widths, self.heads, self.residual = tuple(names), tuple(widths), tuple(heads), residual
        sizes = zip(self.widths, self.heads, strict=True)
        self.sites = nn.ModuleList(Site(width, count, residual) for width, count in sizes)

    @classmethod
    def of(cls, denoiser: Any, residual: str = "plain", choice: str = "all") -> EZIGenAdapter:
        """A new one for a denoiser: copies of each block's self-attention and its norm, gates closed.

        Args:
            denoiser: a UNet of diffusers.
            choice: "all" blocks, or the "first" of each transformer, as the released code has it.
        """
        blocks = {
            place: block
            for place, block in blocks_of(denoiser).items()
            if choice == "all" or ".transformer_blocks.0." in place.name
        }
        widths = [block.attn1.to_q.in_features for block in blocks.values()]
        heads = [block.attn1.heads for block in blocks.values()]
        made = cls([place.name for place in blocks], widths, heads, residual)
        with torch.no_grad():
            site: Any
            for site, block in zip(made.sites, blocks.values(), strict=True):
                site.norm.load_state_dict(block.norm1.state_dict())
                for name in ("to_q", "to_k", "to_v"):
                    getattr(site, name).weight.copy_(getattr(block.attn1, name).weight)
                site.to_out.load_state_dict(block.attn1.to_out[0].state_dict())
        return made

    @property
    def sizes(self) -> dict[str, Any]:
        """JSON data from which `from_weights` makes one of the same sizes."""
        return {
            "sites": list(self.names), "widths": list(self.widths), "heads": list(self.heads),
            "residual": self.residual,
        }  # fmt: skip

    @classmethod
    def from_weights(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor], denoiser: Any) -> EZIGenAdapter:
        """One with given weights, for a denoiser.

        Raises:
            ArtefactError: not the weights of an adapter, or for another denoiser.
        """
        try:
            made = cls(config["sites"], config["widths"], config["heads"], config["residual"])
        except (KeyError, TypeError, ValueError) as error:
            raise ArtefactError(f"config.json of EZIGen's weights lacks or garbles its sizes ({error})") from None
        from ..files import compare_shapes

        expect = {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()}
        compare_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, expect, "EZIGen's weights")
        made.check(denoiser)
        made.load_state_dict(dict(tensors))
        return made.eval().requires_grad_(False)

    def check(self, denoiser: Any) -> None:
        """Raises: ArtefactError: made for blocks that the denoiser does not have."""
        blocks = {site.name: block.attn1.to_q.in_features for site, block in blocks_of(denoiser).items()}
        wrong = [
            f"{name} has {blocks.get(name, 'no')} channels here, {width} in the adapter"
            for name, width in zip(self.names, self.widths, strict=True)
            if blocks.get(name) != width
        ]
        raise_all(wrong, ArtefactError, "the adapter was made for another denoiser")

    def project(self, features: Sequence[Tensor], bias: Sequence[Tensor | None] | None = None) -> list[KeysValues]:
        """Keys and values of a subject at each site. features: for each site (rows, tokens, C)."""
        biases = bias or [None] * len(self.sites)
        sites: Any = self.sites
        return [site.project(each, b) for site, each, b in zip(sites, features, biases, strict=True)]


class SubjectAttention(Intervention):
    """The adapter at work, in the last steps of a run.

    Rows of the roles "cond" and "uncond" read the subject, those of the role "unsubject" have the adapter without
    one; all others are left alone. With a guidance of the subject's own (eps: predictions, 0: absent)

        eps(0, 0) + w_t [eps(text, 0) - eps(0, 0)] + w_s [eps(text, subject) - eps(text, 0)]

    Args:
        adapter: for the denoiser.
        subject: its keys and values at each site, of 1 row or of one for each sample.
        share: of the steps, the last ones, in which it acts.
        scale: 0 takes the adapter away, 1 is as trained.
        guidance: w_s; None guides by the text alone, and "uncond" has the subject, too (the released code).
    """

    def __init__(
        self,
        adapter: EZIGenAdapter,
        subject: Sequence[KeysValues],
        share: float = 1.0,
        scale: float = 1.0,
        guidance: float | None = None,
    ) -> None:
        self.adapter, self.subject = adapter, list(subject)
        self.share, self.scale, self.guidance = share, scale, guidance
        self.number = {name: n for n, name in enumerate(adapter.names)}
        self.masses: list[Tensor] | None = None  # of "cond" rows, (samples, L) of each call; kept where it is a list

    def match(self, site: Place) -> bool:
        return site.name in self.number

    def active(self, context: Context) -> bool:
        return context.step >= first_step(context.steps, self.share)

    def between(self, site: Place, hidden: Tensor, context: Context) -> Tensor:
        n = self.number[site.name]
        adapter: Any = self.adapter.sites[n]
        if not context.rows:
            return adapter(hidden, self.subject[n], self.scale)
        reading = ("cond", "uncond") if self.guidance is None else ("cond",)
        told = [i for i, row in enumerate(context.rows) if row.role in reading]
        free = [i for i, row in enumerate(context.rows) if row.role in {"uncond", UNSUBJECT} - set(reading)]
        if self.masses is not None:
            cond = [i for i, row in enumerate(context.rows) if row.role == "cond"]
            self.masses.append(self.looked(n, hidden[cond], cond, context))
        out = hidden
        for rows, reads in ((told, True), (free, False)):
            if not rows:
                continue
            index = torch.tensor(rows, device=hidden.device)
            own = hidden if len(rows) == len(hidden) else hidden[index]
            new = self.told(n, own, rows, context) if reads else adapter(own, None, self.scale)
            if len(rows) == len(hidden):
                return new
            out = out.index_copy(0, index, new)
        return out

    def told(self, n: int, hidden: Tensor, rows: list[int], context: Context) -> Tensor:
        """What site n makes of rows that read the subject; hidden: (len(rows), L, C)."""
        adapter: Any = self.adapter.sites[n]
        return adapter(hidden, self._of(self.subject[n], rows, context), self.scale)

    def looked(self, n: int, hidden: Tensor, rows: list[int], context: Context) -> Tensor:
        """How much rows attend to the subject at site n, (len(rows), L)."""
        adapter: Any = self.adapter.sites[n]
        return adapter.mass(hidden, self._of(self.subject[n], rows, context))

    def branches(self, roles: tuple[str, ...], context: Context) -> tuple[str, ...]:
        return roles if self.guidance is None or "cond" not in roles else (*roles, UNSUBJECT)

    def guided(self, predictions: Mapping[str, Tensor], scale: float, context: Context) -> Tensor | None:
        if self.guidance is None or UNSUBJECT not in predictions:
            return None
        text, subject = predictions[UNSUBJECT], predictions["cond"]
        empty = predictions.get("uncond", text)
        return empty + scale * (text - empty) + self.guidance * (subject - text)

    @staticmethod
    def _of(subject: KeysValues, rows: list[int], context: Context) -> KeysValues:
        """What these rows read."""
        if len(subject.keys) == 1:
            return subject
        samples = [context.rows[i].sample for i in rows]
        return KeysValues(subject.keys[samples], subject.values[samples], subject.bias)


def appearance_steps(steps: int, share: float) -> int:
    """n_app = round(share * steps), half up: how many of the last steps have the subject."""
    return min(max(math.floor(share * steps + 0.5 + 1e-9), 0), steps)


def first_step(steps: int, share: float) -> int:
    """Number, from 0, of the first step with the subject."""
    return steps - appearance_steps(steps, share)
