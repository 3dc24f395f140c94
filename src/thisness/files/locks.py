"""Locks that a killed process does not leave behind: the system frees them with its last handle."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import UserError

try:
    import fcntl
except ImportError:  # Windows: one process at a time is the user's business there
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked(path: Path, taken: str, *, exclusive: bool = True, seconds: float = 0.0) -> Iterator[None]:
    """Hold a lock for the length of a `with`. Who holds it may remove its file.

    Args:
        path: the lock's file, made if need be, with its folder.
        taken: what to say where another process has it.
        exclusive: for one process alone; otherwise for all that share it.
        seconds: how long to wait for it.

    Raises:
        UserError: another process has it.
    """
    kind = 0 if fcntl is None else fcntl.LOCK_NB | (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
    handle, end = _opened(path), time.monotonic() + seconds
    try:
        while fcntl is not None:
            try:
                fcntl.flock(handle, kind)
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise UserError(taken) from None
                time.sleep(0.05)
                continue
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                break
            os.close(handle)  # it was removed in between by who had it
            handle = _opened(path)
        yield
    finally:
        os.close(handle)


def _opened(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
