"""What a run trains: the seam between the loop and everything that it can train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Task:
    """What is trained. Subclasses implement `modules` and `loss`; `device` and `ema` are set before `on_start`."""

    name: str = "training"
    batch_size: int = 1  # samples in one call of `loss`, for the samples/s of the log
    device: torch.device = torch.device("cpu")
    ema: dict[str, nn.Module] = {}  # the averaged copies of `modules()`, or nothing

    def modules(self) -> dict[str, nn.Module]:
        """What is trained and checkpointed, by name: always the same modules."""
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For the optimizer; a group may carry its own lr (scaled by the schedule), weight_decay and optimizer."""
        return [{"params": [p for m in self.modules().values() for p in m.parameters() if p.requires_grad]}]

    def loss(self, step: int, rng: torch.Generator) -> dict[str, Tensor]:
        """One batch's scalar "loss", and other scalars for the log.

        Args:
            step: 0 is the first.
            rng: a CPU generator; besides torch's global one the only source of randomness that survives a resume.
        """
        raise NotImplementedError

    def clip(self, parameters: list[Tensor], largest: float) -> Tensor:
        """Bring the gradients' norm down to `largest`, and return what it was: of all that is trained together."""
        return nn.utils.clip_grad_norm_(parameters, largest, foreach=True)

    def settings(self) -> dict[str, Any]:
        """JSON data that decides the result besides LoopConfig (data, sizes): a resume with other values is refused."""
        return {}

    def extra_state(self) -> dict[str, Any]:
        """What else must survive a resume: tensors and JSON values by name."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what `extra_state` gave."""

    def on_start(self, device: torch.device) -> None:
        """Called once, after the modules are on `device` and before a checkpoint is loaded."""

    def preview(self, folder: Path, step: int) -> dict[str, float] | None:
        """Write something to look at into `folder`; numbers returned are logged. It changes no random state."""
        return None
