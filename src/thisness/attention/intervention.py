"""What can be done to a model while it runs, and where."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .context import Context
from .sites import Site

if TYPE_CHECKING:
    from ..sampling.companion import Companion, Run


@dataclass(frozen=True)
class Where:
    """A choice of sites and steps; None takes any.

    Args:
        kinds: of `Site.kind`.
        names: patterns of module names, as "up_blocks.*".
        layers: of `Site.layer`.
        resolutions: of `Site.resolution`.
        steps: numbers of steps, from 0: range(4, 20).
    """

    kinds: Collection[str] | None = None
    names: Sequence[str] | None = None
    layers: Collection[int] | None = None
    resolutions: Collection[int] | None = None
    steps: Collection[int] | None = None

    def at(self, site: Site) -> bool:
        """Whether a site is among them."""
        return (
            (self.kinds is None or site.kind in self.kinds)
            and (self.names is None or any(fnmatch(site.name, pattern) for pattern in self.names))
            and (self.layers is None or site.layer in self.layers)
            and (self.resolutions is None or site.resolution in self.resolutions)
        )

    def now(self, context: Context) -> bool:
        """Whether the current step is among them."""
        return self.steps is None or context.step in self.steps


class Intervention:
    """Something done to a model while it runs. Override what you need; each method returns what it was given, changed.

    Several are applied in the order in which they were attached. Shapes: B rows, H heads, Lq queries (positions of the
    picture), Lk keys, D width of a head. Nothing may be changed in place: gradients and other interventions need it.

    Attributes:
        where: at which sites and steps; or override `match` and `active`.
        edits_probs: `probs` changes the probabilities, so that the output must be computed from them. An intervention
            that only looks at them leaves the output bit for bit as it was.
    """

    where: Where = Where()
    edits_probs: bool = False

    def match(self, site: Site) -> bool:
        """Whether it acts at a site; asked once, when it is attached."""
        return self.where.at(site)

    def active(self, context: Context) -> bool:
        """Whether it acts now; asked at each call of a site."""
        return self.where.now(context)

    def inputs(self, site: Site, hidden: Tensor, encoded: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """What queries, and what keys and values are made of: (B, Lq, width), (B, Lk, width)."""
        return hidden, encoded

    def qkv(
        self, site: Site, attn: Any, q: Tensor, k: Tensor, v: Tensor, context: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values before they are split into heads: (B, Lq, H*D), (B, Lk, H*D) twice."""
        return q, k, v

    def mask(self, site: Site, q: Tensor, k: Tensor, mask: Tensor | None, context: Context) -> Tensor | None:
        """What is added to the scores, broadcastable to (B, H, Lq, Lk); q, k: (B, H, L, D)."""
        return mask

    def attend(self, site: Site, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor | None:
        """Attention in the place of the model's own, (B, H, L, D) each -> (B, H, Lq, D); None leaves it. FLUX only.

        Asked where it alone wants to, and nobody adds to the scores or reads probabilities; otherwise its `mask` is
        added to the scores, which must amount to the same.
        """
        return None

    def reads_probs(self, site: Site, q: Tensor, k: Tensor, context: Context) -> bool:
        """Whether `probs` is to be called; they cost a second pass over the scores. q, k: (B, H, L, D)."""
        return self.edits_probs

    def probs(self, site: Site, probs: Tensor, context: Context) -> Tensor:
        """Attention probabilities (B, H, Lq, Lk), each row of which sums to 1."""
        return probs

    def extra(self, site: Site, attn: Any, q: Tensor, out: Tensor, context: Context) -> Tensor:
        """The output of the heads before the projection, (B, H, Lq, D); to add attention to something else."""
        return out

    def between(self, site: Site, hidden: Tensor, context: Context) -> Tensor:
        """A block's residual stream after self-attention and before the cross-attention `site`: (B, Lq, width)."""
        return hidden

    def branches(self, roles: tuple[str, ...], context: Context) -> tuple[str, ...]:
        """Roles of the rows of this step: "uncond" reads the negative sentence, all others the sentence. Sampler only.

        Whoever changes them says in `guided` what their predictions amount to.
        """
        return roles

    def guided(self, predictions: Mapping[str, Tensor], scale: float, context: Context) -> Tensor | None:
        """One prediction of those of the branches, by role; None leaves it to the sampler. Sampler only."""
        return None

    def prediction(self, latents: Tensor, prediction: Tensor, context: Context) -> Tensor:
        """The guided prediction of a step, (samples, *latent_shape), before the scheduler uses it. Sampler only."""
        return prediction

    def latents(self, latents: Tensor, context: Context) -> Tensor:
        """The latents after a step, (samples, *latent_shape). Sampler only."""
        return latents

    def companion(self, run: Run) -> Companion | None:
        """A second denoising process beside the run, or None; asked once, before the first step. Sampler only."""
        return None


def only_schedules(intervention: Intervention) -> bool:
    """Whether it overrides nothing that happens inside attention, so that no processor need be hooked for it."""
    names = ("inputs", "qkv", "mask", "attend", "reads_probs", "probs", "extra")
    kind = type(intervention)
    return not kind.edits_probs and all(getattr(kind, name) is getattr(Intervention, name) for name in names)


def goes_between(intervention: Intervention) -> bool:
    """Whether it does something between self- and cross-attention."""
    return type(intervention).between is not Intervention.between


ATTACHMENTS: dict[str, type] = {}
"""Interventions that can be named in a recipe: each a dataclass of settings whose instances are `Intervention`s, or
`conditioning.SentenceAttachment`s. Importing `thisness.methods` registers them all."""
