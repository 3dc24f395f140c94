"""What a run says while it goes: a log that survives resumes, a bar or readable lines, running means without syncs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ThisnessError
from ..files import write_text
from .tracking import Scalars


class RunningMeans:
    """Means of named scalars since the last reading, summed on their device, so that no step waits for it.

    Also remembers, per name, the first step whose value was not finite.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.first_bad: dict[str, Tensor] = {}

    def add(self, step: int, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            value = value.detach().float()
            if name not in self.sums:
                self.sums[name] = torch.zeros_like(value)
                self.counts[name] = 0
            if name not in self.first_bad:
                self.first_bad[name] = torch.full_like(value, -1.0)
            self.sums[name] += value
            self.counts[name] += 1
            bad = self.first_bad[name]
            bad.copy_(torch.where(torch.isfinite(value) | (bad >= 0), bad, torch.full_like(bad, step)))

    def not_finite(self) -> dict[str, int]:
        """Names with a NaN or infinity so far, and the first step of it. Waits for the device."""
        steps = {name: int(bad.item()) for name, bad in self.first_bad.items()}
        return {name: step for name, step in steps.items() if step >= 0}

    def read(self) -> dict[str, float]:
        """The means; starts over. Waits for the device."""
        means = {name: float(total.item()) / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means

    def state(self) -> dict[str, Tensor]:
        return {f"means/{name}": torch.stack([total.double().cpu(), torch.tensor(self.counts[name]).double()])
                for name, total in self.sums.items()}  # fmt: skip

    def load(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        for key, (total, count) in tensors.items():
            name = key.removeprefix("means/")
            self.sums[name] = total.float().to(device)
            self.counts[name] = int(count)


class JsonLines:
    """`log.jsonl`: one object a line, in order of steps, each step once even after a resume."""

    def __init__(self, path: Path, last_step: int, follower: Scalars | None = None) -> None:
        """Keep the lines up to `last_step`: what a killed run wrote after its checkpoint will be written again.

        Args:
            follower: is given each line, too.
        """
        lines = []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] <= last_step:
                        lines.append(line + "\n")
                except (ValueError, KeyError, TypeError):
                    continue  # half a line, from a kill while it was being written
        write_text(path, "".join(lines))
        self.path, self.follower = path, follower
        self.file = path.open("a", encoding="utf-8")

    def write(self, entry: Mapping[str, Any]) -> None:
        try:
            self.file.write(json.dumps(entry) + "\n")
            self.file.flush()
            if self.follower is not None:
                self.follower.write(entry)
        except OSError as error:
            raise ThisnessError(
                f"cannot write {self.path} ({error.strerror}); the checkpoints are intact: make room and run the same "
                "command again"
            ) from error

    def close(self) -> None:
        self.file.close()
        if self.follower is not None:
            self.follower.close()


class Progress:
    """A bar with the time left on a terminal, one flushed line per log interval elsewhere, silence if not enabled.

    Args:
        device: whose memory is shown beside the loss; None: none.
    """

    def __init__(self, name: str, start: int, steps: int, enabled: bool, device: torch.device | None = None) -> None:
        self.name, self.start, self.steps, self.enabled, self.device = name, start, steps, enabled, device
        self.bar: Any = None
        if enabled and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=steps, initial=start, desc=name, unit="step", dynamic_ncols=True)

    def step(self) -> None:
        if self.bar is not None:
            self.bar.update()

    def report(self, step: int, seconds_here: float, entry: Mapping[str, Any]) -> None:
        """Args: seconds_here: since the start or the resume, for the time left."""
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in entry.items() if name not in ("step", "seconds"))
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {entry['loss']:.4g}{self._memory()}")
        elif self.enabled:
            left = seconds_here / max(step - self.start, 1) * (self.steps - step)
            times = f"{duration(entry['seconds'])} so far, {duration(left)} left"
            self.say(f"step {step}/{self.steps}  {numbers}  {times}{self._memory()}")

    def say(self, text: str) -> None:
        if self.bar is not None:
            self.bar.write(f"{self.name}: {text}", file=sys.stderr)
        elif self.enabled:
            print(f"{self.name}: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def _memory(self) -> str:
        used = memory_used(self.device) if self.device is not None else None
        return f", {used / 2**30:.1f} GiB" if used else ""


def memory_used(device: torch.device) -> int | None:
    """Bytes: of an accelerator the most that was in use since the process began, else what the process holds in
    memory; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return None


def duration(seconds: float) -> str:
    """Hours, minutes and seconds as people write them: 75 -> "1 min 15 s"."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {whole % 60:02d} s" if minutes else f"{whole} s"
