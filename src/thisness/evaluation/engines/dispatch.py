"""Giving jobs to workers, the same for all engines: order, keys, workers that die, a time limit."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..jobs import Job, Outcome

TRIES = 3


@dataclass(frozen=True)
class Lost:
    """A worker died in the middle of a job.

    Args:
        reason: "killed by signal 9".
    """

    reason: str


class Engine(ABC):
    """Workers by number, each with at most one job.

    Attributes:
        count: of workers.
    """

    count: int

    @abstractmethod
    def send(self, worker: int, job: Job) -> None:
        """Give a job to a worker that has none."""

    @abstractmethod
    def wait(self, seconds: float) -> list[tuple[int, Outcome | Lost]]:
        """What came of jobs since the last call; waits so long at most. A worker that died has been replaced."""

    @abstractmethod
    def close(self) -> None:
        """End all workers, at once."""

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def run_jobs(
    engine: Engine,
    jobs: Iterable[Job],
    on_outcome: Callable[[Job, Outcome], None],
    *,
    deadline: float | None = None,
    on_lost: Callable[[Job, str], None] | None = None,
) -> bool:
    """Have all jobs done, in any order but that of their keys.

    A job whose worker dies is given to another; one that costs TRIES workers their life has failed.

    Args:
        engine: the workers.
        jobs: of those with the same key one after the other is done.
        on_outcome: called for each job, in this process; what it raises ends everything.
        deadline: of `time.monotonic`, after which no job is begun any more; those in work are waited for.
        on_lost: told of each worker that died.

    Returns:
        Whether all jobs were done before the deadline.
    """
    waiting = deque(jobs)
    free = deque(range(engine.count))
    at_work: dict[int, Job] = {}
    tries: dict[int, int] = {}
    while waiting or at_work:
        late = deadline is not None and time.monotonic() >= deadline
        while free and not late and (job := _next(waiting, at_work)) is not None:
            worker = free.popleft()
            at_work[worker] = job
            engine.send(worker, job)
        if not at_work:
            return False  # nothing is begun any more
        for worker, outcome in engine.wait(1.0):
            job = at_work.pop(worker)
            free.append(worker)
            if isinstance(outcome, Lost):
                if on_lost is not None:
                    on_lost(job, outcome.reason)
                tries[id(job)] = tries.get(id(job), 0) + 1
                if tries[id(job)] < TRIES:
                    waiting.appendleft(job)
                    continue
                outcome = Outcome(failure=f"its worker died {TRIES} times ({outcome.reason})", kind="failed")
            on_outcome(job, outcome)
    return True


def _next(waiting: deque[Job], at_work: dict[int, Job]) -> Job | None:
    """The first job whose key nobody works on; taken out."""
    busy = {job.key for job in at_work.values() if job.key}
    seen: set[str] = set()
    for number, job in enumerate(waiting):
        if not job.key or (job.key not in busy and job.key not in seen):
            del waiting[number]
            return job
        seen.add(job.key)
    return None
