"""In actors of Ray (the optional extra `ray`): on this machine, or on a cluster whose machines share the run's folder.

Ray gives its actors back when the run's process is gone; a worker of a killed run may live for seconds, in which the
next run waits for it (`locking.working_on`).
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

from ...errors import UserError
from ..jobs import Job, Outcome, Setup
from ..locking import working_on
from ..worker import Worker
from .dispatch import Engine, Lost

STORE_BYTES = 256 * 2**20  # jobs and pictures are small: no large part of the memory is set aside


class _Actor:
    """A worker as an actor."""

    def __init__(self, setup: Setup, worker: type[Worker], number: int) -> None:
        if not (setup.folder / "plan.jsonl").is_file():
            raise UserError(f"{setup.folder} is not there on this machine of the cluster: use a folder that all share")
        self.lock = working_on(setup.folder)
        self.lock.__enter__()
        self.doing = worker(setup, number)

    def do(self, job: Job) -> Outcome:
        return self.doing.do(job)

    def process(self) -> int:
        return os.getpid()


class Actors(Engine):
    """One pipeline for each actor; a dead one is replaced."""

    def __init__(self, setup: Setup, worker: type[Worker], count: int, address: str = "") -> None:
        """Connect to the cluster at `address` (or of RAY_ADDRESS), or start one on this machine."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError:
            raise UserError("the engine ray needs Ray: pip install 'thisness[ray]' -c constraints.txt") from None
        self.ray, self.count, self.setup, self.worker = ray, count, setup, worker
        self.needs: dict[str, Any] = {"num_cpus": setup.threads}
        if setup.device.startswith("cuda"):
            self.needs["num_gpus"] = 1
        self.started = not ray.is_initialized()
        if self.started:
            self._connect(address or os.environ.get("RAY_ADDRESS", ""))
        self.actors: dict[int, Any] = {}
        self.answers: dict[Any, int] = {}

    def _connect(self, address: str) -> None:
        settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "include_dashboard": False}
        if address:
            settings |= {"address": address}
            settings.pop("include_dashboard")
        else:
            paths = os.pathsep.join(path for path in sys.path if path)
            settings |= {
                "num_cpus": self.count * self.setup.threads,
                "object_store_memory": STORE_BYTES,
                "runtime_env": {"env_vars": {"PYTHONPATH": paths}},
            }
        try:
            self.ray.init(**settings)
        except Exception as error:
            where = f"the cluster at {address}" if address else "a cluster on this machine"
            raise UserError(f"Ray cannot reach {where}: {' '.join(str(error).split())[:300]}") from error

    def send(self, worker: int, job: Job) -> None:
        if worker not in self.actors:
            actor = self.ray.remote(_Actor).options(max_restarts=0, **self.needs)
            self.actors[worker] = actor.remote(self.setup, self.worker, worker)
        self.answers[self.actors[worker].do.remote(job)] = worker

    def wait(self, seconds: float) -> list[tuple[int, Outcome | Lost]]:
        done, _ = self.ray.wait(list(self.answers), num_returns=1, timeout=seconds)
        found: list[tuple[int, Outcome | Lost]] = []
        for answer in done:
            worker = self.answers.pop(answer)
            try:
                found.append((worker, self.ray.get(answer)))
            except self.ray.exceptions.RayError as error:
                actor = self.actors.pop(worker)
                with contextlib.suppress(Exception):
                    self.ray.kill(actor)
                found.append((worker, Lost((str(error).strip().splitlines() or ["lost"])[-1][:300])))
        return found

    def close(self) -> None:
        for actor in self.actors.values():
            with contextlib.suppress(Exception):
                self.ray.kill(actor)
        self.actors, self.answers = {}, {}
        if self.started:
            self.ray.shutdown()
