"""Personalized text-to-image generation: keep what makes one thing this thing while everything else changes.

    import thisness as ts

    base = ts.load_base("playroom-sd")
    subject = ts.Subject.from_folder("photos/", noun="dog")
    concept = ts.learn("dreambooth-lora", subject, base)
    result = ts.generate(base, "a {subject} on the beach", concept=concept, seeds=range(4))
    result.sheet().save("dog.png")

Names are imported when they are first used: `import thisness` itself loads no heavy library.
"""

# ruff: noqa: F401
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "ArtefactError": "errors",
    "Base": "bases",
    "CaptureMaps": "attention",
    "Concept": "concept",
    "Conditioning": "conditioning",
    "ConfigurationError": "errors",
    "Generation": "generation",
    "ImageError": "errors",
    "InjectKeysValues": "attention",
    "Intervention": "attention",
    "MaskAttention": "attention",
    "Prompt": "prompt",
    "PromptError": "errors",
    "Recipe": "recipe",
    "RecordKeysValues": "attention",
    "SamplingOptions": "sampling",
    "SlotWord": "prompt",
    "Subject": "subject",
    "SwapKeysValues": "attention",
    "ThisnessError": "errors",
    "UserError": "errors",
    "attached": "attention",
    "encode": "conditioning",
    "generate": "generation",
    "learn": "methods",
    "load_base": "bases",
    "read_subject": "methods.zero_shot",
    "replay": "generation",
    "sample": "sampling",
}

__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_WHERE[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))


if TYPE_CHECKING:  # for type checkers and editors; the same names as in _WHERE (tested)
    from .attention import (
        CaptureMaps,
        InjectKeysValues,
        Intervention,
        MaskAttention,
        RecordKeysValues,
        SwapKeysValues,
        attached,
    )
    from .bases import Base, load_base
    from .concept import Concept
    from .conditioning import Conditioning, encode
    from .errors import ArtefactError, ConfigurationError, ImageError, PromptError, ThisnessError, UserError
    from .generation import Generation, generate, replay
    from .methods import learn
    from .methods.zero_shot import read_subject
    from .prompt import Prompt, SlotWord
    from .recipe import Recipe
    from .sampling import SamplingOptions, sample
    from .subject import Subject
