"""ELITE: Encoding Visual Concepts into Textual Embeddings for Customized Text-to-Image Generation.

Wei et al., ICCV 2023, arXiv 2302.13848; official code csyxwei/ELITE. Equation -> function:

    section 3.1, w_i = f_i(cls) + mean_p g_i(patch_p)                  `GlobalMapper`
    section 3.1, words w_0 ... in the place of S, before the text encoder   `adapters.attached_words`
    section 3.1, trained K and V in the place of the denoiser's        `keys_and_values`, `adapters.replaced_weights`
    section 3.2, e = mean_i (f_i(cls) + g_i(patch)) * object mask      `LocalMapper`, `read_local`
    section 3.2, out + lambda softmax(Q K_l) a V_l, a the map of S      `LocalAttention`, `local_attention`

The word is one like any learned word, so whatever acts on such words acts on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters import EMBEDDINGS, AdapterHandler, attached_words
from ..adapters.handler import REPLACED
from ..adapters.replaced import replaced_weights
from ..attention import Context, Intervention, Site, Where, sites_of
from ..bases import Base
from ..concept import Attached, Concept
from ..errors import ArtefactError, ConfigurationError, ImageError, raise_all
from ..files import listed
from ..files.tensors import compare_shapes
from ..prompt import placeholder_tokens
from ..subject import Subject
from .image_states import ImageEncoder, square
from .registry import register_method
from .updates import setting
from .zero_shot import AdapterWeights, ZeroShotMethod, open_weights

LOCAL = "elite.safetensors"  # "local": (patches, width), what the local mapper read; zero outside the object
GLOBAL_PART, LOCAL_PART = "global.", "local."  # the two published files in one: the names behind are theirs


@dataclass(frozen=True)
class EliteSettings:
    """Of the official inference script: the deepest level's word alone, lambda 0.8."""

    weights: str = setting("", "folder or hub id of converted weights (thisness convert); the embedded ones by default")
    scale: float = setting(0.8, "lambda of the local stream; 0 for the global one alone (the demo of the authors: 0.6)")
    words: int = setting(1, "how many of the mapped words take the subject's place; the deepest level's comes first")

    def __post_init__(self) -> None:
        wrong = [] if 0 <= self.scale <= 10 else [f"scale {self.scale} must be in 0 ... 10"]
        wrong += [] if self.words >= 1 else [f"words {self.words} must be at least 1"]
        if wrong:
            raise ValueError("; ".join(wrong))


def mlp(width: int, hidden: int, out: int) -> nn.Sequential:
    """Two hidden layers with norm and LeakyReLU, numbered as published: 0, 1, 3, 4, 6."""
    return nn.Sequential(
        nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.LeakyReLU(),
        nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.LeakyReLU(),
        nn.Linear(hidden, out),
    )  # fmt: skip


