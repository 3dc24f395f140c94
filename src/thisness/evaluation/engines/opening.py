"""Engines by name."""

from __future__ import annotations

from ...errors import ConfigurationError, nearest
from ..jobs import Setup
from ..worker import Worker
from .dispatch import Engine

ENGINES = ("local", "ray")


def check_engine(text: str) -> tuple[str, str]:
    """Name and address of an engine: "local", "ray", "ray=HOST:PORT".

    Raises:
        ConfigurationError: neither.
    """
    name, _, address = text.partition("=")
    if name not in ENGINES or (address and name != "ray"):
        raise ConfigurationError(f"no engine {text!r}{nearest(name, ENGINES)}: local, ray, or ray=ADDRESS of a cluster")
    return name, address


def open_engine(text: str, workers: int, setup: Setup, worker: type[Worker] = Worker) -> Engine:
    """Workers, started.

    Args:
        text: "local", "ray", or "ray=ADDRESS" for a cluster that runs.
        workers: at least 1; a single local one works in this process.
        setup: for all of them.
        worker: their class.

    Raises:
        UserError: no such engine; Ray is not installed or not to be reached.
    """
    name, address = check_engine(text)
    if name == "local" and workers == 1:
        from .local import Here

        return Here(setup, worker)
    if name == "ray":
        from .on_ray import Actors

        return Actors(setup, worker, workers, address)
    from .local import Processes

    return Processes(setup, worker, workers)
