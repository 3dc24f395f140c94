"""EZIGen with several subjects in one picture: each is attended to inside the region of its own word only.

    maps       of each subject's words, mean over the layout's steps (those without the subjects)    `Regions.probs`
    m_k        over Otsu's threshold, and the largest of all subjects' maps; or given (`--attach region`)
                                                                          `harmonizing.assigned`, `Regions.weights`
    h'         sum_k m_k site(h, subject k) + (1 - sum_k m_k) site(h, no subject)           `RegionAttention.told`

Beyond the paper, whose several subjects share one set of keys, so that similar ones mix. The layout of the first pass
decides for all loops.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention import ATTACHMENTS, Context, Intervention, Site, sites_of
from ..concept import Attached
from ..conditioning import Sentence
from ..errors import ConfigurationError, raise_all
from .ezigen_adapter import SubjectAttention, first_step
from .ezigen_loops import Loops
from .harmonizing import assigned, grid_of
from .harmonizing_swap import rows_of_role, trained_side, word_sites
from .harmonizing_words import chosen_slot

if TYPE_CHECKING:
    from ..bases import Base
    from ..sampling.companion import Run

RASTER = 256  # side in which boxes and masks are kept


class Regions(Intervention):
    """Where each subject goes; watches the words' attention in the first pass.

    Attributes:
        given: by placeholder, (H, W) in [0, 1] of any size; those without one are found.
        areas: by placeholder, share of the picture of each found sample.
    """

    def __init__(self, slots: tuple[str, ...], denoiser: Any, share: float) -> None:
        cross = [site for site in sites_of(denoiser).values() if site.kind == "cross"]
        self.names = {site.name for site in word_sites(cross, trained_side(denoiser))}
        self.slots, self.share = slots, share
        self.given: dict[str, Tensor] = {}
        self.areas: dict[str, list[float]] = {slot: [] for slot in slots}
        self.begin((0, 0))

    def begin(self, size: tuple[int, int]) -> None:
        """Forget the maps of another run. size: of its latents."""
        self.size, self.count = size, 0
        self.maps: Tensor | None = None  # (subjects, samples, h, w), their sum
        self._weights: dict[int, Tensor] = {}

    def companion(self, run: Run) -> None:
        self.begin((run.latents.shape[-2], run.latents.shape[-1]))

    def match(self, site: Site) -> bool:
        return site.name in self.names

    def active(self, context: Context) -> bool:
        return context.step < first_step(context.steps, self.share) and len(self.given) < len(self.slots)

    def reads_probs(self, site: Site, q: Tensor, k: Tensor, context: Context) -> bool:
        return bool(rows_of_role(context, "cond"))

    def probs(self, site: Site, probs: Tensor, context: Context) -> Tensor:
        spans = context.spans["cond"][0]
        mean = probs[rows_of_role(context, "cond")].detach().float().mean(1)  # (samples, positions, words)
        words = torch.stack([mean[..., list(spans.of(slot))].sum(-1) for slot in self.slots])
        words = words.unflatten(-1, grid_of(self.size, words.shape[-1]))
        self.maps = words if self.maps is None else self.maps + words
        self.count += 1
        return probs

    def weights(self, positions: int) -> Tensor:
        """How much each subject, and at last none, counts at each position of a layer: (subjects + 1, 1 or samples,
        positions), of sum 1.

        Raises:
            ConfigurationError: nothing says where a subject goes.
        """
        if positions not in self._weights:
            grid = grid_of(self.size, positions)
            given = {slot: F.adaptive_avg_pool2d(each[None].float(), grid) for slot, each in self.given.items()}
            found: dict[str, Tensor] = {}
            if len(given) < len(self.slots):
                if self.maps is None:
                    missing = ", ".join(slot for slot in self.slots if slot not in given)
                    raise ConfigurationError(
                        f"ezigen: nothing says where {missing} goes: there is no step without the subjects (share=1); "
                        f"take a smaller share, or say where: --attach region:slot={self.slots[0]},right=0.5"
                    )
                found = dict(zip(self.slots, assigned(self.maps / self.count, grid, "otsu").float(), strict=True))
            taken = torch.stack(list(given.values())).sum(0) if given else torch.zeros(())
            like = next(iter(found.values()), taken)
            parts = []
            for slot in self.slots:
                if slot in given:
                    part = given[slot].to(like) / taken.to(like).clamp(min=1)
                else:
                    part = found[slot] * (1 - taken.to(like)).clamp(min=0)
                parts.append(part.expand_as(like))
            made = torch.stack(parts).flatten(2)
            if not self._weights:
                for slot, each in zip(self.slots, made, strict=True):
                    self.areas[slot] += each.mean(1).tolist()
            self._weights[positions] = torch.cat([made, (1 - made.sum(0, keepdim=True)).clamp(min=0)])
        return self._weights[positions]

    @property
    def report(self) -> dict[str, Any]:
        """How much of the pictures so far each subject has."""
        areas = {slot: round(sum(each) / len(each), 4) for slot, each in self.areas.items() if each}
        says = ", ".join(f"{slot} on {area:.0%} of the picture" for slot, area in areas.items())
        nowhere = [slot for slot, each in self.areas.items() if each and min(each) == 0]
        if nowhere:
            says += f"; warning: {', '.join(nowhere)} has no place in some: say where, --attach region:slot=NAME,..."
        return {"name": "regions", "areas": areas, "says": f"ezigen: {says or 'no step with the subjects'}"}


class RegionAttention(SubjectAttention):
    """The adapter at work for several subjects, each in its region.

    Args:
        members: by placeholder; of one adapter, share, scale and guidance.
        denoiser: whose cross-attention shows where words are.
    """

    def __init__(self, members: Mapping[str, SubjectAttention], denoiser: Any) -> None:
        first = next(iter(members.values()))
        super().__init__(first.adapter, first.subject, first.share, first.scale, first.guidance)
        self.subjects = [each.subject for each in members.values()]
        self.regions = Regions(tuple(members), denoiser, first.share)

    def told(self, n: int, hidden: Tensor, rows: list[int], context: Context) -> Tensor:
        adapter: Any = self.adapter.sites[n]
        out = torch.zeros_like(hidden)
        for subject, weight in self._parts(n, hidden, rows, context):
            out = out + weight[..., None] * adapter(hidden, subject, self.scale)
        return out

    def looked(self, n: int, hidden: Tensor, rows: list[int], context: Context) -> Tensor:
        adapter: Any = self.adapter.sites[n]
        total = hidden.new_zeros(hidden.shape[:2])
        for subject, weight in self._parts(n, hidden, rows, context):
            if subject is not None:
                total = total + weight * adapter.mass(hidden, subject)
        return total

    def _parts(self, n: int, hidden: Tensor, rows: list[int], context: Context) -> list[tuple[Any, Tensor]]:
        """Subjects, and None, that have a place in these rows, with (rows, L) weights."""
        weights = self.regions.weights(hidden.shape[1]).to(hidden)
        samples = [context.rows[row].sample if weights.shape[1] > 1 else 0 for row in rows]
        each = zip([*(subject[n] for subject in self.subjects), None], weights, strict=True)
        return [(subject, weight[samples]) for subject, weight in each if bool(weight.any())]


def together(brought: Mapping[str, Attached], base: Base) -> Attached:
    """What several concepts of EZIGen bring to one sentence.

    Raises:
        ConfigurationError: they were read with other weights, or with settings that one picture has once.
    """
    ways = {slot: each.sample for slot, each in brought.items() if isinstance(each.sample, Loops)}
    members = {slot: way.subject for slot, way in ways.items()}
    told = {slot: _settings(way) for slot, way in ways.items()}
    first = next(iter(told.values()))
    wrong = [
        f"differ in {name} ({', '.join(str(each[name]) for each in told.values())})"
        for name in first
        if any(each[name] != first[name] for each in told.values())
    ]
    states = [each.adapter.state_dict() for each in members.values()]
    same = all(
        state.keys() == states[0].keys() and all(torch.equal(state[name], states[0][name]) for name in state)
        for state in states[1:]
    )
    wrong += [] if same else ["were read with other weights of the adapter"]
    if wrong:
        shorter = ", ".join([wrong[0], *(each.removeprefix("differ in ") for each in wrong[1:])])
        raise ConfigurationError(f"ezigen: the subjects of {', '.join(ways)} {shorter}: read them alike")
    acting = RegionAttention(members, base.denoiser)
    loops = next(iter(ways.values()))
    references = [image for way in ways.values() for image in way.references]
    return replace(
        next(iter(brought.values())),
        interventions=(acting, acting.regions),
        sample=Loops(acting, loops.settings, references),
    )


def _settings(way: Loops) -> dict[str, Any]:
    own = way.subject
    return {"share": own.share, "scale": own.scale, "subject_guidance": own.guidance} | asdict(way.settings)


@dataclass(frozen=True)
class Region:
    """Settings of the attachment "region": where one of several subjects of EZIGen goes, whatever its word attends to.
    A box by fractions of the picture, or a mask.

    Args:
        slot: the placeholder.
        left, top, right, bottom: 0 ... 1 each.
        mask: a picture, white where the subject goes; stretched to the picture made. A record names its path only.
    """

    about_concepts: ClassVar[bool] = True

    slot: str = ""
    left: float = 0.0
    top: float = 0.0
    right: float = 1.0
    bottom: float = 1.0
    mask: str = ""

    def __post_init__(self) -> None:
        pairs = (("left", "right"), ("top", "bottom"))
        wrong = [
            f"{low} {getattr(self, low):g} and {high} {getattr(self, high):g} must be in 0 ... 1, {low} the smaller"
            for low, high in pairs
            if not 0 <= getattr(self, low) < getattr(self, high) <= 1
        ]
        if self.mask and (self.left, self.top, self.right, self.bottom) != (0, 0, 1, 1):
            wrong.append("a mask and a box: give one of them")
        raise_all(wrong, ConfigurationError, "region")

    def bound(self, sentence: Sentence) -> Intervention:
        """For one sentence.

        Raises:
            ConfigurationError: no such subject, or none of several by EZIGen.
            ImageError: a mask that cannot be read, or is empty.
        """
        slot = chosen_slot(sentence, self.slot, "region")
        brought = sentence.attached.get(slot, Attached())
        regions = next((each for each in brought.interventions if isinstance(each, Regions)), None)
        if regions is None:
            raise ConfigurationError(
                "region says where each of several subjects by ezigen goes, and here is one subject, or another method"
            )
        regions.given[slot] = self.raster()
        return Intervention()

    def raster(self) -> Tensor:
        """(RASTER, RASTER) in [0, 1]."""
        if self.mask:
            from ..images import load_mask

            return torch.from_numpy(load_mask(self.mask, (RASTER, RASTER), resize=True))
        edges = torch.arange(RASTER + 1) / RASTER
        across, down = (
            ((edges[1:].clamp(max=high) - edges[:-1].clamp(min=low)).clamp(min=0) * RASTER)
            for low, high in ((self.left, self.right), (self.top, self.bottom))
        )
        return down[:, None] * across[None]


ATTACHMENTS["region"] = Region
