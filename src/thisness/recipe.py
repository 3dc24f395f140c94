"""How pictures are made, as plain data: which method, which adjustments and attachments, how it is sampled.

The command line, the web page and a benchmark all run recipes. A part is written "name:key=value,key=value":

    tea:alpha=0.2,beta=1.5      dreambooth:rank=8,text_encoder=true      swap:layers="1,2,3"
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .errors import ConfigurationError, ThisnessError, UserError, nearest, raise_all

Value = None | bool | int | float | str | tuple[Any, ...]
Settings = TypeVar("Settings")

_PART_NAME = re.compile(r"[a-z][a-z0-9-]*")
_KEY = re.compile(r"[a-z][a-z0-9_]*")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_BETWEEN_SETTINGS = re.compile(r',(?=(?:[^"]*"[^"]*")*[^"]*$)')  # commas outside of quotes
_WORDS: dict[str, Value] = {"true": True, "false": False, "none": None}


@dataclass(frozen=True)
class Spec:
    """One part of a recipe: its name and its settings. `str` of it is what `parse_spec` reads."""

    name: str
    settings: tuple[tuple[str, Value], ...] = ()

    @classmethod
    def of(cls, name: str, settings: Mapping[str, Any] | None = None, /, **more: Any) -> Spec:
        """A part from a mapping, or from keywords: `Spec.of("tea", alpha=0.2)`; lists become tuples."""
        return cls(name, tuple((key, _frozen(value)) for key, value in {**(settings or {}), **more}.items()))

    @property
    def values(self) -> dict[str, Value]:
        """The settings by key."""
        return dict(self.settings)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "settings": {key: _thawed(value) for key, value in self.settings}}

    def __str__(self) -> str:
        pairs = ",".join(f"{key}={_written(value)}" for key, value in self.settings)
        return f"{self.name}:{pairs}" if pairs else self.name


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a picture but the base, the subject, the sentence and the seed.

    Args:
        method: how the subject is learned or encoded; None for the base alone.
        adjustments: changes of the conditioning, in the order in which they are applied.
        attachments: changes of what the layers do, in the order in which they are attached.
        sampling: settings of the sampler, under the name "sampling".
    """

    method: Spec | None = None
    adjustments: tuple[Spec, ...] = ()
    attachments: tuple[Spec, ...] = ()
    sampling: Spec = field(default_factory=lambda: Spec("sampling"))

    def to_dict(self) -> dict[str, Any]:
        """JSON data that `from_dict` reads back to an equal recipe."""
        return {
            "method": self.method.to_dict() if self.method else None,
            "adjustments": [part.to_dict() for part in self.adjustments],
            "attachments": [part.to_dict() for part in self.attachments],
            "sampling": self.sampling.to_dict()["settings"],
        }

    @classmethod
    def from_dict(cls, data: Any) -> Recipe:
        """A recipe from JSON data. A part may also be written as text ("tea:alpha=0.2"); what is absent is empty.

        Raises:
            ConfigurationError: another structure, unknown keys; all of it at once.
        """
        if not isinstance(data, Mapping):
            raise ConfigurationError(f"a recipe is an object with {', '.join(_RECIPE_KEYS)}, not {type(data).__name__}")
        problems = [f"unknown key {str(k)!r}{nearest(str(k), _RECIPE_KEYS)}" for k in data if k not in _RECIPE_KEYS]
        method = data.get("method")
        parts = [] if method is None else _read_parts([method], "method", problems)
        adjustments = _read_parts(data.get("adjustments", ()), "adjustment", problems)
        attachments = _read_parts(data.get("attachments", ()), "attachment", problems)
        settings = data.get("sampling", {})
        if not isinstance(settings, Mapping):
            problems.append(f"sampling must be an object of settings, not {type(settings).__name__}")
            settings = {}
        sampling = _read_parts([{"name": "sampling", "settings": settings}], "part", problems)
        raise_all(problems, lead="recipe")
        return cls(parts[0] if parts else None, tuple(adjustments), tuple(attachments), sampling[0])


_RECIPE_KEYS = tuple(entry.name for entry in dataclasses.fields(Recipe))


