"""On this machine: in this process, or in several."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from multiprocessing import connection, get_context, parent_process
from typing import Any

from ..jobs import Job, Outcome, Setup
from ..locking import working_on
from ..worker import Worker
from .dispatch import Engine, Lost


class Here(Engine):
    """One worker, in this process."""

    count = 1

    def __init__(self, setup: Setup, worker: type[Worker]) -> None:
        self.worker = worker(setup)
        self.job: Job | None = None

    def send(self, worker: int, job: Job) -> None:
        self.job = job

    def wait(self, seconds: float) -> list[tuple[int, Outcome | Lost]]:
        job, self.job = self.job, None
        return [] if job is None else [(0, self.worker.do(job))]

    def close(self) -> None:
        pass


class Processes(Engine):
    """Several processes, started anew (spawn) so that they share nothing; a dead one is replaced."""

    def __init__(self, setup: Setup, worker: type[Worker], count: int) -> None:
        self.count, self.setup, self.worker = count, setup, worker
        self.context = get_context("spawn")
        self.processes: dict[int, Any] = {}
        self.pipes: dict[int, Any] = {}

    def send(self, worker: int, job: Job) -> None:
        if worker not in self.processes:
            self._start(worker)
        with contextlib.suppress(OSError):  # it died meanwhile: `wait` finds that out
            self.pipes[worker].send(job)

    def _start(self, worker: int) -> None:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(
            target=_serve, args=(theirs, self.setup, self.worker, worker), daemon=True, name=f"thisness-{worker}"
        )
        process.start()
        theirs.close()
        self.processes[worker], self.pipes[worker] = process, ours

    def wait(self, seconds: float) -> list[tuple[int, Outcome | Lost]]:
        sources = {self.pipes[each]: each for each in self.processes}
        found: list[tuple[int, Outcome | Lost]] = []
        for ready in connection.wait(list(sources), timeout=seconds):
            worker = sources[ready]
            try:
                found.append((worker, self.pipes[worker].recv()))
            except (EOFError, OSError):
                found.append((worker, self._bury(worker)))
        return found

    def _bury(self, worker: int) -> Lost:
        process = self.processes.pop(worker)
        self.pipes.pop(worker).close()
        process.join(10)
        code = process.exitcode
        return Lost(f"killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}")

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()  # everything that a worker writes is atomic
        for process in self.processes.values():
            process.join(10)
        for pipe in self.pipes.values():
            pipe.close()
        self.processes, self.pipes = {}, {}


def _serve(pipe: Any, setup: Setup, worker: type[Worker], number: int) -> None:
    """What a process does until nobody is left who wants something."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the run's own process decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with working_on(setup.folder), contextlib.suppress(EOFError, OSError):
        doing = worker(setup, number)
        while True:
            pipe.send(doing.do(pipe.recv()))


def _end_with_parent() -> None:
    """A killed run must not leave workers behind that still write."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
