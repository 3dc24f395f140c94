"""Optional data parallelism: plain torch.distributed, one flat all_reduce a step.

Start several processes with torchrun (it sets RANK and WORLD_SIZE); without these variables nothing of this is active.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Parallel:
    """The processes of this run. With one process every method is a no-op that costs nothing."""

    def __init__(self) -> None:
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0")) if self.world > 1 else 0
        if self.world > 1:
            import torch.distributed as dist

            if not dist.is_initialized():
                dist.init_process_group("gloo")

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share_start(self, modules: Iterable[nn.Module]) -> None:
        """Give every process the first one's weights."""
        if self.world > 1:
            import torch.distributed as dist

            for module in modules:
                for tensor in [*module.parameters(), *module.buffers()]:
                    dist.broadcast(tensor.data, 0)

    def average_gradients(self, parameters: Sequence[Tensor], flags: Sequence[bool]) -> list[bool]:
        """Average gradients over the processes (a missing one counts as zero); a flag comes back true if any set it."""
        if self.world == 1:
            return list(flags)
        import torch.distributed as dist

        device = parameters[0].device
        pieces = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten().float() for p in parameters]
        flat = torch.cat([*pieces, torch.tensor([float(flag) for flag in flags], device=device)])
        dist.all_reduce(flat)
        parts = flat.split([piece.numel() for piece in pieces] + [len(flags)])
        for parameter, part in zip(parameters, parts, strict=False):
            parameter.grad = (part / self.world).view_as(parameter).to(parameter.dtype)
        return [value > 0 for value in parts[-1].tolist()]

    def gather(self, thing: Any) -> list[Any]:
        """One object of every process, in order of rank, on every process."""
        if self.world == 1:
            return [thing]
        import torch.distributed as dist

        gathered: list[Any] = [None] * self.world
        dist.all_gather_object(gathered, thing)
        return gathered

    def wait(self) -> None:
        if self.world > 1:
            import torch.distributed as dist

            dist.barrier()