@dataclass(frozen=True)
class Known:
    """What exists: for each kind of part the dataclass of settings by name. What is registered fills it."""

    methods: Mapping[str, type] = field(default_factory=dict)
    adjustments: Mapping[str, type] = field(default_factory=dict)
    attachments: Mapping[str, type] = field(default_factory=dict)
    sampling: type | None = None


def parse_spec(text: str, kind: str = "part") -> Spec:
    """A part from text: "tea", "tea:alpha=0.2,beta=1.5".

    Values: whole numbers, numbers, true, false, none, or text; text with a comma in double quotes.

    Args:
        text: what was written.
        kind: "method", "adjustment" or "attachment", for the message.

    Raises:
        ConfigurationError: of another form; all of it at once.
    """
    name, colon, rest = text.strip().partition(":")
    problems = []
    if not _PART_NAME.fullmatch(name):
        problems.append(f"{name!r} is not a name (a-z, 0-9 and '-')")
    if colon and not rest.strip():
        problems.append("nothing follows the colon")
    settings: dict[str, Value] = {}
    for pair in _BETWEEN_SETTINGS.split(rest) if rest.strip() else []:
        key, equals, value = (piece.strip() for piece in pair.partition("="))
        key = key.replace("-", "_")
        if not equals or not _KEY.fullmatch(key) or not value:
            problems.append(f"{pair.strip()!r} is not of the form key=value")
        elif key in settings:
            problems.append(f"{key} is set twice")
        elif value.count('"') not in (0, 2) or (value.count('"') == 2 and value[0] + value[-1] != '""'):
            problems.append(f"{pair.strip()!r}: quotes go around a whole value")
        else:
            settings[key] = read_value(value)
    raise_all(problems, lead=f"{kind} {text.strip()[:120]!r} (write name:key=value,key=value)")
    return Spec.of(name, settings)


def validate(recipe: Recipe, known: Known) -> None:
    """Check a recipe against what exists.

    Raises:
        ConfigurationError: everything that is wrong, at once, with the nearest valid names: unknown parts, unknown or
            missing settings, values of another type or out of their range.
    """
    problems: list[str] = []
    for kind, parts, types_by_name in (
        ("method", [recipe.method] if recipe.method else [], known.methods),
        ("adjustment", recipe.adjustments, known.adjustments),
        ("attachment", recipe.attachments, known.attachments),
        ("sampling", [recipe.sampling] if known.sampling else [], {"sampling": known.sampling}),
    ):
        for part in parts:
            settings = types_by_name.get(part.name)
            if settings is None:
                valid = ", ".join(types_by_name) or "none yet"
                problems.append(f"unknown {kind} {part.name!r}{nearest(part.name, types_by_name)}; known: {valid}")
            else:
                problems += settings_problems(part.values, settings, part.name)
    raise_all(problems)


def build_settings(values: Mapping[str, Any], settings: type[Settings], what: str) -> Settings:
    """An instance of a settings dataclass from values that a person gave.

    Args:
        values: by key; None of them need be there but those without a default.
        settings: the dataclass; its `__post_init__` may raise ValueError for values out of their range.
        what: whose settings they are, for the message.

    Raises:
        ConfigurationError: everything that is wrong, at once.
    """
    raise_all(settings_problems(values, settings, what))
    return settings(**_converted(values, settings))


def settings_problems(values: Mapping[str, Any], settings: type, what: str) -> list[str]:
    """What is wrong with values for a settings dataclass: a clause for each, none if all is well."""
    hints = typing.get_type_hints(settings)
    entries = {entry.name: entry for entry in dataclasses.fields(settings) if entry.init}
    problems = []
    for key, value in values.items():
        if key not in entries:
            valid = ", ".join(entries) or "none"
            problems.append(f"{what} has no setting {key!r}{nearest(key, entries)}; it has: {valid}")
        elif isinstance(value, float) and not math.isfinite(value):
            problems.append(f"{what}.{key} is {value}: expected a finite number")
        elif not _fits(value, hints[key]):
            problems.append(f"{what}.{key} is {_written(value)}: expected {described(hints[key])}")
    missing = dataclasses.MISSING
    for key, entry in entries.items():
        if entry.default is missing and entry.default_factory is missing and key not in values:
            problems.append(f"{what}.{key} is not set: expected {described(hints[key])}")
    if not problems:
        try:
            settings(**_converted(values, settings))
        except UserError as error:
            problems.append(f"{what}: {error}")
        except (ValueError, TypeError) as error:
            problems.append(f"{what}: {error}")
    return problems


