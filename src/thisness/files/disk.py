"""Single files: written atomically, read with care.

Every write goes to a temporary sibling, is flushed to the disk and then renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import ArtefactError, UserError

MAX_JSON_BYTES = 64 * 2**20


def cache_root() -> Path:
    """Where results that can be made again are kept: THISNESS_CACHE, else ~/.cache/thisness."""
    given = os.environ.get("THISNESS_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "thisness"


def write_with(path: str | Path, write: Callable[[Path], None]) -> None:
    """Write one file atomically: whoever reads `path` sees the old content or the new, never a part.

    Args:
        path: where the file goes; its folder is made if need be. A link there is replaced, not followed.
        write: called with the temporary path that it is to write.

    Raises:
        UserError: `path` is a folder.
        OSError: it cannot be written (disk full, no permission); the old content is as it was.
    """
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        raise UserError(f"{path} is a folder: name a file")
    make_parent(path)
    partial = partial_sibling(path)
    try:
        write(partial)
        sync(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write bytes atomically. Raises as `write_with`."""
    write_with(path, lambda partial: _write_new(partial, data))


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically. Raises as `write_with`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, data: Any) -> None:
    """Write JSON atomically, indented, keys in the order given. NaN and infinity are refused (ValueError)."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def make_parent(path: Path) -> None:
    """Make the folder that `path` lies in. Raises UserError where a file is in the way."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{path.parent} cannot be a folder: a file is in the way ({error.filename})") from error


def partial_sibling(path: Path) -> Path:
    """A new hidden name beside `path` that says which process writes it."""
    return path.with_name(f".{path.name[:160]}.{os.getpid()}-{secrets.token_hex(4)}.partial")


def sync(path: Path) -> None:
    """Flush a file, or the list of names of a folder, to the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder, on systems that cannot open one
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_new(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)


def read_json(path: str | Path) -> Any:
    """Parsed JSON of a file.

    Raises:
        ArtefactError: not there, over 64 MiB, or not JSON in UTF-8.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ArtefactError(
                f"{path} has {path.stat().st_size} bytes: a JSON file here has at most {MAX_JSON_BYTES}"
            )
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtefactError(f"{path} is not there") from None
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{path} is not readable JSON ({error})") from error
    except OSError as error:
        raise ArtefactError(f"{path} cannot be read ({error.strerror})") from error


def sha256(source: str | Path | bytes) -> str:
    """Hash of a file's content, or of bytes, in hexadecimal."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with open(source, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
