"""Low-rank changes of weights, by PEFT, on and off again exactly.

    y = W x + (alpha / rank) B A x      A: (rank, in), B: (out, rank)

Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models (2021), eq. 3.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArtefactError, ConfigurationError, raise_all
from ..files import listed

A, B = "lora_A.weight", "lora_B.weight"


@contextmanager
def inserted_lora(
    model: nn.Module, ranks: Mapping[str, int], name: str, scale: float = 1.0, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """Put low-rank layers into a model for the length of a `with`: A drawn from N(0, 1 / rank^2), B zero.

    On exit, also by an exception, the model has the very modules, attributes and gradient flags that it had before.
    May be nested. The new parameters are float32 and require gradients; nothing else requires them more than before.

    Args:
        model: a denoiser or a text encoder.
        ranks: the rank for each linear or convolutional module, by its name in the model.
        name: of this adapter; a-z, 0-9, "-", "_".
        scale: alpha / rank.
        seed: of the drawn A.

    Yields:
        PEFT's layers by module name.

    Raises:
        ArtefactError: modules that the model does not have, or that have no weights; all of them listed.
        ConfigurationError: an adapter of this name is attached already.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    existing = dict(model.named_modules())
    raise_all(_misfits(existing, ranks, name), ArtefactError, type(model).__name__)
    before = {module: existing[module] for module in ranks}
    active = {m: list(layer.active_adapters) for m, layer in existing.items() if isinstance(layer, LoraLayer)}
    if any(name in getattr(before[module], "lora_A", ()) for module in ranks):
        raise ConfigurationError(
            f"an adapter called {name!r} is attached already: learn one of them under another name (--name)"
        )
    flags = {id(parameter): parameter.requires_grad for parameter in model.parameters()}
    configs = dict(model.__dict__.get("peft_config", {}))
    ordered = list(ranks)
    config = LoraConfig(
        r=next(iter(ranks.values())),
        lora_alpha=scale * next(iter(ranks.values())),
        target_modules=ordered,
        rank_pattern={f"^{module.replace('.', chr(92) + '.')}": rank for module, rank in ranks.items()},
        alpha_pattern={f"^{module.replace('.', chr(92) + '.')}": scale * rank for module, rank in ranks.items()},
    )
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")  # "already found a peft_config": concepts are meant to be stacked
            inject_adapter_in_model(config, model, adapter_name=name)
        for module, names in active.items():  # injecting switched every other adapter off
            model.get_submodule(module).set_adapter(names)  # type: ignore[operator]
        layers: dict[str, Any] = {module: model.get_submodule(module) for module in ordered}
        generator = torch.Generator().manual_seed(seed)
        own: set[int] = set()
        for module, layer in layers.items():
            layer.set_adapter([*active.get(module, []), name])
            for part in (layer.lora_A[name], layer.lora_B[name]):
                part.float()
                own.update(map(id, part.parameters()))
            weight = layer.lora_A[name].weight
            drawn = torch.randn(weight.shape, generator=generator) / ranks[module]
            weight.data.copy_(drawn)
            layer.lora_B[name].weight.data.zero_()
            layer.train(before[module].training)
        for parameter in model.parameters():
            parameter.requires_grad_(True if id(parameter) in own else flags[id(parameter)])
        yield layers
    finally:
        _take_out(model, before, active, name)
        for parameter in model.parameters():
            parameter.requires_grad_(flags.get(id(parameter), parameter.requires_grad))
        if configs:
            model.peft_config = configs  # type: ignore[assignment]
        else:
            model.__dict__.pop("peft_config", None)


