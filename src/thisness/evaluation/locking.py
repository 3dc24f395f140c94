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
except ImportError:  # Windows: one run at a time is the user's business there
    fcntl = None  # type: ignore[assignment]

RUN_LOCK, WORKERS_LOCK = ".run.lock", ".workers.lock"
SECONDS_FOR_WORKERS = 60.0


@contextmanager
def running(folder: Path) -> Iterator[None]:
    """The one run that may write to a folder. Waits for workers of a killed run to end.

    Raises:
        UserError: another run is at work there.
    """
    with _locked(folder / RUN_LOCK, exclusive=True, seconds=0.0):
        with _locked(folder / WORKERS_LOCK, exclusive=True, seconds=SECONDS_FOR_WORKERS):
            pass
        yield


@contextmanager
def working_on(folder: Path) -> Iterator[None]:
    """A worker of another process than the run's own, for as long as it lives."""
    with _locked(folder / WORKERS_LOCK, exclusive=False, seconds=SECONDS_FOR_WORKERS):
        yield


@contextmanager
def _locked(path: Path, *, exclusive: bool, seconds: float) -> Iterator[None]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        end = time.monotonic() + seconds
        while fcntl is not None:
            try:
                fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise UserError(
                        f"another run is at work in {path.parent}: wait for it, stop it, or name another --out"
                    ) from None
                time.sleep(0.05)
        yield
    finally:
        os.close(handle)
