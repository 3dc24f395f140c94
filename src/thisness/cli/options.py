"""What commands read from the line: seeds, concepts, `--set key=value`; and the words that hints begin with."""

from __future__ import annotations

import dataclasses
import os
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thisness.errors import UserError, raise_all
from thisness.recipe import read_value

MAX_SEEDS = 10_000
_NAMES_NEEDED = "each of several needs the name of its placeholder: --concept rex=FOLDER --concept mug=FOLDER"
_SLOT = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


def program() -> str:
    """What a person types before a command's name: "thisness", or what go.py says that it was called by."""
    return os.environ.get("THISNESS_PROGRAM") or "thisness"


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


def parse_concepts(texts: Sequence[str]) -> dict[str, Path]:
    """Folders of concepts by placeholder, from "FOLDER" or "NAME=FOLDER".

    Args:
        texts: what was given; a folder whose own name has an equals sign is a folder.

    Returns:
        One folder under "" for a concept without a name, else each under its placeholder.

    Raises:
        UserError: several without names, or one name twice.
    """
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if not equals or not _SLOT.fullmatch(name) or Path(text).exists():
            name, folder = "", text
        if name in found:
            raise UserError(f"--concept {text}: " + (f"{{{name}}} is given twice" if name else _NAMES_NEEDED))
        found[name] = Path(folder)
    if "" in found and len(found) > 1:
        raise UserError(f"--concept {found['']}: {_NAMES_NEEDED}")
    return found


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


def parse_pairs(pairs: Sequence[str]) -> dict[str, Any]:
    """Values from "key=value" words; whoever takes them checks the keys and the types.

    Args:
        pairs: the words of `--set`; dashes in a key count as underscores.

    Returns:
        The values by key; a key that is repeated has its last value.

    Raises:
        ConfigurationError: words of another form, all at once.
    """
    values: dict[str, Any] = {}
    wrong: list[str] = []
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if key.strip() and equals and text.strip():
            values[key.strip().replace("-", "_")] = read_value(text.strip())
        else:
            wrong.append(f"{pair!r} is not of the form key=value")
    raise_all(wrong, lead="--set")
    return values
