"""Folders of strangers: what is there, what is missing, and what is only misspelt; all problems at once."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import ArtefactError, ImageError, UserError, raise_all
from ...files import inside, listed, safe_name
from ...subject import checked_noun, find_pictures
from ..items import BenchSubject, Case

MAX_TEXT_BYTES = 2**20
SHOWN = 12  # problems in one line; a wrong folder has hundreds


@dataclass(frozen=True)
class Contents:
    """What a loader finds: subjects, cases, and what is worth knowing about this copy."""

    subjects: tuple[BenchSubject, ...]
    cases: tuple[Case, ...]
    notes: tuple[str, ...] = ()


@dataclass
class Reader:
    """Reads members of one folder and collects what is wrong with them.

    Args:
        folder: the user's copy.
        problems: one clause each.
    """

    folder: Path
    problems: list[str] = field(default_factory=list)

    def member(self, name: str, *, below: Path | None = None, folder: bool = False, by: str = "") -> Path | None:
        """A file or folder that must be there, or None; the nearest name beside it where it is misspelt.

        Args:
            name: relative path with "/"; a leading "./" is allowed. Not trusted.
            below: where to look; the copy itself by default.
            folder: a folder is wanted.
            by: what names it, for the message: "dataset.json".
        """
        root = below or self.folder
        while name.startswith("./"):
            name = name[2:]
        try:
            path = inside(root, name.rstrip("/"), f"{by}: the path" if by else "the path")
        except ArtefactError as error:
            self.problems.append(str(error))
            return None
        if path.is_dir() if folder else path.is_file():
            return path
        what = "folder" if folder else "file"
        if path.exists():
            self.problems.append(f"{self.short(path)} is not a {what}")
        else:
            said = f" (named in {by})" if by else ""
            self.problems.append(f"the {what} {self.short(path)} is missing{said}{misspelt(path)}")
        return None

    def lines(self, path: Path) -> list[str]:
        """Lines of a text file, stripped; [] with a problem where it is no text."""
        try:
            if path.stat().st_size > MAX_TEXT_BYTES:
                self.problems.append(f"{self.short(path)} has over {MAX_TEXT_BYTES // 2**20} MiB: is it a text file?")
                return []
            return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            self.problems.append(f"{self.short(path)} cannot be read as UTF-8 text ({error})")
            return []

    def table(self, path: Path, needed: Collection[str]) -> list[dict[str, str]]:
        """Rows of a CSV file with a heading; [] with a problem where columns are missing."""
        rows = list(csv.reader(line for line in self.lines(path) if line and not line.startswith("#")))
        heading = [name.strip().lower() for name in rows[0]] if rows else []
        if lacking := [name for name in needed if name not in heading]:
            self.problems.append(
                f"{self.short(path)}: its first line must name the columns {','.join(needed)}; "
                f"missing: {', '.join(lacking)}"
            )
            return []
        return [dict(zip(heading, (cell.strip() for cell in row), strict=False)) for row in rows[1:]]

    def pictures(self, folder: Path) -> tuple[tuple[Path, ...], tuple[Path | None, ...]]:
        """Pictures of a folder by name, and their masks (NAME_mask.png); () with a problem where there are none."""
        try:
            found = find_pictures(folder)
        except ImageError as error:
            self.problems.append(str(error))
            return (), ()
        masks = tuple(mask for _, mask in found)
        return tuple(file for file, _ in found), masks if any(masks) else ()

    def noun(self, text: str, where: str) -> str:
        """A class noun, or "" with a problem."""
        try:
            return checked_noun(text)
        except UserError as error:
            self.problems.append(f"{where}: {error}")
            return ""

    def folders(self, path: Path) -> list[Path]:
        """Folders in a folder by name, without hidden ones; links are refused."""
        found = []
        for entry in sorted(path.iterdir()):
            if entry.is_dir() and entry.name[0] not in "._":
                try:
                    found.append(inside(path, entry.name))
                except ArtefactError as error:
                    self.problems.append(str(error))
        return found

    def short(self, path: Path) -> str:
        """A path relative to the copy."""
        return path.relative_to(self.folder).as_posix() if path.is_relative_to(self.folder) else str(path)

    def check(self, what: str) -> None:
        """Report everything that is wrong.

        Raises:
            ArtefactError: one line with all of it.
        """
        shown = self.problems[:SHOWN]
        if rest := len(self.problems) - len(shown):
            shown.append(f"and {rest} more of the kind")
        raise_all(shown, ArtefactError, f"{self.folder} is not {what} (docs/benchmarks.md has its layout)")


def open_folder(folder: Path, what: str) -> Reader:
    """A reader of an existing folder.

    Raises:
        ArtefactError: it is not there, or a file.
    """
    if not folder.is_dir():
        state = "is a file" if folder.exists() else "is not there"
        raise ArtefactError(f"{folder} {state}: name the folder of your copy of {what}{misspelt(folder)}")
    return Reader(folder)


def misspelt(path: Path) -> str:
    """A hint at a name beside a missing one that is nearly the same."""
    if not path.parent.is_dir():
        return ""
    by_lower = {entry.name.lower(): entry.name for entry in path.parent.iterdir()}
    close = difflib.get_close_matches(path.name.lower(), list(by_lower), n=1, cutoff=0.7)
    return f" ({by_lower[close[0]]!r} is there: is it that, misspelt?)" if close else ""


def unique_name(text: str, taken: Collection[str]) -> str:
    """A subject's name of at most 56 characters, from whatever its folder is called, that is not taken yet."""
    name = safe_name(text, default="subject")[:56].rstrip("-")
    number = 2
    while name in taken:
        name = f"{safe_name(text, default='subject')[:52].rstrip('-')}-{number}"
        number += 1
    return name


def counted(found: Iterable[tuple[int, int, str]]) -> tuple[str, ...]:
    """A note where a copy has other numbers than the published one: (found, published, "subjects")."""
    other = [f"{number} {what} (published: {published})" for number, published, what in found if number != published]
    return (f"this copy has {listed(other)}",) if other else ()
