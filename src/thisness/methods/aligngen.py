"""AlignGen: Boosting Personalized Image Generation with Cross-Modality Prior Alignment.

Lin et al. (2025, arXiv 2505.21911), on top of OminiControl.

    S* in front of the concept's name, through T5 (section 3.2)        `ConceptText`
    S*' = DEM(c_text[S*, name], c_redux)  (eq. 3-5)                    `aligngen_parts.DeviationExtraction`
    only S* and the name, of the text, read the reference (eq. 6)      `aligngen_references.SelectiveReferences`
    reference tokens, low-rank weights on their rows                   `flux_references`
    black pictures in the place of references (section 3.4)            settings `black`, `strength`

One look at one picture: nothing is trained. Training is in `aligngen_training`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ..bases import Base, Flux, instead
from ..bases.base import TextEncoding
from ..bases.flux import PATCH, pack
from ..concept import Attached, Concept
from ..errors import ArtefactError, ConfigurationError, ImageError, PromptError
from ..images import fit_square
from ..prompt import FilledPrompt, FilledSlot, placeholder_tokens
from ..subject import Subject
from ..tokens import Role, SlotTokens, TokenSpans
from .aligngen_parts import (
    Backend,
    DeviationExtraction,
    Star,
    concept_span,
    deviated,
    read_parts,
    spliced,
    states_with_star,
)
from .aligngen_references import ConceptSpans, SelectiveReferences
from .flux_references import Reference, RowLora, installed_on
from .ip_adapter import Background, shown
from .ominicontrol import (
    FILE,
    LARGEST,
    OminiControlHandler,
    black_latents,
    flux,
    open_lora,
    reference_latents,
    shifted_ids,
)
from .redux import open_redux, standard_redux
from .registry import register_method
from .zero_shot import AdapterWeights, ZeroShotMethod

FIRST = 1 << 24  # numbers from here on are S* of the first concept, the second ...; no vocabulary reaches so far
_SWITCHES = ("star", "dem", "selective")


@dataclass(frozen=True, eq=False)
class Spoken:
    """A concept in sentences.

    Args:
        token: what marks it there, "<rufus>".
        name: what follows it, "acoustic guitar".
        redux: (T, width) Redux tokens of its picture; None without the module.
    """

    token: str
    name: str
    redux: Tensor | None


class ConceptText:
    """What sentences become while concepts are attached: S* before names, and the module's output in its place.

    For the length of `on` it stands in the place of the base's `tokenize` and `encode_tokens`. Sentences without a
    concept are encoded as ever.

    Args:
        base: a FLUX.
        star: None: nothing is put before the name.
        dem: None: S* stays as T5 gives it.
        every: the module's outputs take the place of the name's tokens, too (figure 7).
        owner: whose weights and settings.
    """

    def __init__(
        self, base: Flux, star: Star | None, dem: DeviationExtraction | None, every: bool = False, owner: str = ""
    ) -> None:
        self.base, self.star, self.dem, self.every, self.owner = base, star, dem, every, owner
        self.spoken: list[Spoken] = []
        self._tokenize, self._encode = base.tokenize, base.encode_tokens
        self._rows: dict[tuple[int, ...], tuple[tuple[int, tuple[int, ...]], ...]] = {}

    @contextmanager
    def on(self) -> Iterator[None]:
        """On the base for the length of a `with`."""
        if on_base(self.base) is not None:
            raise ConfigurationError("there are concepts of AlignGen on this base already: add to those")
        with instead(self.base, tokenize=self.tokenize, encode_tokens=self.encode_tokens, _concept_text=self):
            yield

    @contextmanager
    def with_concept(self, spoken: Spoken) -> Iterator[None]:
        """One more for the length of a `with`.

        Raises:
            ConfigurationError: another one has the same token.
        """
        if any(each.token == spoken.token for each in self.spoken):
            raise ConfigurationError(
                f"two concepts of this sentence are called {spoken.token}: read one under another name"
            )
        self.spoken.append(spoken)
        try:
            yield
        finally:
            self.spoken.remove(spoken)
            self._rows.clear()

    def tokenize(self, prompt: FilledPrompt) -> list[TokenSpans]:
        """As `Flux.tokenize`. T5's tokens have S* among them, by number; CLIP's have not.

        Raises:
            PromptError: a concept's name does not follow its mark; or too long with S*.
        """
        cuts = sorted(
            (prompt.text.index(each.token), len(each.token), number)
            for number, each in enumerate(self.spoken)
            if each.token in prompt.text
        )
        if not cuts:
            return self._tokenize(prompt)
        plain, removed = without(prompt, [each.token for each in self.spoken])
        words, clip = self._tokenize(plain)
        places, places_of = [], []
        for start, length, number in cuts:
            after = start + length
            name = self.spoken[number].name
            first, last = concept_span(prompt.text[after:], name)
            places.append((to_plain(after + first, removed), to_plain(after + last, removed)))
            places_of.append(number)
        stars = [(start, start + length) for start, length, _ in cuts]
        made = self._spliced(words, places, stars, places_of, removed, prompt)
        self._remember(made)
        return [made, moved_back(clip, removed, prompt)]

    def _spliced(
        self, words: TokenSpans, places: list[tuple[int, int]], stars: list[tuple[int, int]], numbers: list[int],
        removed: list[tuple[int, int]], prompt: FilledPrompt,
    ) -> ConceptSpans:  # fmt: skip
        limit, more = len(words.ids), len(places) if self.star is not None else 0
        if words.end + 1 + more > limit:
            raise PromptError(
                f"the prompt has {words.end + 1 + more} tokens with its S*, but the encoder takes {limit}: shorten it "
                f"by {words.end + 1 + more - limit}"
            )
        done = spliced(words, places, self.base.tokenizers[0].pad_token_id)
        if self.star is None:
            rows = [
                tuple(at - before for at in name) for name, before in zip(done.names, _ranks(done.stars), strict=True)
            ]
            plain = moved_back(words, removed, prompt)
            return ConceptSpans(**vars(plain), concepts=tuple(sorted(zip(numbers, rows, strict=True))))
        ids, origin = list(done.ids), [at for at in range(len(done.ids)) if at not in done.stars]
        for star, number in zip(done.stars, numbers, strict=True):
            ids[star] = FIRST + number
        roles: list[Role] = ["pad"] * limit
        offsets = [(0, 0)] * limit
        for before, at in enumerate(origin):
            roles[at], offsets[at] = words.roles[before], to_original(words.offsets[before], removed)
        for star, where in zip(done.stars, stars, strict=True):
            roles[star], offsets[star] = "subject", where
        slots = []
        for each, place in zip(words.slots, prompt.slots, strict=True):
            inside = [place.char_start <= first < last <= place.char_end for first, last in stars]
            own = tuple(star for star, here in zip(done.stars, inside, strict=True) if here)
            word, noun = (tuple(origin[at] for at in part) for part in (each.word, each.noun))
            slots.append(SlotTokens(each.slot, tuple(sorted({*word, *own})), noun))
        concepts = tuple(sorted((n, tuple(r)) for n, r in zip(numbers, done.concepts, strict=True)))
        return ConceptSpans(prompt.text, tuple(ids), tuple(roles), tuple(offsets), tuple(slots), concepts)

    def _remember(self, spans: ConceptSpans) -> None:
        if len(self._rows) > 1000:
            self._rows.clear()
        self._rows[spans.ids] = spans.concepts

    def encode_tokens(self, tokens: Sequence[Tensor]) -> TextEncoding:
        """As `Flux.encode_tokens`, of sentences that `tokenize` made."""
        rows = [dict(self._rows.get(tuple(ids), ())) for ids in tokens[0].tolist()]
        if not any(rows):
            return self._encode(tokens)
        base = self.base
        t5, clip = (ids.to(base.device) for ids in tokens)
        encoder, at = base.parts["text_encoder_2"], t5 >= FIRST
        if self.star is not None:
            known = t5.masked_fill(at, base.tokenizers[0].pad_token_id)
            states = states_with_star(encoder, known, at, self.star())
        else:
            states = encoder(t5, output_hidden_states=False)[0]
        for number, each in enumerate(self.spoken):
            if self.dem is not None and each.redux is not None:
                picture = each.redux.to(states.device).expand(len(states), -1, -1)
                states = deviated(self.dem, states, [own.get(number, ()) for own in rows], picture, every=self.every)
        return TextEncoding(states, base.pooled_text(clip))


def on_base(base: Base) -> ConceptText | None:
    """What is on a base."""
    return base.__dict__.get("_concept_text")


def _ranks(stars: Sequence[int]) -> list[int]:
    """How many S* stand up to each name: its own and those before."""
    return [sum(other <= star for other in stars) for star in stars]


# --- characters of a sentence without its marks ---


def without(prompt: FilledPrompt, tokens: Sequence[str]) -> tuple[FilledPrompt, list[tuple[int, int]]]:
    """A sentence without some words and the space after each; and what was removed: (first character, length)."""
    removed = []
    for token in tokens:
        start = prompt.text.find(token)
        while start >= 0:
            end = start + len(token)
            removed.append((start, len(token) + (prompt.text[end : end + 1] == " ")))
            start = prompt.text.find(token, end)
    removed.sort()
    pieces, done = [], 0
    for start, length in removed:
        pieces.append(prompt.text[done:start])
        done = start + length
    slots = tuple(
        FilledSlot(
            each.slot, to_plain(each.char_start, removed), to_plain(each.char_end, removed),
            to_plain(each.noun_start, removed), to_plain(each.noun_end, removed), each.noun,
        )
        for each in prompt.slots
    )  # fmt: skip
    return FilledPrompt("".join([*pieces, prompt.text[done:]]), prompt.template, slots), removed


def to_plain(at: int, removed: Sequence[tuple[int, int]]) -> int:
    """Where a character of the sentence is in the one without the marks."""
    return at - sum(min(length, max(at - start, 0)) for start, length in removed)


def to_original(span: tuple[int, int], removed: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Characters of the sentence without the marks, in the sentence itself; (0, 0), of marks, stays."""
    if span == (0, 0):
        return span
    first, last = span
    for start, length in removed:
        first += length * (first >= start)
        last += length * (last > start)
    return first, last