class Mapper(nn.Module):
    """MLPs of the class token and of the patches for each level, and keys' and values' weights of cross-attention.

    Args:
        levels: how many depths of the image encoder are read.
        width: of the image encoder.
        hidden: of the MLPs.
        out: width of the text encoder.
        projections: (heads * width, out) of each weight by its name in the denoiser, see `published`.
    """

    def __init__(
        self, levels: int, width: int, hidden: int, out: int, projections: Mapping[str, tuple[int, ...]]
    ) -> None:
        super().__init__()
        self.levels, self.names = levels, tuple(projections)
        for level in range(levels):
            self.add_module(f"mapping_{level}", mlp(width, hidden, out))
            self.add_module(f"mapping_patch_{level}", mlp(width, hidden, out))
        for name, (rows, columns) in projections.items():
            self.add_module(published(name), nn.Linear(columns, rows, bias=False))

    def projection(self, name: str) -> Tensor:
        """A weight by its name in the denoiser."""
        return self.get_submodule(published(name)).get_parameter("weight")

    def mapped(self, states: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each level f(cls) (n, 1, out) and g(patches) (n, patches, out). states: (n, 1 + patches, width) each."""
        for level, state in enumerate(states):
            yield (
                self.get_submodule(f"mapping_{level}")(state[:, :1]),
                self.get_submodule(f"mapping_patch_{level}")(state[:, 1:]),
            )


class GlobalMapper(Mapper):
    """Pictures to words."""

    def forward(self, states: list[Tensor]) -> Tensor:
        """(n, levels, out), the deepest level's first."""
        return torch.cat([cls + patches.mean(1, keepdim=True) for cls, patches in self.mapped(states)], 1)


class LocalMapper(Mapper):
    """Patches to what the second attention reads."""

    def forward(self, states: list[Tensor]) -> Tensor:
        """(n, patches, out)."""
        return torch.stack([cls + patches for cls, patches in self.mapped(states)]).mean(0)


def published(name: str) -> str:
    """The module of a denoiser's weight in the published files: "A.attn2.to_k.weight" -> "A_attn2_to_k"."""
    return name.removesuffix(".weight").replace(".", "_")


def keys_and_values(denoiser: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of what makes keys and values of the sentence, by name: "MODULE.attn2.to_k.weight"."""
    names = [name for name, site in sites_of(denoiser).items() if site.kind == "cross"]
    weights = [f"{name}.{end}.weight" for name in names for end in ("to_k", "to_v")]
    return {name: tuple(denoiser.get_parameter(name).shape) for name in weights}


def open_mappers(weights: AdapterWeights, base: Base) -> tuple[GlobalMapper, LocalMapper | None]:
    """The mappers that some weights hold, sized by their tensors; no local one where there are none for it.

    Raises:
        ArtefactError: names or shapes that do not fit the base: all of them listed.
    """
    other = [name for name in weights.tensors if not name.startswith((GLOBAL_PART, LOCAL_PART))]
    problems = [f"unexpected {listed(other)}"] if other else []
    raise_all(problems, ArtefactError, f"the weights of elite ({weights.name})")
    given = {part: _part(weights.tensors, part) for part in (GLOBAL_PART, LOCAL_PART)}
    whole = _filled(GlobalMapper, given[GLOBAL_PART], base, f"{weights.name}, global mapper")
    if not given[LOCAL_PART]:
        return whole, None
    return whole, _filled(LocalMapper, given[LOCAL_PART], base, f"{weights.name}, local mapper")


def _part(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name.removeprefix(part): tensor for name, tensor in tensors.items() if name.startswith(part)}


def _filled(kind: type[Any], tensors: dict[str, Tensor], base: Base, where: str) -> Any:
    first, last = tensors.get("mapping_0.0.weight"), tensors.get("mapping_0.6.weight")
    if first is None or last is None or first.ndim != 2 or last.ndim != 2:
        raise ArtefactError(f"{where}: mapping_0.0.weight or mapping_0.6.weight is missing: not a mapper of ELITE")
    levels = sum(f"mapping_{level}.0.weight" in tensors for level in range(len(tensors)))
    hidden, width = first.shape
    with torch.device("meta"):
        mapper = kind(levels, width, hidden, int(last.shape[0]), keys_and_values(base.denoiser))
    expect = {name: tuple(tensor.shape) for name, tensor in mapper.state_dict().items()}
    compare_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, expect, where)
    mapper.load_state_dict(tensors, assign=True)
    return mapper.eval().requires_grad_(False)


def local_attention(q: Tensor, k: Tensor, v: Tensor, share: Tensor, scale: float) -> Tensor:
    """lambda softmax(q k^T / sqrt(D)) a v. Keys of masked patches are zero, and so are their values: they take their
    share of the softmax and give nothing.

    Args:
        q: (B, H, Lq, D).
        k, v: (B or 1, H, patches, D).
        share: a, (B, H, Lq) in [0, 1].
        scale: lambda.

    Returns:
        (B, H, Lq, D).
    """
    k, v = (each.expand(len(q), *each.shape[1:]) for each in (k, v))
    return scale * share.unsqueeze(-1).to(q.dtype) * F.scaled_dot_product_attention(q, k, v)


def word_share(probs: Tensor, columns: Tensor) -> Tensor:
    """How much each position attends to the word, over its own sample's largest.

    Args:
        probs: (B, H, Lq, Lk).
        columns: (B, Lk) of 0 and 1, where the word is.

    Returns:
        (B, H, Lq) in [0, 1]; 0 for a sample without the word.
    """
    said = (probs * columns[:, None, None].to(probs.dtype)).sum(-1)
    return said / said.amax((1, 2), keepdim=True).clamp(min=torch.finfo(said.dtype).tiny)


KeysValues = Callable[[str], tuple[Tensor, Tensor]]  # by name of a site: (samples or 1, patches, heads * D) twice


class LocalAttention(Intervention):
    """The second attention of ELITE, in every cross-attention; guided rows only, those of second branches among them.

    Args:
        token: the subject's word, as the tokenizer knows it.
        keys_values: made of the local mapper's rows.
        scale: lambda.
    """

    where = Where(kinds=("cross",))

    def __init__(self, token: str, keys_values: KeysValues, scale: float) -> None:
        self.token, self.keys_values, self.scale = token, keys_values, scale
        self._share: dict[str, tuple[list[int], Tensor]] = {}  # by site, from `probs` to `extra` of one call

    def columns(self, context: Context, length: int) -> tuple[list[int], Tensor]:
        """Rows of the batch whose sentence has the word, and where: (rows, length) of 0 and 1."""
        rows, found = [], []
        for row, (role, sample) in enumerate(context.rows):
            spans = () if role.endswith("uncond") else context.spans.get(role, ())
            if spans:
                read = spans[sample if len(spans) > 1 else 0]
                places = [float(at < read.length and read.piece(at) == self.token) for at in range(length)]
                if any(places):
                    rows.append(row)
                    found.append(places)
        return rows, torch.tensor(found)

    def reads_probs(self, site: Site, q: Tensor, k: Tensor, context: Context) -> bool:
        rows, columns = self.columns(context, k.shape[-2])
        if rows:
            self._share[site.name] = rows, columns.to(q.device)
        return bool(rows)

    def probs(self, site: Site, probs: Tensor, context: Context) -> Tensor:
        rows, columns = self._share[site.name]
        self._share[site.name] = rows, word_share(probs[rows], columns)
        return probs

    def extra(self, site: Site, attn: Any, q: Tensor, out: Tensor, context: Context) -> Tensor:
        rows, share = self._share.pop(site.name, ([], out))
        if not rows:
            return out
        samples = [context.rows[row].sample for row in rows]
        k, v = (each if len(each) == 1 else each[samples] for each in self.keys_values(site.name))
        k, v = (each.to(q).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for each in (k, v))
        added = local_attention(q[rows], k, v, share, self.scale)
        return out.index_add(0, torch.tensor(rows, device=out.device), added.to(out.dtype))


def read_local(mapper: LocalMapper, states: list[Tensor], mask: Tensor | None) -> Tensor:
    """The local mapper's rows, zero outside the object.

    Args:
        states: (n, 1 + patches, width) for each level, of the picture without its background.
        mask: (n, 1, H, W) of 0 and 1; None for the whole picture.

    Returns:
        (n, patches, out).
    """
    rows = mapper(states)
    if mask is None:
        return rows
    grid = int(rows.shape[1] ** 0.5)
    return rows * F.interpolate(mask, (grid, grid), mode="nearest").flatten(2).transpose(1, 2)


class EliteHandler(AdapterHandler):
    """Attaches what ELITE read: the word, its keys and values, the local stream."""

    @contextmanager
    def attach(self, concept: Concept, base: Base) -> Iterator[Attached]:  # type: ignore[override]
        """Raises ArtefactError where something does not fit."""
        concept.check_base(base, other_weights=True)
        whole, local = self._mappers(concept, base)
        scale, interventions = float(concept.settings["scale"]), []
        names = keys_and_values(base.denoiser)
        if scale > 0 and local is not None and LOCAL in concept.tensors:
            rows = concept.tensors[LOCAL]["local"][None].to(base.device, base.dtype)
            pairs = {name: F.linear(rows, local.projection(name).to(rows)) for name in names}
            interventions.append(
                LocalAttention(
                    concept.tokens[0], lambda site: (pairs[f"{site}.to_k.weight"], pairs[f"{site}.to_v.weight"]), scale
                )
            )
        with ExitStack() as stack:
            stack.enter_context(attached_words(base, concept.tokens, concept.tensors[EMBEDDINGS]))
            replacing = {name: whole.projection(name) for name in names}
            stack.enter_context(replaced_weights(base.denoiser, replacing, owner=concept.name))
            yield Attached(interventions=tuple(interventions))

    def export(self, concept: Concept, folder: Path, to: str, base: Base | None = None) -> list[Path]:
        """The global stream alone: the word, and the keys and values that go with it.

        Raises:
            ConfigurationError: the concept has a local stream, which no other program has a place for; kohya, too,
                has none for keys and values; or the base is not given.
        """
        if float(concept.settings["scale"]) > 0:
            raise ConfigurationError(
                f"{concept.name!r} was read with ELITE's local stream, for which other programs have no place: read it "
                "with --method elite:scale=0, which writes the global stream alone"
            )
        if base is None:
            from ..bases import load_base

            base = load_base(str(concept.manifest["base"]["name"]))
        whole, _ = self._mappers(concept, base)
        replaced = {f"unet.{name}": whole.projection(name) for name in keys_and_values(base.denoiser)}
        plain = concept.with_tensors({EMBEDDINGS: concept.tensors[EMBEDDINGS], REPLACED: replaced})
        return super().export(plain, folder, to, base)

    @staticmethod
    def _mappers(concept: Concept, base: Base) -> tuple[GlobalMapper, LocalMapper | None]:
        settings = concept.settings
        return open_mappers(open_weights("elite", settings["weights"], base, settings["signature"]), base)


@register_method("elite")
class Elite(ZeroShotMethod):
    """One picture to one word, and to a second attention inside the subject."""

    Settings = EliteSettings
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}, "demo": {"scale": 0.6}}
    handler = EliteHandler()

    @torch.no_grad()
    def read(self, subject: Subject, base: Base, settings: EliteSettings) -> Concept:
        weights = open_weights("elite", settings.weights, base)
        if base.family != "sd":
            raise ConfigurationError(
                f"elite is made for Stable Diffusion 1.x and 2.x, and {base.name!r} is {base.family}"
            )
        whole, local = open_mappers(weights, base)
        levels = [int(level) for level in weights.config["levels"]]
        if settings.words > len(levels):
            raise ConfigurationError(f"words {settings.words}: these weights map {len(levels)} ({weights.name})")
        encoder = ImageEncoder(weights.config["image_encoder"], weights.config.get("image_encoder_signature", ""))
        picture, mask = square(subject, encoder.size)
        alone = picture if mask is None else picture * mask
        seen = alone if weights.config.get("background", "keep") == "drop" else picture
        rows = whole(encoder.states(seen, levels))[0, : settings.words]
        tensors = {EMBEDDINGS: {"text_encoder": rows}}
        notes = []
        if local is not None:
            found = read_local(local, encoder.states(alone, levels), mask)[0]
            if mask is None:
                notes.append(NO_MASK.format(name=subject.name))
            elif not bool(found.any()):
                raise ImageError(
                    f"the mask of {subject.name!r} covers none of the {encoder.grid}x{encoder.grid} patches that ELITE "
                    "reads: crop the picture closer to the subject"
                )
            tensors[LOCAL] = {"local": found}
        _say(notes if settings.scale > 0 else [])
        tokens = placeholder_tokens(subject.name, settings.words)
        said = {**asdict(settings), "signature": weights.signature, "notes": notes}
        return Concept.create(
            "elite", subject, base, word=" ".join(tokens), tokens=tokens, tensors=tensors, settings=said
        )


NO_MASK = (
    "elite: the picture of {name!r} has no mask, so its local stream reads the background, too, and will bring it "
    "back: put NAME_mask.png beside it (thisness masks makes one)"
)


def _say(lines: list[str]) -> None:
    import sys

    for line in lines:
        print(f"thisness: warning: {line}", file=sys.stderr, flush=True)
