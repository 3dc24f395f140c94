"""How far a run is: a bar with the time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

SECONDS_BETWEEN_LINES = 30.0


class Bar:
    """One phase of a run, on stderr.

    Args:
        name: what is counted.
        total: how many there are.
        enabled: otherwise it is silent.
    """

    def __init__(self, name: str, total: int, enabled: bool) -> None:
        self.name, self.total, self.enabled = name, total, enabled
        self.done, self.begun = 0, time.monotonic()
        self.said = self.begun
        self.bar: Any = None
        if enabled and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, desc=name, dynamic_ncols=True)

    def step(self, count: int = 1) -> None:
        self.done += count
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(count)
        elif self.enabled and (now - self.said > SECONDS_BETWEEN_LINES or self.done >= self.total):
            self.said = now
            left = (now - self.begun) / self.done * (self.total - self.done)
            self._print(f"{self.name} {self.done}/{self.total}, {now - self.begun:.0f} s so far, {left:.0f} s left")

    def say(self, text: str) -> None:
        if self.bar is not None:
            self.bar.write(text, file=sys.stderr)
        elif self.enabled:
            self._print(text)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    @staticmethod
    def _print(text: str) -> None:
        print(text, file=sys.stderr, flush=True)