def _read_parts(data: Any, kind: str, problems: list[str]) -> list[Spec]:
    """Parts from JSON data; what is wrong is appended to `problems`."""
    if isinstance(data, (str, Mapping)) or not isinstance(data, Sequence):
        problems.append(f"{kind}s must be a list, not {type(data).__name__}")
        return []
    parts = []
    for entry in data:
        if isinstance(entry, str):
            try:
                parts.append(parse_spec(entry, kind))
            except ThisnessError as error:
                problems.append(str(error))
            continue
        name = entry.get("name") if isinstance(entry, Mapping) else None
        settings = entry.get("settings", {}) if isinstance(entry, Mapping) else None
        if not isinstance(name, str) or not _PART_NAME.fullmatch(name) or not isinstance(settings, Mapping):
            problems.append(f"{kind} {entry!r:.80} is not {{name, settings}}")
        elif extra := [str(key) for key in entry if key not in ("name", "settings")]:
            problems.append(f"{kind} {name!r}: unknown key {extra[0]!r} (its settings go under 'settings')")
        elif wrong := [str(k) for k, v in settings.items() if not (isinstance(k, str) and _is_plain(v))]:
            problems.append(
                f"{kind} {name!r}: the value of {', '.join(wrong)} is not a number, text, true, false or a list"
            )
        else:
            parts.append(Spec.of(name, settings))
    return parts


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(entry) for entry in value)
    return value is None or isinstance(value, (bool, int, float, str))


def read_value(text: str) -> Value:
    """A value as people write it: a whole number, a number, true, false, none, else text; quotes make it text."""
    if text[0] == '"':
        return text[1:-1]
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    return float(text) if _NUMBER.fullmatch(text) else text


def _written(value: Any) -> str:
    if isinstance(value, str):
        plain = read_value(value) == value if value else False
        return value if plain and not re.search(r'[,"\s]', value) else f'"{value}"'
    if isinstance(value, tuple):
        return f'"{",".join(_written(entry) for entry in value)}"'
    return "none" if value is None else json.dumps(value)


def _frozen(value: Any) -> Value:
    return tuple(_frozen(entry) for entry in value) if isinstance(value, (list, tuple)) else value


def _thawed(value: Value) -> Any:
    return [_thawed(entry) for entry in value] if isinstance(value, tuple) else value


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type. Whole numbers are numbers; true and false are not; unknown types take anything."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin in (tuple, list):
        entries = _entries(value)
        if entries is None:
            return False
        if origin is tuple and arguments and arguments[-1] is not Ellipsis:
            return len(entries) == len(arguments) and all(map(_fits, entries, arguments))
        return all(_fits(entry, arguments[0]) for entry in entries) if arguments else True
    if hint in (int, float, bool, str, type(None)):
        if isinstance(value, bool):
            return hint is bool
        return isinstance(value, (int, float)) if hint is float else isinstance(value, hint)
    return True


def _entries(value: Any) -> list[Any] | None:
    """The entries of a list, also of one written as text: "1,2,3" or a single number."""
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, str):
        return [read_value(piece.strip()) for piece in value.split(",") if piece.strip()]
    return [value] if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _converted(values: Mapping[str, Any], settings: type) -> dict[str, Any]:
    """Values in the exact types of their fields: whole numbers to numbers, lists to tuples."""
    hints = typing.get_type_hints(settings)
    result: dict[str, Any] = {}
    for key, value in values.items():
        origin = typing.get_origin(hints[key])
        if hints[key] is float:
            value = float(value)
        elif origin in (tuple, list):
            value = origin(_entries(value) or ())
        result[key] = value
    return result


def described(hint: Any) -> str:
    """A type as it is told to a person: "a whole number or none"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(described(argument) for argument in arguments)
    if origin is typing.Literal:
        return "one of " + ", ".join(str(argument) for argument in arguments)
    if origin in (tuple, list):
        return f"a list of {described(arguments[0])}" if arguments else "a list"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "none"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))
