"""What several commands do with the models: choose a device, load a base. Heavy imports are inside."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thisness.errors import UserError

if TYPE_CHECKING:
    import torch

    from thisness.bases import Base

DTYPES = ("float32", "bfloat16", "float16")


def choose_device(name: str) -> str:
    """A device that this machine has.

    Args:
        name: "auto" (an accelerator where torch sees one, else the CPU) or a torch device such as "cpu", "cuda:1".

    Raises:
        UserError: not a torch device, or one that this machine lacks.
    """
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return accelerator.type if accelerator is not None else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name!r}: not a device: write auto, cpu, cuda or cuda:N") from None
    if device.type != "cpu":
        count = torch.accelerator.device_count() if accelerator is not None and accelerator.type == device.type else 0
        if (device.index or 0) >= count:
            raise UserError(f"--device {name!r}: this machine has {count} of that kind: use --device auto or cpu")
    return name


def open_base(name: str, device: str, dtype: str | None, offload: bool = False) -> Base:
    """Load a base for a command.

    Args:
        name: an embedded name, a local folder, or a hub id.
        device: as for `choose_device`.
        dtype: one of DTYPES, or None for the base's own.
        offload: parts stay on the CPU but for the one that runs.

    Raises:
        UserError: no such base, device or dtype.
    """
    import torch

    from thisness.bases import load_base

    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"--dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    chosen: torch.dtype | None = getattr(torch, dtype) if dtype else None
    return load_base(name, device=choose_device(device), dtype=chosen, offload=offload)
