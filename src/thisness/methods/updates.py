"""Settings of everything that is trained: what the loop needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ..training.loop import LoopConfig


def setting(default: Any, help: str, *, model: bool = False) -> Any:
    """A field of settings with what it means, shown by the command line.

    Args:
        model: it names another model; of a local folder only the name is written down.
    """
    return field(default=default, metadata={"help": help, "model": model})


@dataclass(frozen=True)
class UpdateSettings:
    """How what is trained is updated. All learning rates are used as they are: nothing multiplies them."""

    steps: int = setting(1000, "updates of what is trained")
    lr: float = setting(1e-4, "learning rate")
    batch_size: int = setting(1, "pictures in each step")
    seed: int = setting(0, "of everything random")
    weight_decay: float = setting(0.01, "of AdamW")
    warmup: int = setting(0, "steps of linear rise of the learning rate")
    schedule: Literal["constant", "cosine", "linear-tail"] = setting("constant", "of the learning rate")
    clip: float | None = setting(1.0, "largest norm of the gradient")
    optimizer: Literal["adamw", "adamw8bit", "prodigy"] = setting(
        "adamw", "adamw8bit keeps moments in 8 bits (bitsandbytes, on a GPU), prodigy finds its own lr (prodigyopt)"
    )
    ema: float | None = setting(
        None, "decay of a running mean of what is trained, which is kept then: 0.99; none: none"
    )
    accumulate: int = setting(1, "batches summed up for one update")
    precision: Literal["auto", "fp32", "bf16"] = setting("auto", "of the computation; weights are always fp32")

    def updates(self, precision: Literal["fp32", "bf16"], **more: Any) -> LoopConfig:
        """The same for the loop. more: its other fields.

        Raises:
            ValueError: as `LoopConfig`.
        """
        return LoopConfig(
            steps=self.steps, lr=self.lr, weight_decay=self.weight_decay, warmup=self.warmup, schedule=self.schedule,
            clip=self.clip, accumulate=self.accumulate, seed=self.seed, precision=precision, log_every=25,
            optimizer=self.optimizer, ema=self.ema, **more,
        )  # fmt: skip
