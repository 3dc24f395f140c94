"""How a run is trained: numbers only, checked when they are written down."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..errors import ConfigurationError
from .tracking import TRACKERS, Curves


@dataclass(frozen=True)
class LoopConfig:
    """How to train.

    Args:
        steps: updates of the weights.
        lr: peak learning rate, as it is used (nothing multiplies it in secret); a parameter group may have its own.
        betas, eps, weight_decay: of the optimizer.
        optimizer: "adamw"; "adamw8bit" (bitsandbytes: moments in 8 bits); or "prodigy" (prodigyopt: it finds its own
            learning rate, so that `lr` and those of groups are not used). A parameter group may have its own, "muon",
            too.
        warmup: steps of linear rise.
        schedule: "constant"; "cosine" down to `final_fraction`; "linear-tail": constant, then linearly down to
            `final_fraction` over the last `tail` (a fraction) of the steps.
        clip: largest norm of the gradient, or None.
        ema: decay of the exponential moving average, or None; it starts as (1 + n) / (10 + n).
        precision: "fp32"; "bf16" (autocast; weights stay fp32); "auto": bf16 where the device computes in it.
        accumulate: losses summed up for one update.
        seed: of everything random.
        checkpoint_seconds, keep: wall time between checkpoints; how many stay.
        log_every, preview_every: in steps; 0 for never.
        tracker: "tensorboard" writes the log's numbers as curves, too; "auto": if it is installed.
    """

    steps: int
    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    optimizer: Literal["adamw", "adamw8bit", "prodigy"] = "adamw"
    warmup: int = 0
    schedule: Literal["constant", "cosine", "linear-tail"] = "constant"
    tail: float = 0.3
    final_fraction: float = 0.01
    clip: float | None = None
    ema: float | None = None
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    accumulate: int = 1
    seed: int = 0
    checkpoint_seconds: float = 300.0
    keep: int = 2
    log_every: int = 50
    preview_every: int = 0
    tracker: Curves = "off"

    def __post_init__(self) -> None:
        checks = {
            "steps must be at least 1": self.steps >= 1,
            "lr must be above 0": math.isfinite(self.lr) and self.lr > 0,
            "optimizer must be adamw, adamw8bit or prodigy": self.optimizer in ("adamw", "adamw8bit", "prodigy"),
            "weight_decay must not be negative": self.weight_decay >= 0,
            "warmup must not be negative": self.warmup >= 0,
            "schedule must be constant, cosine or linear-tail": self.schedule in ("constant", "cosine", "linear-tail"),
            "tail must be in (0, 1]": 0 < self.tail <= 1,
            "final_fraction must be in [0, 1]": 0 <= self.final_fraction <= 1,
            "clip must be above 0, or None": self.clip is None or self.clip > 0,
            "ema must be in (0, 1), or None": self.ema is None or 0 < self.ema < 1,
            "precision must be fp32, bf16 or auto": self.precision in ("fp32", "bf16", "auto"),
            "accumulate must be at least 1": self.accumulate >= 1,
            "seed must not be negative": self.seed >= 0,
            "keep must be at least 1": self.keep >= 1,
            f"tracker must be {', '.join(TRACKERS)}": self.tracker in TRACKERS,
            "log_every and preview_every must not be negative": self.log_every >= 0 and self.preview_every >= 0,
        }
        if wrong := [message for message, fine in checks.items() if not fine]:
            raise ConfigurationError("; ".join(wrong))

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied by in step `step` (0 is the first)."""
        value = 1.0
        if self.schedule == "cosine":
            value = self.final_fraction + (1 - self.final_fraction) * (1 + math.cos(math.pi * step / self.steps)) / 2
        elif self.schedule == "linear-tail":
            into = max(0.0, (step - self.steps * (1 - self.tail)) / (self.steps * self.tail))
            value = 1 - into * (1 - self.final_fraction)
        return value * min(1.0, (step + 1) / self.warmup) if self.warmup else value
