"""The Playroom: a rendered world of soft clay toys, and the embedded models trained on it.

Ground truth for everything that personalization is about: who the subject is, its pose, its place, what it wears,
where its pixels are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .captions import ATTRIBUTES, caption, labels
    from .render import Rendering, render
    from .subjects import held_out_identity, held_out_subjects, write_subject
    from .world import Identity, Scene, Toy, change, identity, random_scene

_HOME = {
    **dict.fromkeys(("Identity", "Scene", "Toy", "change", "identity", "random_scene"), "world"),
    **dict.fromkeys(("Rendering", "render"), "render"),
    **dict.fromkeys(("ATTRIBUTES", "caption", "labels"), "captions"),
    **dict.fromkeys(("held_out_identity", "held_out_subjects", "write_subject"), "subjects"),
}
__all__ = [
    "ATTRIBUTES",
    "Identity",
    "Rendering",
    "Scene",
    "Toy",
    "caption",
    "change",
    "held_out_identity",
    "held_out_subjects",
    "identity",
    "labels",
    "random_scene",
    "render",
    "write_subject",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOME[name]}", __name__), name)
