"""Where a run's work is done: here, in processes of this machine, in actors of Ray. The results are the same."""

from .dispatch import Engine, run_jobs
from .opening import ENGINES, open_engine

__all__ = ["ENGINES", "Engine", "open_engine", "run_jobs"]
