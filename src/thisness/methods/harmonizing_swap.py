"""The self-attention swap at work: `--attach attention-swap`.

Beside the run a second process denoises the same noise, reading the visual words alone. In a window of steps, in the
decoder's self-attention, the subject's positions attend to that process instead of their own picture. Where the subject
is comes from its word's cross-attention. Only the run's own latents become pictures.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention import ATTACHMENTS, Context, Intervention, MaskAttention, Rows, Site, crossing_sites, sites_of
from ..conditioning import Sentence
from ..errors import ConfigurationError
from ..sampling.companion import Companion, Run
from .harmonizing import assigned, attention_swap, grid_of, window
from .harmonizing_trajectory import KeysValues, SubjectTrajectory
from .harmonizing_words import KeepClass, Visual, chosen_slot, image_tokens, visual_only, visual_positions

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"start": 0.1, "stop": 0.7},
    "mean": {"start": 0.1, "stop": 0.7},
    "robust": {"start": 0.2, "stop": 0.6},
}
SMALLEST = 8  # side of the coarsest map that `mask_layers=auto` takes
PLAUSIBLE = (0.01, 0.9)  # share of the picture that a subject covers


@dataclass(frozen=True)
class AttentionSwap:
    """Settings of the attachment "attention-swap". Those that are None are the preset's.

    Args:
        start, stop: the window, as fractions of the denoiser's calls; equal: no swap at all.
        layers: self-attention that is swapped: decoder (its layers at half the latents' side and finer), coarse (its
            others), all; or sides of grids and patterns of names, "16,up_blocks.3*".
        mask: attention (from the subject's word), or everywhere.
        mask_layers: cross-attention that the mask comes from: auto (the grid of a quarter of the latents' side, but 8x8
            at least, before the first swapped layer where there are any); or as `layers`. Where some of them come
            after a swapped layer, the mask is the step before's.
        mask_words: the word with its noun, as far as they are in the sentence (all), or one of them.
        threshold: of the map stretched to 0 ... 1; or otsu: where its values fall into two groups, for each map.
        resize: nearest (the mask) or bilinear (the map).
        visual: what the second branch reads, see `harmonizing_words.visual_only`.
        keep_class: whether the noun is in it.
        cfg: both: unguided rows read unguided ones, guided ones guided ones; cond: the guided rows alone.
        aux_cfg: guide the second branch, too; false takes half its cost, and implies cfg=cond.
        noise: of the second branch: shared with the picture, or independent.
        compute: positions of the subject alone (gather) or all (dense); auto: gather on a CPU.
        sequential: the second branch in calls of its own, for less memory.
        slot: the placeholder whose concept is meant, where there are several: one swap each. Where the maps of several
            are over their thresholds, the largest decides whose the position is.
        preset: paper, mean or robust.
    """

    about_concepts: ClassVar[bool] = True

    start: float | None = None
    stop: float | None = None
    layers: str | int = "decoder"
    mask: Literal["attention", "everywhere"] = "attention"
    mask_layers: str | int = "auto"
    mask_words: Literal["all", "word", "noun"] = "all"
    threshold: float | Literal["otsu"] = 0.3
    resize: Literal["nearest", "bilinear"] = "nearest"
    visual: Visual = "null_text"
    keep_class: KeepClass = "auto"
    cfg: Literal["both", "cond"] = "both"
    aux_cfg: bool = True
    noise: Literal["shared", "independent"] = "shared"
    compute: Literal["auto", "gather", "dense"] = "auto"
    sequential: bool = False
    slot: str = ""
    preset: Literal["paper", "mean", "robust"] = "paper"
    trajectory: SubjectTrajectory | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, value in PRESETS.get(self.preset, PRESETS["paper"]).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        first, last = self.fractions
        wrong = []
        if not 0 <= first <= last <= 1:
            wrong.append(f"start {first:g} and stop {last:g} must be in 0 ... 1, start not after stop")
        if self.threshold != "otsu" and not 0 <= self.threshold <= 1:
            wrong.append(f"threshold {self.threshold} must be in 0 ... 1, or otsu")
        if wrong:
            raise ValueError("; ".join(wrong))

    @property
    def fractions(self) -> tuple[float, float]:
        """The window."""
        return float(self.start or 0.0), float(self.stop or 0.0)

    def sharing(self, trajectory: SubjectTrajectory) -> AttentionSwap:
        """The same, taking second branches from there, and leaving them there."""
        shared = copy.copy(self)
        object.__setattr__(shared, "trajectory", trajectory)
        return shared

    def bound(self, sentence: Sentence) -> BoundSwap:
        """For one sentence.

        Raises:
            ConfigurationError: no concept, its words not in the sentence, no such layers, a compiled model.
        """
        crossing_sites(sentence.base.denoiser, "attention-swap")
        return BoundSwap(self, sentence)


ATTACHMENTS["attention-swap"] = AttentionSwap


class BoundSwap(Intervention):
    """The swap for one sentence."""

    def __init__(self, settings: AttentionSwap, sentence: Sentence) -> None:
        self.settings, self.sentence = settings, sentence
        model = sentence.base.denoiser
        if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
            raise ConfigurationError(
                "attention-swap changes which rows and positions are computed from step to step, which a model under "
                "torch.compile cannot do: use the model as it was loaded"
            )
        self.slot = chosen_slot(sentence, settings.slot, "attention-swap")
        self.role = f"visual:{self.slot}"
        self.conditioning, visible = visual_only(sentence, self.slot, settings.visual, settings.keep_class)
        hidden = [at for at in range(self.conditioning.embeds.shape[1]) if at not in visible]
        self.hider = MaskAttention.hide(hidden, rows=Rows(self.role)) if settings.visual == "drop" and hidden else None
        self.columns, self.rivals = self._columns(), self._rivals()
        own = image_tokens(sentence, self.slot)
        for other in image_tokens(sentence).values():
            if all(other is not each for each in own.values()):
                other.hide_from(self.role)
        sites = list(sites_of(model).values())
        side = trained_side(model)
        self.swapped = swap_layers(sites, settings.layers, side)
        self.mask_sites = mask_layers(sites, settings.mask_layers, side, self.swapped)
        order = [site.name for site in sites]
        first = min(map(order.index, self.swapped))
        self.lag = any(order.index(name) > first for name in self.mask_sites)  # else the mask is of the same step
        self.notes: list[str] = []
        self.areas: list[Tensor] = []  # (samples,) for each step with a mask
        self._begin(range(0), (0, 0))

    def _begin(self, steps: range, size: tuple[int, int]) -> None:
        self.steps, self.size = steps, size
        self.maps: dict[int, list[Tensor]] = {}  # by step: (subjects, samples, h, w), this one first
        self.masks: dict[tuple[int, int], Tensor] = {}  # by step and positions: (samples, positions)
        self.handed: dict[tuple[int, str], dict[str, KeysValues]] = {}  # of this step, by role: (samples, L, heads * d)
        self.replayed: dict[tuple[int, str], dict[str, KeysValues]] = {}
        self.keys: list[str] = []
        self.recorded: list[dict[tuple[int, str, str], KeysValues]] = []

    # --- the second branch ---

    def companion(self, run: Run) -> Companion | None:
        settings, samples = self.settings, len(run.latents)
        steps = window(*settings.fractions, run.calls)
        self._begin(steps, (run.latents.shape[-2], run.latents.shape[-1]))
        self.calls = run.calls
        if not steps:
            return None
        noise = independent_noise(run.latents) if settings.noise == "independent" else None
        guided = settings.aux_cfg and run.negative is not None
        if settings.trajectory is not None:
            self.keys = self._keys(run)
            kept = settings.trajectory.take(self.keys)
            if kept is not None:
                for step, name, role in kept[0]:
                    k, v = (torch.stack([each[step, name, role][part] for each in kept]) for part in (0, 1))
                    self.replayed.setdefault((step, name), {})[role] = (k, v)
                return None
            self.recorded = [{} for _ in range(samples)]
        return Companion(self.role, self.conditioning, steps.stop, guided, noise, settings.sequential)

    def _keys(self, run: Run) -> list[str]:
        """What a second branch depends on: a name for each sample."""
        own: dict[str, Any] = {"options": asdict(run.options), "role": self.role, "layers": self.swapped}
        own["settings"] = {key: getattr(self.settings, key) for key in _DECISIVE}
        own |= {
            "concepts": {slot: each.hash for slot, each in self.sentence.concepts.items()},
            "base": [run.base.signature, str(run.base.dtype), run.base.device.type],
            "scheduler": [type(run.scheduler).__name__, str(sorted(run.scheduler.config.items(), key=str))],
            "window": [run.calls, self.steps.start, self.steps.stop],
            "reads": [digest(self.conditioning.embeds), digest(run.negative.embeds) if run.negative else ""],
        }
        common = json.dumps(own, sort_keys=True, default=str)
        return [
            digest(latents, generator.get_state(), common)
            for latents, generator in zip(run.latents, run.generators, strict=True)
        ]

    # --- where and when ---

    def match(self, site: Site) -> bool:
        masks = self.settings.mask == "attention" and site.name in self.mask_sites
        return site.name in self.swapped or masks or (self.hider is not None and site.kind == "cross")

    def active(self, context: Context) -> bool:
        return context.step < self.steps.stop if self.steps else False

    def swaps(self, site: Site, context: Context) -> bool:
        return site.name in self.swapped and context.step in self.steps

    # --- the mask ---

    def reads_probs(self, site: Site, q: Tensor, k: Tensor, context: Context) -> bool:
        wanted = self.settings.mask == "attention" and site.name in self.mask_sites
        return wanted and context.step >= self.steps.start - self.lag and bool(rows_of_role(context, "cond"))

    def probs(self, site: Site, probs: Tensor, context: Context) -> Tensor:
        cond = probs[rows_of_role(context, "cond")]
        each = (self.columns, *self.rivals)
        found = torch.stack([cond[..., words].sum(-1).mean(1) for words in each])  # (subjects, samples, L)
        grid = grid_of(self.size, found.shape[-1])
        self.maps.setdefault(context.step, []).append(found.detach().float().unflatten(-1, grid))
        return probs

    def subject(self, positions: int, context: Context) -> Tensor | None:
        """Where the subject is in a layer of so many positions, (samples, positions); None before anybody knows."""
        step = context.step - self.lag
        if (step, positions) not in self.masks:
            maps = self.maps.get(step)
            if not maps:
                return None
            finest = max((each.shape[2:] for each in maps), key=lambda shape: shape[0] * shape[1])
            brought = [
                each if each.shape[2:] == finest else F.interpolate(each, finest, mode="bilinear") for each in maps
            ]
            mean, settings = torch.stack(brought).mean(0), self.settings
            mask = assigned(mean, grid_of(self.size, positions), settings.threshold, settings.resize)[0]
            if not any(known == step for known, _ in self.masks):
                self.areas.append(mask.flatten(1).float().mean(1))
            self.masks = {key: each for key, each in self.masks.items() if key[0] == step}
            self.masks[step, positions] = mask.flatten(1)
            self.maps = {number: each for number, each in self.maps.items() if number >= step}
        return self.masks[step, positions]

    # --- the swap ---

    def mask(self, site: Site, q: Tensor, k: Tensor, mask: Tensor | None, context: Context) -> Tensor | None:
        if self.hider is None or site.kind != "cross" or not rows_of_role(context, self.role):
            return mask
        return self.hider.mask(site, q, k, mask, context)

    def qkv(
        self, site: Site, attn: Any, q: Tensor, k: Tensor, v: Tensor, context: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self.swaps(site, context):
            here = {role: rows_of_role(context, role) for role in (self.role, f"{self.role}-uncond")}
            given = {role: (k[rows].detach(), v[rows].detach()) for role, rows in here.items() if rows}
            if given:
                self.handed = {key: each for key, each in self.handed.items() if key[0] == context.step}
                self.handed[context.step, site.name] = given
                self._record(context.step, site.name, given)
        return q, k, v

    def extra(self, site: Site, attn: Any, q: Tensor, out: Tensor, context: Context) -> Tensor:
        if not self.swaps(site, context):
            return out
        at = (context.step, site.name)
        source = self.replayed.get(at) or self.handed.get(at) or {}
        pairs = [("cond", self.role)]
        if self.settings.cfg == "both":
            pairs.insert(0, ("uncond", f"{self.role}-uncond"))
        pairs = [(target, role) for target, role in pairs if role in source and rows_of_role(context, target)]
        if not pairs:
            return out
        rows = [row for target, _ in pairs for row in rows_of_role(context, target)]
        if self.settings.mask == "everywhere":
            inside: Tensor | None = torch.ones(len(rows), q.shape[-2], dtype=torch.bool, device=q.device)
        else:
            inside = self.subject(q.shape[-2], context)
            inside = None if inside is None else inside.repeat(len(pairs), 1)
        if inside is None:
            return out
        keys, values = (torch.cat([source[role][part] for _, role in pairs]).to(q) for part in (0, 1))
        keys, values = (each.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for each in (keys, values))
        if attn.norm_k is not None:
            keys = attn.norm_k(keys)
        gather = self.settings.compute == "gather" or (self.settings.compute == "auto" and q.device.type == "cpu")
        result = out.clone()
        result[rows] = attention_swap(out[rows], q[rows], keys, values, inside, gather=gather).to(out)
        return result

    def _record(self, step: int, name: str, given: dict[str, KeysValues]) -> None:
        trajectory = self.settings.trajectory
        if trajectory is None or not self.recorded:
            return
        for role, (k, v) in given.items():
            for sample, entry in enumerate(self.recorded):
                entry[step, name, role] = (k[sample].clone(), v[sample].clone())
        steps = {done for done, _, _ in self.recorded[0]}
        if len(self.recorded[0]) == len(steps) * len(self.swapped) * len(given) and len(steps) == len(self.steps):
            for key, entry in zip(self.keys, self.recorded, strict=True):
                trajectory.keep(key, entry)
            self.recorded = []

    # --- telling ---

    @property
    def report(self) -> dict[str, Any]:
        """What it did in all batches so far."""
        steps = [self.steps.start, self.steps.stop]
        report: dict[str, Any] = {"name": "attention-swap", "steps": steps, "layers": list(self.swapped)}
        if not self.steps:
            return report | {"says": "attention-swap: the window holds no step, so nothing is swapped"}
        says = f"attention-swap: steps {steps[0]} to {steps[1] - 1} of {self.calls}, {len(self.swapped)} layers"
        if self.areas:
            areas = torch.cat(self.areas)
            low, mean, high = (float(each) for each in (areas.min(), areas.mean(), areas.max()))
            report["mask_area"] = [round(each, 4) for each in (low, mean, high)]
            says += f", subject on {mean:.0%} of the picture ({low:.0%} to {high:.0%})"
            odd = ((areas < PLAUSIBLE[0]) | (areas > PLAUSIBLE[1])).float().mean()
            if odd > 0:
                says += (
                    f"; warning: in {float(odd):.0%} of the steps the mask covers nearly nothing or nearly everything: "
                    "try another threshold"
                )
        return report | {"says": says}

    def _columns(self) -> list[int]:
        """Tokens of the sentence whose maps are the mask."""
        concept = self.sentence.concepts[self.slot]
        spans = self.sentence.filled.tokenize(self.sentence.base.tokenizer)
        word = visual_positions(spans, {self.slot: concept})
        noun = tuple(at for each in spans.slots if each.slot == self.slot for at in each.noun)
        chosen = {"all": word + noun, "word": word, "noun": noun}[self.settings.mask_words]
        if not chosen:
            which = self.settings.mask_words
            raise ConfigurationError(
                f"attention-swap: mask_words={which}: {concept.word.text!r} stands in the sentence without "
                f"{'its noun' if which == 'noun' else 'a word beside its noun'}: leave mask_words=all"
            )
        return sorted(chosen)

    def _rivals(self) -> list[list[int]]:
        """Tokens of the other subjects, whose places are not this one's."""
        sentence = self.sentence
        spans = sentence.filled.tokenize(sentence.base.tokenizer)
        found = []
        for slot, concept in sentence.concepts.items():
            noun = {at for each in spans.slots if each.slot == slot for at in each.noun}
            own = sorted({*visual_positions(spans, {slot: concept}), *noun})
            if slot != self.slot and own:
                found.append(own)
        return found


_DECISIVE = ("visual", "keep_class", "aux_cfg", "noise")


def swap_layers(sites: Sequence[Site], layers: str | int, side: int) -> list[str]:
    """Names of the self-attention layers that `layers` chooses, in the order in which they run.

    Args:
        sites: of the model.
        layers: as in `AttentionSwap`.
        side: of the latents at the size that the model was trained at.

    Raises:
        ConfigurationError: there are none.
    """
    own = [site for site in sites if site.kind == "self"]
    fine = [site for site in own if site.stage == "up" and site.resolution * 2 >= side]
    coarse = [site for site in own if site.stage == "up" and site not in fine]
    named = {"decoder": fine or coarse, "coarse": coarse, "all": own}
    return _found(named.get(str(layers)), own, layers, "layers", "decoder, coarse, all")


def mask_layers(sites: Sequence[Site], layers: str | int, side: int, swapped: Sequence[str]) -> list[str]:
    """Names of the cross-attention layers that the mask comes from."""
    cross = [site for site in sites if site.kind == "cross"]
    if str(layers) != "auto":
        return _found(None, cross, layers, "mask_layers", "auto")
    same = [site.name for site in word_sites(cross, side)]
    order = [site.name for site in sites]
    first = min(map(order.index, swapped))
    return [name for name in same if order.index(name) < first] or same


def word_sites(cross: Sequence[Site], side: int) -> list[Site]:
    """Cross-attention that shows best where words are: the grid of a quarter of the latents' side, 8x8 at least."""
    wanted = max(side // 4, SMALLEST)
    sides = sorted({site.resolution for site in cross})
    chosen = next((each for each in sides if each >= wanted), sides[-1] if sides else 0)
    return [site for site in cross if site.resolution == chosen]


def trained_side(model: Any) -> int:
    """Side of the latents at the size that a denoiser was trained at."""
    size = model.config.sample_size
    return size if isinstance(size, int) else min(size)


def _found(named: Sequence[Site] | None, own: Sequence[Site], layers: str | int, what: str, words: str) -> list[str]:
    if named is None:
        wanted = [each.strip() for each in str(layers).split(",")]
        named = [s for s in own if any(str(s.resolution) == each or fnmatch(s.name, each) for each in wanted)]
    if not named:
        sides = ", ".join(str(each) for each in sorted({site.resolution for site in own}))
        raise ConfigurationError(
            f"attention-swap: {what}={layers} chooses no layer: known are {words}, sides of grids ({sides}) and "
            "patterns of names (up_blocks.2*)"
        )
    return [site.name for site in named]


def rows_of_role(context: Context, role: str) -> list[int]:
    """Rows of the call that is going on."""
    return [number for number, row in enumerate(context.rows) if row.role == role]


def independent_noise(latents: Tensor) -> Tensor:
    """Other noise, decided by each sample's own: (samples, *latent_shape), standard normal."""
    drawn = []
    for each in latents:
        seed = int(digest(each)[:15], 16)
        generator = torch.Generator("cpu").manual_seed(seed)
        drawn.append(torch.randn(each.shape, generator=generator))
    return torch.stack(drawn).to(latents)


def digest(*parts: Tensor | str) -> str:
    """SHA-256 in hexadecimal."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            found.update(part.encode())
        else:
            found.update(str((part.dtype, tuple(part.shape))).encode())
            found.update(part.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
