"""What will suffer, said before a subject is learned; none of it is a reason not to."""

from __future__ import annotations

from typing import Any

from ..bases import Base
from ..doctor import check_subject
from ..subject import Subject


def notes(method: str, subject: Subject, base: Base, settings: Any) -> list[str]:
    """One line each.

    Args:
        method: its name.
        subject: one picture, copies among the pictures, small or blurred or dark ones are told.
        base: a noun that its tokenizer does not know as a word is told.
        settings: of the method; the word may start from the noun's row.
    """
    found = [each.text for each in check_subject(subject, resolution=base.resolution) if each.level == "warning"]
    if len(subject.images) == 1 and method == "detex":
        found.append("with 1 picture nothing tells the thing from its pose and background: two are the least")
    return found + _noun_notes(subject.noun, base, getattr(settings, "start", None))


def _noun_notes(noun: str, base: Base, start: str | None) -> list[str]:
    """start: the word whose row a learned one starts from; "" the noun's; None: the method does not start from it."""
    tokenizer = base.tokenizer
    pieces = [piece.replace("</w>", "") for piece in tokenizer.tokenize(noun)]
    shown = " ".join(map(repr, pieces))
    if len(pieces) > len(noun.split()):
        text = f"{base.name} has no token for the noun {noun!r} and reads {shown}: it may not know the thing; a word "
        return [text + "that it knows is better (--noun)" + _starts(pieces, start)]
    if len(pieces) > 1 and start == "":
        return [f"the noun {noun!r} is {len(pieces)} tokens" + _starts(pieces, start)]
    return []


def _starts(pieces: list[str], start: str | None) -> str:
    return f"; the learned word starts from the last one, {pieces[-1]!r} (--set start=WORD)" if start == "" else ""