def moved_back(spans: TokenSpans, removed: Sequence[tuple[int, int]], prompt: FilledPrompt) -> TokenSpans:
    """The same tokens, as of the sentence with the marks."""
    offsets = tuple(to_original(each, removed) for each in spans.offsets)
    return TokenSpans(prompt.text, spans.ids, spans.roles, offsets, spans.slots)


# --- the method ---


@dataclass(frozen=True)
class AlignGenSettings:
    """Raises ValueError for values out of range."""

    weights: str = field(default="", metadata={"help": "a folder or a hub id; the embedded ones by default"})
    redux: str = field(
        default="", metadata={"help": "a folder or hub id of FLUX.1 Redux; the embedded one on embedded bases"}
    )
    mode: Literal["", "joint", "independent"] = field(
        default="",
        metadata={"help": "joint: the reference reads text and picture; independent: itself alone; as trained"},
    )
    name: str = field(default="", metadata={"help": "the subject's full name in sentences; the noun by default"})
    size: int = field(
        default=0, metadata={"help": "side of the reference in pixels; as trained, or the base's by default"}
    )
    strength: float = field(
        default=1.0, metadata={"help": "image guidance: how far from what a black reference gives; 1 is plain"}
    )
    black: bool = field(default=False, metadata={"help": "a black picture for the reference's tokens: S* alone speaks"})
    star: bool = field(default=True, metadata={"help": "S* before the name"})
    dem: bool = field(default=True, metadata={"help": "S* is changed by the deviation extraction module"})
    selective: bool = field(default=True, metadata={"help": "of the text only S* and the name read the reference"})
    replace_all: bool = field(default=False, metadata={"help": "the module changes the name's tokens, too (figure 7)"})
    bind: bool = field(default=True, metadata={"help": "of several subjects each reads its own picture alone"})
    backend: Backend = field(
        default="split", metadata={"help": "of attention under the mask: split, dense or flex; the same result"}
    )
    cache: bool = field(default=True, metadata={"help": "independent: keep keys and values from step to step"})
    background: Background = field(
        default="keep", metadata={"help": "of the picture: keep (the paper), or a colour in its place; needs a mask"}
    )
    foreground: bool = field(
        default=False, metadata={"help": "leave out the reference's tokens outside of the mask, and weigh Redux tokens"}
    )

    def __post_init__(self) -> None:
        wrong = [] if 0 <= self.strength <= 20 else [f"strength {self.strength} must be in 0 ... 20"]
        wrong += [] if self.size >= 0 else [f"size {self.size} must be above 0"]
        if self.black and self.strength != 1:
            wrong.append("black=true has no picture to be guided toward: leave strength at 1")
        if wrong:
            raise ValueError("; ".join(wrong))