@contextmanager
def attached_lora(model: nn.Module, tensors: Mapping[str, Tensor], name: str, scale: float = 1.0) -> Iterator[None]:
    """Apply learned low-rank weights for the length of a `with`.

    Args:
        model: a denoiser or a text encoder.
        tensors: "MODULE.lora_A.weight" (rank, in ...) and "MODULE.lora_B.weight" (out, rank ...).
        name: of this adapter.
        scale: 1 applies them as learned, 0 not at all.

    Raises:
        ArtefactError: not a pair for each module, unknown modules, or other shapes; all of it at once.
    """
    pairs = pairs_of(tensors)
    ranks = {module: int(a.shape[0]) for module, (a, _) in pairs.items()}
    with inserted_lora(model, ranks, name, scale) as layers:
        problems = []
        for module, (a, b) in pairs.items():
            for tensor, target in ((a, layers[module].lora_A[name].weight), (b, layers[module].lora_B[name].weight)):
                if tensor.shape != target.shape:
                    problems.append(f"{module} is {tuple(tensor.shape)}: expected {tuple(target.shape)}")
                else:
                    target.data.copy_(tensor)
                    target.requires_grad_(False)
        raise_all(problems, ArtefactError, f"the adapter {name!r} does not fit {type(model).__name__}")
        yield


@contextmanager
def without_lora(*models: nn.Module) -> Iterator[None]:
    """Switch all low-rank weights of some models off for the length of a `with`: the layers give what they wrap."""
    from peft.tuners.lora import LoraLayer

    layers: list[Any] = [each for model in models for each in model.modules() if isinstance(each, LoraLayer)]
    before = [layer._disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True  # enable_adapters would also touch the gradient flags
        yield
    finally:
        for layer, off in zip(layers, before, strict=True):
            layer._disable_adapters = off


def pairs_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B by module.

    Raises:
        ArtefactError: a name that is neither, or one of them without the other; all of it at once.
    """
    names = [key.removesuffix("." + end) for key in tensors for end in (A, B) if key.endswith("." + end)]
    strange = [key for key in tensors if not key.endswith(("." + A, "." + B))]
    problems = [f"{listed(strange)}: expected names in {A} or {B}"] if strange else []
    modules = list(dict.fromkeys(names))
    half = [m for m in modules if f"{m}.{A}" not in tensors or f"{m}.{B}" not in tensors]
    if half:
        problems.append(f"only one of A and B for {listed(half)}")
    raise_all(problems, ArtefactError, "low-rank weights")
    return {module: (tensors[f"{module}.{A}"], tensors[f"{module}.{B}"]) for module in modules}


def learned(layers: Mapping[str, Any], name: str, prefix: str, scale: float = 1.0) -> dict[str, Tensor]:
    """The weights of inserted layers as tensors of their own, with the scale multiplied into B (so it is 1 after)."""
    tensors = {}
    for module, layer in layers.items():
        tensors[f"{prefix}.{module}.{A}"] = layer.lora_A[name].weight.detach().float().cpu().clone()
        b = layer.lora_B[name].weight.detach().float().cpu()
        tensors[f"{prefix}.{module}.{B}"] = b.clone() if scale == 1.0 else b * scale
    return tensors


def _misfits(existing: Mapping[str, nn.Module], ranks: Mapping[str, int], name: str) -> list[str]:
    from peft.tuners.lora import LoraLayer

    absent = [module for module in ranks if module not in existing]
    if ranks and len(absent) == len(ranks):
        return [f"none of the {len(ranks)} modules of the adapter {name!r} is in the model: {listed(absent)}"]
    problems = [f"no such modules: {listed(absent)}"] if absent else []
    kinds = (nn.Linear, nn.Conv2d, LoraLayer)
    wrong = [module for module in ranks if module in existing and not isinstance(existing[module], kinds)]
    problems += [f"neither linear nor convolutional: {listed(wrong)}"] if wrong else []
    return problems if ranks else [f"the adapter {name!r} has no weights: it would change nothing"]


def _take_out(model: nn.Module, before: Mapping[str, nn.Module], active: Mapping[str, list[str]], name: str) -> None:
    for module, names in active.items():
        layer: Any = model.get_submodule(module)
        layer.set_adapter(names)
        if name in layer.lora_A:
            layer.delete_adapter(name)
    for module, original in before.items():
        if module not in active:
            parent, _, child = module.rpartition(".")
            setattr(model.get_submodule(parent), child, original)
