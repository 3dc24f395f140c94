"""Scalars of a run for TensorBoard, where it is installed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from ..errors import ConfigurationError

Curves = Literal["auto", "tensorboard", "off"]
TRACKERS: tuple[Curves, ...] = ("auto", "tensorboard", "off")
FOLDER = "tensorboard"


class Scalars:
    """Numbers of log lines as curves, in FOLDER/tensorboard: `tensorboard --logdir FOLDER`."""

    def __init__(self, folder: Path, last_step: int) -> None:
        """last_step: later points of an earlier call are hidden: they will be written again."""
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder / FOLDER
        self.writer = SummaryWriter(str(self.folder), purge_step=last_step + 1 if last_step else None)

    def write(self, entry: Mapping[str, Any]) -> None:
        """entry: a log line, with its step."""
        for name, value in entry.items():
            if name != "step" and isinstance(value, (int, float)) and not isinstance(value, bool):
                self.writer.add_scalar(name, value, entry["step"])

    def close(self) -> None:
        """Also takes the machine's name out of the files' names: they go with the concept."""
        self.writer.close()
        for file in self.folder.glob("events.out.tfevents.*"):
            if match := re.match(r"(events\.out\.tfevents\.\d+)\..", file.name):
                number = 0
                while (plain := file.with_name(f"{match[1]}{f'-{number}' if number else ''}")).exists():
                    number += 1
                file.rename(plain)


def scalars(kind: Curves, folder: Path, last_step: int) -> Scalars | None:
    """What follows a run's log.

    Args:
        kind: "auto": TensorBoard if it is installed.

    Raises:
        ConfigurationError: TensorBoard was asked for and is not installed.
    """
    if kind == "off" or (kind == "auto" and find_spec("tensorboard") is None):
        return None
    try:
        return Scalars(folder, last_step)
    except ImportError as error:
        if kind == "auto":
            return None
        raise ConfigurationError(f"tracker=tensorboard: {error}: pip install tensorboard, or tracker=off") from error
