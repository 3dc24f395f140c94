"""Who may write to a run's folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from ..files.locks import locked

RUN_LOCK, WORKERS_LOCK = ".run.lock", ".workers.lock"
SECONDS_FOR_WORKERS = 60.0


@contextmanager
def running(folder: Path) -> Iterator[None]:
    """The one run that may write to a folder. Waits for workers of a killed run to end.

    Raises:
        UserError: another run is at work there.
    """
    with locked(folder / RUN_LOCK, _taken(folder)):
        with locked(folder / WORKERS_LOCK, _taken(folder), seconds=SECONDS_FOR_WORKERS):
            pass
        yield


def working_on(folder: Path) -> AbstractContextManager[None]:
    """A worker of another process than the run's own, for as long as it lives."""
    return locked(folder / WORKERS_LOCK, _taken(folder), exclusive=False, seconds=SECONDS_FOR_WORKERS)


def _taken(folder: Path) -> str:
    return f"another run is at work in {folder}: wait for it, stop it, or name another --out"
