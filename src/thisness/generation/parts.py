"""Adjustments and attachments: made from what a recipe says, and written back into one."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from ..attention import ATTACHMENTS
from ..conditioning import ADJUSTMENTS
from ..errors import ConfigurationError, nearest, raise_all
from ..recipe import Known, Recipe, Spec, build_settings, parse_spec, validate
from ..sampling import SamplingOptions

KNOWN = Known(adjustments=ADJUSTMENTS, attachments=ATTACHMENTS, sampling=SamplingOptions)

COMBINED: dict[str, tuple[str, ...]] = {"harmonizing": ("orchestrate", "attention-swap")}
"""Adjustments and attachments that go together, under one name."""


def combined(spec: Spec) -> tuple[tuple[Spec, ...], tuple[Spec, ...]]:
    """The adjustments and the attachments that a combination stands for; a setting goes to each part that has it.

    Raises:
        ConfigurationError: no such combination, or settings that none of its parts has; all of it at once.
    """
    if spec.name not in COMBINED:
        raise ConfigurationError(
            f"no recipe {spec.name!r}{nearest(spec.name, COMBINED)}: known are {', '.join(COMBINED)}"
        )
    importlib.import_module("thisness.methods")
    kinds = {name: {**ADJUSTMENTS, **ATTACHMENTS}[name] for name in COMBINED[spec.name]}
    takes = {name: {field.name for field in dataclasses.fields(kind) if field.init} for name, kind in kinds.items()}
    every = sorted(set().union(*takes.values()))
    valid = ", ".join(every)
    unknown = [f"no setting {key!r}{nearest(key, every)}; it has: {valid}" for key in spec.values if key not in every]
    raise_all(unknown, ConfigurationError, f"recipe {spec.name}")
    parts = [Spec.of(name, {key: value for key, value in spec.values.items() if key in takes[name]}) for name in kinds]
    adjust = tuple(part for part in parts if part.name in ADJUSTMENTS)
    attach = tuple(part for part in parts if part.name in ATTACHMENTS)
    validate(Recipe(adjustments=adjust, attachments=attach), KNOWN)
    return adjust, attach


def build_parts(given: Sequence[Any], kind: str, valid: Mapping[str, type]) -> list[Any]:
    """Objects that act, from objects, `Spec`s, or text such as "tea:alpha=0.2".

    Args:
        given: what the caller passed.
        kind: "adjustment" or "attachment".
        valid: the classes by name.

    Raises:
        ConfigurationError: unknown names and settings, with the nearest valid ones; all of it at once.
    """
    specs = [parse_spec(each, kind) if isinstance(each, str) else each for each in given]
    if any(isinstance(each, Spec) and each.name not in valid for each in specs):
        importlib.import_module("thisness.methods")  # what is there registers itself; nothing here knows it
    named = tuple(each for each in specs if isinstance(each, Spec))
    validate(Recipe(adjustments=named) if kind == "adjustment" else Recipe(attachments=named), KNOWN)
    unfit = [each for each in specs if not isinstance(each, Spec) and isinstance(each, type)]
    raise_all([f"{each.__name__} is a class: pass {each.__name__}(...)" for each in unfit], ConfigurationError, kind)
    return [
        build_settings(each.values, valid[each.name], each.name) if isinstance(each, Spec) else each for each in specs
    ]


def describe_parts(parts: Sequence[Any], valid: Mapping[str, type]) -> tuple[tuple[Spec, ...], list[str]]:
    """What a recipe says of objects, and the names of those that it cannot say."""
    names = {cls: name for name, cls in valid.items()}
    specs, unsaid = [], []
    for part in parts:
        name = names.get(type(part))
        if name is None or not dataclasses.is_dataclass(part):
            unsaid.append(getattr(part, "__qualname__", type(part).__qualname__))
        else:
            settings = {field.name: getattr(part, field.name) for field in dataclasses.fields(part) if field.init}
            specs.append(Spec.of(name, settings))
    return tuple(specs), unsaid
