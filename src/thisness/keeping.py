"""Keeping what a picture shows beside the subject: its pose, its background.

A method that learned words for them lists, by attribute and picture, the words that keep them (`Concept.keeps`). They
become part of the sentence, so that a record needs no more than the sentence itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from .errors import UserError, nearest, raise_all
from .prompt import Prompt

if TYPE_CHECKING:
    from .concept import Concept

_KEEP = re.compile(r"(?:([a-z][a-z0-9_-]{0,63})=)?([a-z][a-z0-9-]{0,63}):(\d{1,3})")
BESIDE_SUBJECT = ("pose", "view")  # said of the subject, so their words stand right after it; others end the sentence


class Keep(NamedTuple):
    """What to keep. slot: the placeholder of the concept that knows it, "" where there is one concept only."""

    slot: str
    attribute: str
    picture: int


def parse_keep(text: str) -> Keep:
    """What to keep, from "pose:2" or "rex=pose:2"; pictures count from 0, in the order of their names.

    Raises:
        UserError: not of this form.
    """
    match = _KEEP.fullmatch(text.strip())
    if match is None:
        raise UserError(f"keep {text!r}: write ATTRIBUTE:PICTURE, for instance pose:2 (pictures count from 0)")
    return Keep(match[1] or "", match[2], int(match[3]))


def kept(prompt: Prompt, concepts: Mapping[str, Concept], keep: Sequence[Keep | str]) -> Prompt:
    """The sentence with the words that keep something.

    Args:
        prompt: "a {subject} on the beach", or, for what another thing is to take over, "a cat on the beach".
        concepts: by placeholder.
        keep: each attribute at most once for each concept.

    Returns:
        "a {subject} with <rufus-p-2> pose on the beach in <rufus-b-0> background".

    Raises:
        UserError: a concept that learned no such words, or has no such picture; all of it at once.
    """
    text, problems = prompt.text, []
    seen: set[tuple[str, str]] = set()
    for each in (parse_keep(entry) if isinstance(entry, str) else entry for entry in keep):
        slot, problem = _slot_of(each, concepts)
        phrases = concepts[slot].keeps if slot in concepts else {}
        beside = each.attribute in BESIDE_SUBJECT
        place = (slot, "beside" if beside else each.attribute)
        if problem:
            problems.append(problem)
        elif not phrases:
            problems.append(
                f"{concepts[slot].name!r} was learned by {concepts[slot].method}, which learns no words for "
                f"{each.attribute}: learn it by detex"
            )
        elif each.attribute not in phrases:
            known = ", ".join(phrases)
            problems.append(
                f"{each.attribute!r}{nearest(each.attribute, phrases)}: {concepts[slot].name} can keep {known}"
            )
        elif each.picture >= len(phrases[each.attribute]):
            last = len(phrases[each.attribute]) - 1
            problems.append(f"{each.attribute}:{each.picture}: its pictures are 0 to {last}")
        elif place in seen:
            problems.append(f"{each.attribute} is to be kept of two pictures: choose one")
        else:
            seen.add(place)
            words, mark = phrases[each.attribute][each.picture], f"{{{slot}}}"
            if beside and mark in text:
                text = text.replace(mark, f"{mark} {words}", 1)
            else:
                text = f"{text.rstrip('.,;!? ')} {words}"
    raise_all(problems, UserError, "keep")
    return Prompt(text)


def _slot_of(keep: Keep, concepts: Mapping[str, Concept]) -> tuple[str, str]:
    """The placeholder that is meant, and what is wrong, if anything."""
    if not concepts:
        return "", f"{keep.attribute}:{keep.picture} needs a concept: give the one that learned it"
    if keep.slot:
        return keep.slot, "" if keep.slot in concepts else f"no concept for {{{keep.slot}}}"
    if len(concepts) > 1:
        names = ", ".join(f"{slot}={keep.attribute}:{keep.picture}" for slot in concepts)
        return "", f"{keep.attribute}:{keep.picture}: say whose, {names}"
    return next(iter(concepts)), ""
