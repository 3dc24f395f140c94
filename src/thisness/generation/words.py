"""Which words take the places of a prompt: learned ones where there is a concept, else the subject's noun."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from ..bases import Base
from ..concept import Concept
from ..errors import ConfigurationError
from ..prompt import Prompt, SlotWord, clean_text
from ..subject import Subject

Thing = TypeVar("Thing", Concept, Subject)
_LEARNED = re.compile(r"<[a-z0-9][a-z0-9_-]*>")


def by_slot(prompt: Prompt, given: Thing | Mapping[str, Thing] | None) -> dict[str, Thing]:
    """Concepts or subjects by placeholder; a single one goes where the prompt has a single placeholder."""
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return dict(given)
    slots = prompt.slots
    if len(slots) > 1:
        names = ", ".join(f"{{{slot}}}" for slot in slots)
        raise ConfigurationError(
            f"the prompt has the placeholders {names} but one subject is given: say which is which, as a mapping"
        )
    return {slots[0] if slots else "subject": given}


def as_read(prompt: Prompt, concepts: Mapping[str, Concept], negative: str, base: Base) -> tuple[Prompt, str]:
    """The sentence and the negative one, clean, as the methods of the concepts want them."""
    negative = clean_text(negative, "the negative prompt")
    for concept in {id(each): each for each in concepts.values()}.values():
        wanted = getattr(concept, "sentence", None)
        prompt, negative = (prompt, negative) if wanted is None else wanted(prompt, negative, base)
    return prompt, negative


def slot_words(prompt: Prompt, concepts: Mapping[str, Concept], subjects: Mapping[str, Subject]) -> dict[str, SlotWord]:
    """The word of each placeholder. A concept whose learned words stand in the sentence itself needs none."""
    words = {slot: SlotWord(subject.noun, subject.noun) for slot, subject in subjects.items()}
    written = set(_LEARNED.findall(prompt.text))
    for slot, concept in concepts.items():
        if slot in prompt.slots or not written & set(concept.tokens):
            words[slot] = concept.word
    return words
