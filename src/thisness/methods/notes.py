"""What will suffer, said before a subject is learned; none of it is a reason not to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..bases import Base
from ..concept import MANIFEST, Concept
from ..doctor import check_subject
from ..errors import ArtefactError
from ..subject import Subject
from .registry import Method, learned_already


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


def replaced(folder: Path, method: type[Method], subject: Subject, base: Base, settings: Any) -> list[str]:
    """One line where a folder holds a concept that is not what is asked for, so that learning will replace it."""
    if not (folder / MANIFEST).is_file() or learned_already(folder, method, subject, base, settings) is not None:
        return []
    try:
        old = Concept.load(folder)
    except ArtefactError:
        return []
    what = f"{old.name} by {old.method}" + (", learned otherwise" if old.method == method.name else "")
    return [f"{folder} holds {what}: it is replaced when this is done (another --out keeps it)"]


def _noun_notes(noun: str, base: Base, start: str | None) -> list[str]:
    """start: the word whose row a learned one starts from; "" the noun's; None: the method does not start from it."""
    tokenizer = base.tokenizer
    pieces = [piece.replace("</w>", "") for piece in tokenizer.tokenize(noun)]
    shown = " ".join(map(repr, pieces))
    article, _, rest = noun.strip().partition(" ")
    if article.lower() in ("a", "an", "the", "my"):
        told = f"write it without (--noun {rest!r})" if rest else "say what kind of thing it is (--noun dog)"
        return [f"the noun {noun!r} begins with {article!r}, and sentences will say 'a ... {noun}': {told}"]
    if len(pieces) > len(noun.split()):
        text = f"{base.name} has no token for the noun {noun!r} and reads {shown}: it may not know the thing; a word "
        return [text + "that it knows is better (--noun)" + _starts(pieces, start)]
    if len(pieces) > 1 and start == "":
        return [f"the noun {noun!r} is {len(pieces)} tokens" + _starts(pieces, start)]
    return []


def _starts(pieces: list[str], start: str | None) -> str:
    return f"; the learned word starts from the last one, {pieces[-1]!r} (--set start=WORD)" if start == "" else ""
