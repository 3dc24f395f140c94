"""What an adjustment may need beside the encoded sentence, and how such adjustments are put to work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from .conditioning import Adjustment, Conditioning
from .encoding import encode

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..bases import Base
    from ..concept import Attached, Concept
    from ..prompt import FilledPrompt


@dataclass(frozen=True, eq=False)
class Sentence:
    """One sentence that is about to be encoded.

    Args:
        base: with the concepts attached.
        filled: the sentence.
        concepts: by placeholder; their words are in the sentence.
        references: pictures of the subject, where some were given.
        preview: (what the denoiser reads, seeds, steps) -> pictures, made as those of the sentence will be, but
            without attachments.
        attached: what concepts brought to the base beside words and weights, by placeholder.
    """

    base: Base
    filled: FilledPrompt
    concepts: Mapping[str, Concept]
    references: tuple[Image, ...]
    preview: Callable[[Conditioning, Sequence[int], int], list[Image]]
    attached: Mapping[str, Attached] = field(default_factory=dict)


class Bound(Protocol):
    """An adjustment of one sentence.

    Attributes:
        settled: the adjustment, with what it left open decided; what a record holds.
        report: JSON data on what it did, complete once it has been called; "says" is a line for people.
    """

    settled: Any
    report: dict[str, Any]

    def words(self) -> AbstractContextManager[None]:
        """What is to be different while sentences are encoded; undone on exit."""
        ...

    def __call__(self, conditioning: Conditioning) -> Conditioning: ...


@runtime_checkable
class SentenceAdjustment(Protocol):
    """An adjustment that must know the sentence, its concepts or the base. It is bound before anything is encoded."""

    def bound(self, sentence: Sentence) -> Bound:
        """Raises ConfigurationError where the sentence gives it nothing to do."""
        ...


@runtime_checkable
class SentenceAttachment(Protocol):
    """An attachment that must know the sentence, its concepts or the base."""

    def bound(self, sentence: Sentence) -> Any:
        """An `attention.Intervention`; its `report`, if it has one, is as that of `Bound`.

        Raises ConfigurationError where the sentence or the base gives it nothing to do.
        """
        ...


class Adjusted(NamedTuple):
    """What the denoiser reads, the adjustments as they were settled, and what those that tell it did."""

    conditioning: Conditioning
    adjustments: list[Any]
    reports: list[dict[str, Any]]


def encode_adjusted(sentence: Sentence, adjustments: Sequence[Adjustment | SentenceAdjustment]) -> Adjusted:
    """Encode a sentence under its adjustments, in their order: first all that change words, then all others.

    Raises:
        UserError: an adjustment does not fit the sentence.
    """
    acting: list[Any] = []
    with ExitStack() as words:
        for adjustment in adjustments:
            if isinstance(adjustment, SentenceAdjustment):
                adjustment = adjustment.bound(sentence)
                words.enter_context(adjustment.words())
            acting.append(adjustment)
        conditioning = encode(sentence.base, sentence.filled)
        for each in acting:
            conditioning = each(conditioning)
    settled = [getattr(each, "settled", each) for each in acting]
    return Adjusted(conditioning, settled, [each.report for each in acting if hasattr(each, "report")])
