"""What several commands read from the line: seeds, `--set key=value`, devices."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Sequence
from typing import Any

from thisness.errors import UserError, nearest, raise_all

MAX_SEEDS = 10_000
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds from "0-3,7".

    Args:
        text: seeds and ranges (both ends included) separated by commas; a seed is in 0 ... 2**63-1.

    Returns:
        The seeds in the order given; one that is repeated counts once.

    Raises:
        UserError: not of this form, a range that runs backwards, or more than 10,000 seeds.
    """
    seeds: dict[int, None] = {}
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise UserError(f"--seeds {text!r}: {part.strip()!r} is neither a seed nor a range: write e.g. 0-3,7")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise UserError(f"--seeds {text!r}: the range {part.strip()} runs backwards: write {last}-{first}")
        if last >= 2**63:
            raise UserError(f"--seeds {text!r}: {last} is too large: seeds go from 0 to 2**63-1")
        if last - first >= MAX_SEEDS or len(seeds) + last - first >= MAX_SEEDS:
            raise UserError(f"--seeds {text!r}: more than {MAX_SEEDS} seeds: split them over several calls")
        seeds.update(dict.fromkeys(range(first, last + 1)))
    return tuple(seeds)


def fields(settings: type) -> dict[str, tuple[Any, Any, str]]:
    """What a settings dataclass takes.

    Returns:
        For each field its type, its default (`dataclasses.MISSING` where it must be given) and its meaning (the
        field's metadata "help", or "").
    """
    hints = typing.get_type_hints(settings)
    found: dict[str, tuple[Any, Any, str]] = {}
    for field in dataclasses.fields(settings):
        default = field.default
        if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if field.init:
            found[field.name] = (hints[field.name], default, str(field.metadata.get("help", "")))
    return found


def type_name(kind: Any) -> str:
    """A type as it is shown to a person: "whole number", "number", "yes or no", "a|b" ..."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(part) for part in arguments)
    if origin is typing.Literal:
        return "|".join(str(choice) for choice in arguments)
    if origin in (tuple, list):
        inner = arguments[0] if arguments else str
        return f"{type_name(inner)}, ..."
    names = {int: "whole number", float: "number", bool: "true|false", str: "text", type(None): "none"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def convert(text: str, kind: Any) -> Any:
    """One value of a field's type from text.

    Args:
        text: what was typed after `=`.
        kind: int, float, bool, str, None, a Literal, a union of these, or a tuple or list of one of them.

    Raises:
        ValueError: the text is no value of that type.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        for part in sorted(arguments, key=lambda part: part is str):  # text takes anything, so it comes last
            try:
                return convert(text, part)
            except ValueError:
                continue
        raise ValueError(text)
    if origin is typing.Literal:
        for choice in arguments:
            if text == str(choice):
                return choice
        raise ValueError(text)
    if origin in (tuple, list):
        inner = arguments[0] if arguments else str
        values = [convert(part.strip(), inner) for part in text.split(",") if part.strip()]
        if origin is tuple and arguments and arguments[-1] is not Ellipsis and len(values) != len(arguments):
            raise ValueError(text)
        return origin(values)
    if kind is type(None):
        if text.lower() != "none":
            raise ValueError(text)
        return None
    if kind is bool:
        truth = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if text.lower() not in truth:
            raise ValueError(text)
        return truth[text.lower()]
    if kind is int:
        return int(text)
    if kind is float:
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(text)
        return number
    if kind is str:
        return text
    raise ValueError(text)


def parse_settings(pairs: Sequence[str], settings: type, what: str) -> dict[str, Any]:
    """Values for a settings dataclass from "key=value" words.

    Args:
        pairs: the words of `--set`.
        settings: the dataclass that names the keys and their types.
        what: whose settings they are, for the message.

    Returns:
        The values by key; a key that is repeated has its last value.

    Raises:
        ConfigurationError: everything that is wrong, at once: no `=`, an unknown key, a value of another type.
    """
    known = fields(settings)
    values: dict[str, Any] = {}
    wrong: list[str] = []
    unknown = False
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip().replace("-", "_")
        if not equals:
            wrong.append(f"{pair!r} is not of the form key=value")
        elif key not in known:
            unknown = True
            wrong.append(f"{what} has no setting {key!r}{nearest(key, known)}")
        else:
            try:
                values[key] = convert(text.strip(), known[key][0])
            except ValueError:
                wrong.append(f"{key}={text.strip()!r}: expected {type_name(known[key][0])}")
    raise_all(wrong, lead=f"settings of {what} ({', '.join(known)})" if unknown else f"settings of {what}")
    return values
