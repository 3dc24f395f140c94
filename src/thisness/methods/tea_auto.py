"""TEA with alpha=auto: the weakest rotation under which a sentence's context is followed. Not in the paper.

Previews of a few steps are made from fixed seeds, so that a sentence has one alpha whatever pictures are asked of it:
without TEA, of the noun's sentence, and under the alphas of a bisection.

    context(alpha)    cos of the previews and the sentence without its subject, by a CLIP model
    identity(alpha)   cos of the previews and the subject's pictures; where none are given, previews of the subject
                      without a context, made without TEA
    followed          context(alpha) >= context(0) + recover (context(noun) - context(0))
    stop              alpha is known to 1/32, or the budget of previews is spent

Chosen is the smallest alpha that was seen to be followed; if none was, the one of the best context; among those that
keep `identity` of the identity without TEA. Where the noun's sentence shows no more context, there is nothing to mend
and nothing is changed. The angle to the noun falls with alpha, so that bisection asks the right half; context itself
need not rise with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..conditioning import Conditioning, Sentence, encode
from ..errors import ConfigurationError
from ..prompt import FilledPrompt, Prompt
from .detex_features import STANDARD
from .image_encoders import EMBEDDED

if TYPE_CHECKING:
    from PIL.Image import Image

    from .tea_adjustment import BoundTea, Tea

RESOLUTION = 1 / 32


class Score(NamedTuple):
    """Of the previews under one alpha. Cosines."""

    context: float
    identity: float


@dataclass(frozen=True)
class Found:
    """Attributes: alpha; followed: whether the context was; tried: (alpha, score), in order."""

    alpha: float
    followed: bool
    tried: tuple[tuple[float, Score], ...]


@dataclass(frozen=True)
class Choice:
    """Attributes: settled: TEA with a number for alpha; report: JSON data of the search; says: the same for people."""

    settled: Tea
    report: dict[str, Any]
    says: str


def search(
    score: Callable[[float], Score], before: Score, wanted: float, floor: float, budget: int = 6, top: float = 1.0
) -> Found:
    """Bisection for the smallest alpha in 0 ... top whose context is `wanted`, with identity at least `floor`.

    Args:
        score: of one alpha; called at most `budget` times.
        before: the score of alpha 0.
        wanted: context from which on it counts as followed.
        floor: of the identity.
        budget: calls.
        top: largest alpha, taken for followed unless seen otherwise.
    """
    if before.context >= wanted:
        return Found(0.0, True, ())
    tried: list[tuple[float, Score]] = []
    low, high = 0.0, top
    while len(tried) < budget and high - low > RESOLUTION:
        alpha = (low + high) / 2
        found = score(alpha)
        tried.append((alpha, found))
        if found.context >= wanted or found.identity < floor:
            high = alpha
        else:
            low = alpha
    kept = [(alpha, each) for alpha, each in tried if each.identity >= floor]
    followed = [alpha for alpha, each in kept if each.context >= wanted]
    if followed:
        return Found(min(followed), True, tuple(tried))
    best = max([(0.0, before), *kept], key=lambda pair: (pair[1].context, -pair[0]))
    return Found(best[0], False, tuple(tried))


@torch.no_grad()
def choose(tea: Tea, sentence: Sentence) -> Choice:
    """Settle alpha for a sentence.

    Args:
        tea: with alpha "auto". previews: alphas tried at most, beside two or three sets to compare with;
            preview_steps; preview_seeds: pictures of each; recover: share of what the noun's sentence shows more of the
            context; identity: share of the identity that must stay; clip: encoder of context, "" for the one that fits
            the base; identity_encoder: of identity, "" likewise.

    Raises:
        ConfigurationError: a sentence without a context.
        UserError: the encoders cannot be had.
    """
    from tqdm import tqdm

    from ..evaluation.encoders import open_encoder
    from .tea_adjustment import BoundTea

    first = BoundTea(replace(tea, alpha=0.0), sentence)
    context = context_text(sentence.filled, first)
    base, seeds = sentence.base, range(tea.preview_seeds)
    embedded = base.facts.folder.startswith("playroom/")
    clip = open_encoder(tea.clip or (EMBEDDED if embedded else STANDARD))
    same = open_encoder(tea.identity_encoder or ("playroom-identity" if embedded and not tea.clip else clip.name))
    goal = _unit(clip.text([context]))[0]

    def shown(conditioning: Conditioning) -> list[Image]:
        bar.update()
        return sentence.preview(conditioning, seeds, tea.preview_steps)

    def of_context(pictures: Sequence[Image]) -> float:
        return float((_unit(clip.images(pictures)) @ goal).mean())

    def of_identity(pictures: Sequence[Image]) -> float:
        return float((_unit(same.images(pictures)) @ known.T).mean())

    def score(alpha: float) -> Score:
        bound = BoundTea(replace(tea, alpha=alpha), sentence)
        with bound.words():
            conditioning = bound(encode(base, sentence.filled))
        pictures = shown(conditioning)
        return Score(of_context(pictures), of_identity(pictures))

    with tqdm(desc="tea: previews", unit="set", dynamic_ncols=True, leave=False, delay=2) as bar:
        plain = encode(base, sentence.filled)
        references = list(sentence.references) or shown(encode(base, _alone(first)))
        known = _unit(same.images(references))
        pictures = shown(plain)
        before = Score(of_context(pictures), of_identity(pictures))
        noun = of_context(shown(encode(base, noun_text(sentence.filled.text, first))))
        wanted = before.context + tea.recover * max(noun - before.context, 0.0)
        found = search(score, before, wanted, tea.identity * before.identity, tea.previews)
    settled = replace(tea, alpha=found.alpha)
    if found.alpha == 0:  # nothing is to change, the norm neither
        settled = replace(settled, beta=None, norm="keep")
    if not found.tried:
        says = "auto: the noun shows no more of the context, so nothing is changed"
    elif found.followed:
        says = f"auto: the context is followed, {len(found.tried)} alphas tried"
    else:
        says = f"auto: the context is not followed by any of {len(found.tried)} alphas, the best is taken"
    tried = [{"alpha": alpha, **_rounded(each)} for alpha, each in found.tried]
    return Choice(
        settled,
        {
            "context": context,
            "followed": found.followed,
            "wanted": _digits(wanted),
            "noun": _digits(noun),
            "before": _rounded(before),
            "tried": tried,
            "encoders": [clip.name, same.name],
        },
        says,
    )


def context_text(filled: FilledPrompt, bound: BoundTea) -> str:
    """What a sentence says beside its subjects, as text for CLIP.

    Raises:
        ConfigurationError: nothing.
    """
    from ..evaluation.benchmarks.sentences import context_of

    text, done, pieces = filled.text, 0, []
    for number, place in enumerate(bound.places):
        pieces += [text[done : place.start], "{subject}" if not number else place.noun]
        done = place.end
    found = context_of(Prompt("".join([*pieces, text[done:]])).text)
    if not found:
        raise ConfigurationError(
            f"tea: alpha=auto looks for an alpha under which the context is followed, and {text!r} has none: "
            "give a number"
        )
    return found


def noun_text(text: str, bound: BoundTea) -> str:
    """The sentence with nouns for all words that TEA acts on."""
    pieces, done = [], 0
    for place in bound.places:
        pieces += [text[done : place.start], place.noun]
        done = place.end
    return "".join([*pieces, text[done:]])


def _alone(bound: BoundTea) -> str:
    """The subject without a context."""
    place = bound.places[0]
    return f"a photo of a {bound.sentence.filled.text[place.start : place.end]}"


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors.float(), dim=-1)


def _rounded(score: Score) -> dict[str, float]:
    return {"context": _digits(score.context), "identity": _digits(score.identity)}


def _digits(value: float) -> float:
    return round(value, 5)
