"""Folders that are artefacts: whole or not there at all.

Built in a temporary sibling; `COMPLETE.json`, with the hash of each file, is written last; then the new folder takes
the place of the old one in one step. A folder without its marker is not an artefact.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import ArtefactError
from .disk import make_parent, partial_sibling, read_json, sha256, sync, write_json
from .names import inside, listed

MARKER = "COMPLETE.json"
SECONDS_UNTIL_LEFT_OVER = 600.0  # a process of another machine may share the disk, and its number says nothing here


@contextmanager
def directory(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Build a folder that is whole or not there at all.

    Yields a temporary sibling to write into. On a clean exit its files are flushed, hashed into COMPLETE.json and
    verified; only then it takes the place of an older folder, which is removed last. On an exception, and when the
    process is killed, the older folder is as it was.

    Args:
        path: where the folder goes.
        overwrite: replace whatever folder is there. Otherwise only an empty one, or an earlier artefact to which
            nobody has added files.

    Raises:
        ArtefactError: a file, a link or somebody's own folder is in the way; or a link was put into the new folder.
        OSError: it cannot be written.
    """
    path = Path(path)
    check_replaceable(path, overwrite)
    make_parent(path)
    _tidy_siblings(path)
    building = partial_sibling(path)
    building.mkdir()
    try:
        yield building
        _write_marker(building)
        verify_directory(building)
        check_replaceable(path, overwrite)
        _put_in_place(building, path)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def verify_directory(path: str | Path) -> None:
    """Check that a folder is a whole artefact. Files that its marker does not list are not looked at.

    Raises:
        ArtefactError: not there, no COMPLETE.json, or a listed file is missing, a link, or not as it was written.
    """
    path = Path(path)
    _tidy_siblings(path)
    if not path.is_dir():
        raise ArtefactError(f"{path} is not there" if not path.exists() else f"{path} is a file: expected a folder")
    problems = []
    for name, digest in _marked_files(path).items():
        file = inside(path, name)
        if not file.is_file():
            problems.append(f"{name} is missing")
        elif sha256(file) != digest:
            problems.append(f"{name} is not as it was written")
    if problems:
        raise ArtefactError(f"{path} is damaged ({listed(problems)}): fetch or make it again")


def _marked_files(path: Path) -> dict[str, str]:
    """What COMPLETE.json lists: hash by relative path."""
    marker = inside(path, MARKER)
    if not marker.is_file():
        raise ArtefactError(
            f"{path} has no {MARKER}, so writing it was interrupted, or it is not a folder of thisness: make it again"
        )
    data = read_json(marker)
    files = data.get("files") if isinstance(data, dict) else None
    if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
        raise ArtefactError(f"{marker} does not list files with their hashes: the folder is damaged, make it again")
    return files


def _write_marker(building: Path) -> None:
    files = {}
    for entry in sorted(building.rglob("*")):
        if entry.is_symlink():
            raise ArtefactError(f"{entry.name} is a link: an artefact holds plain files only")
        if entry.is_dir():
            sync(entry)
        elif entry != building / MARKER:
            sync(entry)
            files[entry.relative_to(building).as_posix()] = sha256(entry)
    write_json(building / MARKER, {"files": files})


def check_replaceable(path: Path, overwrite: bool = False) -> None:
    """Refuse a folder whose content may be somebody's own; for those who compute long before they write.

    Raises:
        ArtefactError: a file, a link, or a folder that `directory` would not replace.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise ArtefactError(f"{path} is {'a link' if path.is_symlink() else 'a file'}: name a folder")
    if overwrite or not path.exists() or not any(path.iterdir()):
        return
    if not (path / MARKER).is_file():
        raise ArtefactError(f"{path} exists, is not empty and was not written by thisness: name another folder")
    known = {MARKER, *_marked_files(path)}
    entries = (entry.relative_to(path) for entry in path.rglob("*") if not entry.is_dir())
    added = [entry.as_posix() for entry in entries if entry.as_posix() not in known and entry.name[0] != "."]
    if added:
        raise ArtefactError(f"{path} holds files that somebody added ({listed(sorted(added))}): move them away first")


def _put_in_place(building: Path, path: Path) -> None:
    """Swap the new folder in; the old one goes last."""
    if not path.exists():
        building.rename(path)
    elif _exchange(building, path):
        shutil.rmtree(building, ignore_errors=True)
    else:  # no atomic exchange here: between the two renames, `_tidy_siblings` of the next reader puts the old one back
        previous = building.with_suffix(".previous")
        path.rename(previous)
        building.rename(path)
        shutil.rmtree(previous, ignore_errors=True)
    sync(path.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step, where the system can (renameat2 of Linux)."""
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _tidy_siblings(path: Path) -> None:
    """Put an old folder back that a killed process had moved aside, and remove what killed processes left over."""
    pattern = re.compile(re.escape(f".{path.name[:160]}.") + r"(\d+)-[0-9a-f]{8}\.(partial|previous)")
    if not path.parent.is_dir():
        return
    left = [(entry, match) for entry in path.parent.iterdir() if (match := pattern.fullmatch(entry.name))]
    for entry, match in left:
        if _alive(int(match[1])) or not entry.is_dir() or entry.is_symlink():
            continue
        if match[2] == "previous" and not path.exists():
            with suppress(OSError):
                entry.rename(path)
        elif time.time() - entry.stat().st_mtime > SECONDS_UNTIL_LEFT_OVER:
            shutil.rmtree(entry, ignore_errors=True)


def _alive(process: int) -> bool:
    """Whether a process of this number runs on this machine."""
    if process == os.getpid():
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