class AlignGenHandler(OminiControlHandler):
    """Puts a concept's reference on the transformer and its S* into sentences. The base's weights stay untouched."""

    @contextmanager
    def attach(self, concept: Concept, base: Base) -> Iterator[Attached]:
        """Raises ConfigurationError: concepts with other weights or settings are there, or references of others."""
        concept.check_base(base, other_weights=True)
        model, settings = flux(base, concept.method), concept.settings
        weights, low_rank = open_lora(concept.method, settings["weights"], base, settings["signature"])
        if shift_of(weights) != settings["shift"]:
            raise ArtefactError(
                f"{concept.name!r} was read with a shift of {settings['shift']}, and {weights.name} now says "
                f"{shift_of(weights)}: read its pictures anew"
            )
        read = {name: each.to(base.device) for name, each in concept.tensors[FILE].items()}
        pair = self._pair(concept, model, read, settings)
        owner = repr(
            sorted((key, value) for key, value in settings.items() if key not in ("name", "background", "size"))
        )
        spoken = Spoken(concept.tokens[0], settings["name"], read.get("redux"))
        there, speaking = installed_on(model.transformer), on_base(base)
        with ExitStack() as stack:
            if there is None:
                there = SelectiveReferences(
                    [], RowLora({key: each.to(base.device) for key, each in low_rank.items()}), settings["mode"],
                    backend=settings["backend"], bind=settings["bind"], selective=settings["selective"],
                    cache=settings["cache"], image_guidance=settings["strength"], owner=owner,
                )  # fmt: skip
                dem, star = read_parts(weights.tensors, weights.config)
                for part in (dem, star):
                    if part is not None:
                        part.to(base.device).requires_grad_(False)
                speaking = ConceptText(
                    model, star if settings["star"] else None, dem if settings["dem"] else None,
                    settings["replace_all"], owner,
                )  # fmt: skip
                stack.enter_context(there.installed(model.transformer))
                stack.enter_context(speaking.on())
                brought = Attached((there,))
            elif there.owner != owner or not isinstance(there, SelectiveReferences) or speaking is None:
                raise ConfigurationError(
                    f"{concept.name!r} has other weights or settings than another reference of this sentence: give all "
                    "the same"
                )
            else:
                brought = Attached()
            assert speaking is not None
            stack.enter_context(there.with_pair(*pair))
            stack.enter_context(speaking.with_concept(spoken))
            yield brought

    def _pair(
        self, concept: Concept, base: Flux, read: Mapping[str, Tensor], settings: Mapping[str, Any]
    ) -> tuple[Reference, Reference]:
        """The reference, and a black one in its place."""
        latents = read["latents"]
        rows, columns = (side // PATCH for side in latents.shape[-2:])
        ids = shifted_ids(settings["shift"], rows, columns)
        kept = read["kept"].bool().cpu() if "kept" in read else torch.ones(len(ids), dtype=torch.bool)
        name, made = f"the reference of {concept.name!r}", []
        dark = latents
        if settings["black"] or settings["strength"] != 1:
            dark = black_latents(base, int(latents.shape[-1]) * base.pixels_per_token // PATCH)
        for each in (dark if settings["black"] else latents, dark):
            tokens = pack(each[None].to(base.device, base.dtype))[0]
            made.append(Reference(tokens[kept.to(tokens.device)], ids[kept], name))
        return made[0], made[1]


@register_method("aligngen")
class AlignGen(ZeroShotMethod):
    """The reference's latents, which every step reads, and its Redux tokens, which S* reads once."""

    Settings = AlignGenSettings
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}}
    handler = AlignGenHandler()

    def read(self, subject: Subject, base: Base, settings: AlignGenSettings) -> Concept:
        """As `ZeroShotMethod.read`.

        Raises:
            ConfigurationError: a base that is not FLUX; Redux tokens of another width than its text.
            ImageError: a mask is needed, and there is none.
        """
        model = flux(base, self.name)
        weights, _ = open_lora(self.name, settings.weights, base)
        dem, star = read_parts(weights.tensors, weights.config)
        trained = weights.config.get("switches", {})
        there = {"star": star is not None, "dem": dem is not None, "selective": True}
        has = {key: bool(getattr(settings, key) and trained.get(key, True) and there[key]) for key in _SWITCHES}
        size = settings.size or int(weights.config.get("size", 0)) or min(LARGEST, base.resolution)
        mask, fitted = subject.masks[0], None
        if settings.foreground and mask is None:
            file = subject.files[0] if subject.files else "the picture"
            raise ImageError(f"{file} has no mask, which foreground=true needs: make one with `thisness masks`")
        image = shown(subject, settings.background)
        square = image
        if settings.foreground:
            square, fitted = fit_square(image, size, mask)
        latents = reference_latents(square, model, size)
        rows, columns = (side // PATCH for side in latents.shape[-2:])
        shift = shift_of(weights)
        shifted_ids(shift, rows, columns)
        own = asdict(settings) | has
        own |= {
            "signature": weights.signature,
            "mode": settings.mode or weights.config.get("mode", "joint"),
            "shift": shift,
            "size": size,
            "name": " ".join((settings.name or subject.noun).split()),
            "replace_all": settings.replace_all or bool(weights.config.get("replace_all", False)),
        }
        tensors = {"latents": latents.float().cpu()}
        if has["dem"]:
            redux = settings.redux or str(weights.config.get("redux", "")) or standard_redux(base)
            opened = open_redux(redux, base.parts["text_encoder_2"].config.d_model)
            expected = weights.config.get("redux_signature")
            if expected and expected != opened.signature:
                raise ArtefactError(
                    f"{weights.name} was trained with another Redux ({str(expected)[:8]}) than {opened.name} "
                    f"({opened.signature[:8]}): give that one, redux=FOLDER"
                )
            weighing = [mask] if settings.foreground else None
            tensors["redux"] = opened.tokens([image], weighing, device=base.device)[0].float().cpu()
            own |= {"redux": redux, "redux_signature": opened.signature}
        if settings.foreground:
            assert fitted is not None
            tensors["kept"] = kept_tokens(fitted, rows, columns)
        (token,) = placeholder_tokens(subject.name)
        return Concept.create(
            self.name, subject, base, word=f"{token} {own['name']}", tensors={FILE: tensors}, tokens=(token,),
            settings=own,
        )  # fmt: skip


def shift_of(weights: AdapterWeights) -> str:
    """Where references stand, as the weights say: it is part of what was trained.

    Raises:
        ArtefactError: they do not say it.
    """
    shift = weights.config.get("shift")
    if not isinstance(shift, str) or not shift:
        raise ArtefactError(f"{weights.name}: config.json does not say where references stand: expected shift, as '-w'")
    return shift


def kept_tokens(mask: np.ndarray, rows: int, columns: int) -> Tensor:
    """(rows * columns,) uint8: which of a reference's tokens show any of the thing, by a mask (H, W) in 0 ... 1.

    Raises:
        ImageError: none does.
    """
    shares = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(mask).float()[None, None], (rows, columns))
    kept = (shares.flatten() > 0).to(torch.uint8)
    if not bool(kept.any()):
        raise ImageError("the mask is empty: foreground=true would leave nothing of the reference")
    return kept
