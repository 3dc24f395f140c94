"""Which words take the places of a prompt: learned ones where there is a concept, else the subject's noun."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from ..concept import Concept
from ..errors import ConfigurationError
from ..prompt import Prompt, SlotWord
from ..subject import Subject

Thing = TypeVar("Thing", Concept, Subject)


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


def slot_words(concepts: Mapping[str, Concept], subjects: Mapping[str, Subject]) -> dict[str, SlotWord]:
    """The word of each placeholder."""
    words = {slot: SlotWord(subject.noun, subject.noun) for slot, subject in subjects.items()}
    return words | {slot: concept.word for slot, concept in concepts.items()}
