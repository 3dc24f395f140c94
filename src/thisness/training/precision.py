"""Where bfloat16 is computed in hardware; elsewhere it is emulated, many times slower than single precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def computes_in_bf16(device: torch.device | str) -> bool:
    """Whether the device multiplies bfloat16 numbers in hardware."""
    device = torch.device(device)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported()
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def fastest(device: torch.device | str) -> AbstractContextManager[object]:
    """bf16 autocast where the hardware computes in it, single precision elsewhere."""
    device = torch.device(device)
    return torch.autocast(device.type, torch.bfloat16) if computes_in_bf16(device) else nullcontext()
