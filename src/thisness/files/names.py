"""Names that are safe on every system, and paths that stay in their folder."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ..errors import ArtefactError, UserError

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_RESERVED = frozenset(
    {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}
)  # device names of Windows, with any extension


def checked_name(name: str, what: str = "name") -> str:
    """A name that is safe as a file's, on every system.

    Args:
        name: 1 to 64 of a-z, 0-9 and "-", not beginning with "-".
        what: what is named, for the message.

    Raises:
        UserError: another form, or a reserved device name; the message proposes one that fits.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"{what} {name[:80]!r} must be 1 to 64 of a-z, 0-9 and '-': {_proposal(name)}")
    if name in _RESERVED:
        raise UserError(f"{what} {name!r} is reserved by some systems: {_proposal('my ' + name)}")
    return name


def safe_name(text: str, default: str = "") -> str:
    """The nearest valid name to free text ("My Dog!" -> "my-dog"), or `default` where nothing is left of it."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:64].rstrip("-")
    return default if not name or name in _RESERVED else name


def inside(folder: str | Path, name: str, what: str = "file") -> Path:
    """The path of a member of a folder that cannot lead out of it.

    Args:
        folder: the folder.
        name: a relative path with "/" between its parts, from a manifest or an archive: not to be trusted.
        what: what is named, for the message.

    Raises:
        ArtefactError: absolute, with "..", a drive or a control character, of a reserved name, or through a link.
    """
    parts = name.split("/")
    harmless = name and all(
        part not in ("", ".", "..") and not re.search(r'[\\:*?"<>|\x00-\x1f]', part) for part in parts
    )
    if not harmless or any(part.split(".")[0].lower() in _RESERVED for part in parts):
        raise ArtefactError(f"{what} {name[:80]!r} is not a plain relative path: refused, as it could leave its folder")
    path = Path(folder)
    for part in parts:
        path = path / part
        if path.is_symlink():
            raise ArtefactError(f"{path} is a link: refused, as it could leave its folder; put the file itself there")
    return path


def _proposal(name: str) -> str:
    fitting = safe_name(name)
    return f"write {fitting!r}" if fitting else "for instance 'rufus'"


def listed(names: Iterable[str], limit: int = 6) -> str:
    """The first few of many names, and how many more there are."""
    every = list(names)
    rest = f" and {len(every) - limit} more" if len(every) > limit else ""
    return ", ".join(every[:limit]) + rest
