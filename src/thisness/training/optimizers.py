"""What changes the weights: AdamW, with moments in 8 bits, too; Prodigy, which finds its own learning rate; and Muon
for the matrices of a group that asks."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArtefactError, ConfigurationError
from .config import LoopConfig

NAMES = ("adamw", "adamw8bit", "prodigy", "muon")
FOUND = ("d", "d_max", "d_numerator", "k")
"""What Prodigy knows of all parameters together; torch counts these as settings."""


class Optimizers:
    """One optimizer for each name that the groups ask for, used as one.

    A group with `optimizer="muon"` must hold matrices only. Its updates are orthogonalised (Jordan et al., 2024) and
    scaled to the size of AdamW's (Liu et al., arXiv 2502.16982), so that the same learning rate serves both. Prodigy
    (Mishchenko & Defazio, 2023) takes no learning rates: the schedule scales what it finds.
    """

    def __init__(self, groups: list[dict[str, Any]], config: LoopConfig) -> None:
        """Raises ConfigurationError for an unknown name, or for Muon on anything but matrices."""
        self.names = [str(group.get("optimizer", config.optimizer)) for group in groups]
        self.rates = [
            1.0 if name == "prodigy" else float(group.get("lr", config.lr))
            for group, name in zip(groups, self.names, strict=True)
        ]
        self.each: dict[str, torch.optim.Optimizer] = {}
        for name in dict.fromkeys(self.names):
            mine = [group for group, of in zip(groups, self.names, strict=True) if of == name]
            plain = [{k: v for k, v in group.items() if k != "optimizer"} for group in mine]
            self.each[name] = _make(name, plain, config)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """As they were given. (A loaded state replaces torch's own: never keep them.)"""
        left = {name: iter(optimizer.param_groups) for name, optimizer in self.each.items()}
        return [next(left[name]) for name in self.names]

    def scale(self, factor: float) -> None:
        """Each group's learning rate becomes its own times the factor."""
        for group, rate in zip(self.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def zero_grad(self) -> None:
        for optimizer in self.each.values():
            optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        for optimizer in self.each.values():
            optimizer.step()

    def moments(self) -> dict[str, Tensor]:
        """For a checkpoint: AdamW's as "index/name", others' as "optimizer/index/name"."""
        found = {}
        if "prodigy" in self.each:
            group = self.each["prodigy"].param_groups[0]
            found = {f"prodigy/found/{name}": torch.tensor(group[name], dtype=torch.float64) for name in FOUND}
        return found | {
            f"{'' if kind == 'adamw' else kind + '/'}{index}/{name}": value
            for kind, optimizer in self.each.items()
            for index, values in optimizer.state_dict()["state"].items()
            for name, value in ((key, torch.as_tensor(each)) for key, each in values.items())
        }

    def load_moments(self, tensors: dict[str, Tensor]) -> None:
        """Raises ArtefactError for those of another set of parameters or optimizers."""
        states: dict[str, dict[int, dict[str, Any]]] = {kind: {} for kind in self.each}
        found: dict[str, float] = {}
        for key, tensor in tensors.items():
            *kind, index, name = key.split("/")
            if index == "found" and "prodigy" in self.each:
                found[name] = int(tensor) if name == "k" else float(tensor)
                continue
            if index == "found":
                states.setdefault(kind[0], {})
                continue
            counted = name == "step" and kind == ["adamw8bit"]  # it counts in plain numbers
            mine = states.setdefault(kind[0] if kind else "adamw", {}).setdefault(int(index), {})
            mine[name] = int(tensor) if counted else tensor
        if unknown := sorted(set(states) - set(self.each)):
            raise ArtefactError(f"the checkpoint's optimizer state does not fit: it is of {', '.join(unknown)}")
        for of, state in states.items():
            optimizer = self.each[of]
            try:
                optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
            except ValueError as error:
                raise ArtefactError(f"the checkpoint's optimizer state does not fit: {error}") from error
        if "prodigy" in self.each:
            for group in self.each["prodigy"].param_groups:
                group.update(found)


def check_optimizer(name: str, device: torch.device) -> None:
    """Refuse an optimizer that cannot be had here.

    Raises:
        ConfigurationError: its library is not installed, or it needs an accelerator and there is none.
    """
    if name == "prodigy":
        _prodigy()
    if name != "adamw8bit":
        return
    _eight_bits()
    if device.type == "cpu":
        raise ConfigurationError("optimizer=adamw8bit runs on a GPU, and this is the CPU: leave it out")


def _eight_bits() -> Any:
    try:
        return import_module("bitsandbytes.optim").AdamW8bit
    except ImportError as error:
        raise ConfigurationError(
            f"optimizer=adamw8bit needs bitsandbytes, which cannot be imported ({str(error).splitlines()[0]}): "
            "pip install bitsandbytes, or leave it out"
        ) from error


def _prodigy() -> Any:
    try:
        return import_module("prodigyopt").Prodigy
    except ImportError as error:
        raise ConfigurationError(
            f"optimizer=prodigy needs prodigyopt, which cannot be imported ({str(error).splitlines()[0]}): "
            "pip install prodigyopt, or leave it out"
        ) from error


def _make(name: str, groups: list[dict[str, Any]], config: LoopConfig) -> torch.optim.Optimizer:
    if name == "adamw":
        return torch.optim.AdamW(
            groups, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, foreach=True
        )
    if name == "adamw8bit":
        return _eight_bits()(groups, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay)
    if name == "prodigy":
        plain = [{k: v for k, v in group.items() if k != "lr"} for group in groups]
        with redirect_stdout(io.StringIO()):  # it says there that its weight decay is decoupled
            return _prodigy()(
                plain, lr=1.0, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay,
                use_bias_correction=True, safeguard_warmup=True,
            )  # fmt: skip
    if name == "muon":
        if any(p.dim() != 2 for group in groups for p in group["params"]):
            raise ConfigurationError("muon updates matrices only: give other parameters to a group of adamw")
        return Muon(groups, lr=config.lr, weight_decay=config.weight_decay)
    raise ConfigurationError(f"optimizer must be {', '.join(NAMES[:-1])} or {NAMES[-1]}, not {name!r}")


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: each update is near the closest matrix with singular values of one size.

    As `torch.optim.Muon` with adjust_lr_fn="match_rms_adamw", but for its number format: that one iterates in bfloat16,
    which a CPU without bf16 units emulates, at several times the cost of the whole training step.

    Args:
        params: matrices only, or groups of them.
        lr: as AdamW's.
        weight_decay: decoupled.
        momentum: of the running mean of gradients; Nesterov's.
    """

    def __init__(self, params: Any, lr: float, weight_decay: float = 0.1, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                mean = state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalised(p.grad.lerp(mean, group["momentum"]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * 0.2 * max(p.shape) ** 0.5)


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """Its singular values brought to about 1 (0.7 to 1.2), its singular vectors kept; float32 where it is.

    Source: Jordan et al., Muon (2024), the quintic Newton-Schulz iteration and its coefficients.
    """
    a, b, c = 3.4445, -4.775, 2.0315
    x = matrix / matrix.norm().clamp(min=1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def matrices_apart(matrices: nn.Module, others: list[nn.Module]) -> list[dict[str, Any]]:
    """Two groups: the matrices of one module to Muon, the rest of it and the others to AdamW."""
    inside = [p for p in matrices.parameters() if p.requires_grad]
    flat = {id(p) for p in inside if p.dim() == 2}
    rest = [p for module in others for p in module.parameters() if p.requires_grad and id(p) not in flat]
    known = {id(p) for p in rest}
    rest += [p for p in inside if id(p) not in flat and id(p) not in known]
    return [{"params": rest}, {"params": [p for p in inside if p.dim() == 2], "optimizer": "muon"}]
