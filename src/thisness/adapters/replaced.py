"""Weights that take the place of a model's own: on and off again exactly, to train and to use.

Custom Diffusion and what builds on it train the keys and values of cross-attention: all that reads the sentence.
DreamBooth trains all of the denoiser.

Source: Kumari et al., Multi-Concept Customization of Text-to-Image Diffusion (CVPR 2023), section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..attention.sites import sites_of
from ..bases import Base
from ..errors import ArtefactError, ConfigurationError, raise_all
from ..files import compare_shapes, listed

WEIGHT = "weight"


def keys_and_values(denoiser: Any) -> list[str]:
    """Names of the weights that make keys and values of the sentence: "MODULE.attn2.to_k.weight" ...

    Raises:
        ConfigurationError: a denoiser whose cross-attention is not known, or that has none.
    """
    sites = [name for name, site in sites_of(denoiser).items() if site.kind == "cross"]
    if not sites:
        raise ConfigurationError(f"{type(denoiser).__name__} has no cross-attention: there are no keys and values")
    return [f"{name}.{end}.{WEIGHT}" for name in sites for end in ("to_k", "to_v")]


def all_weights(model: nn.Module) -> list[str]:
    """Names of all parameters of a model but the table of words, if it has one: no sentence of a subject reads most of
    its rows, and weight decay would pull at all of them."""
    table = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None  # type: ignore[operator]
    words = {id(parameter) for parameter in table.parameters()} if isinstance(table, nn.Module) else set()
    return [name for name, parameter in model.named_parameters() if id(parameter) not in words]


def trainable_copies(model: nn.Module, names: Sequence[str]) -> nn.ParameterDict:
    """Weights of a model as parameters of their own, float32, by name with "/" for "." (as a checkpoint holds them)."""
    return nn.ParameterDict(
        {name.replace(".", "/"): nn.Parameter(_weight(model, name).detach().float().clone()) for name in names}
    )


def by_name(copies: nn.ParameterDict) -> dict[str, nn.Parameter]:
    """The same parameters under the model's own names."""
    return {key.replace("/", "."): parameter for key, parameter in copies.named_parameters()}


def learned_weights(base: Base, copies: nn.ParameterDict, part: str = "") -> dict[str, Tensor]:
    """Trained copies of the weights of a part (the denoiser) as a concept holds them: by part of the base and name."""
    part = part or next(name for name, module in base.modules.items() if module is base.denoiser)
    return {f"{part}.{name}": each.detach().float().cpu().clone() for name, each in by_name(copies).items()}


@contextmanager
def replaced_weights(
    model: nn.Module, weights: Mapping[str, Tensor], *, owner: str, train: bool = False, keep_start: bool = True,
    whole: bool = False,
) -> Iterator[None]:  # fmt: skip
    """Put weights in the place of a model's own for the length of a `with`.

    On exit, also by an exception, the model holds the very parameters that it had before. Low-rank adapters may be on
    the same modules. The same weights may be put on twice (concepts that were merged share theirs); others may not.

    Args:
        model: a denoiser or a text encoder.
        weights: by name, "MODULE.weight", "MODULE.bias"; with `train` they are parameters, used as they are and in
            float32.
        owner: whose weights they are, for messages.
        train: gradients flow into the weights; otherwise copies in the model's own number format are used.
        keep_start: with `train`, no gradient flows through the first token of the sentence: it is the same in all, and
            draws most of the attention.
        whole: with `train`, the weights are all that the model computes with: nothing is converted to and from
            another number format around them, and gradients flow through every token.

    Raises:
        ArtefactError: no such weights in the model, or others of another shape; all of it at once.
        ConfigurationError: another concept has replaced the same weights by other numbers.
    """
    places = {name: _place(model, name) for name in weights}
    unknown = [name for name, place in places.items() if place is None]
    problems = [f"{type(model).__name__} has no weights {listed(unknown)}"] if unknown else []
    if not weights:
        problems.append("there are no weights: they would change nothing")
    raise_all(problems, ArtefactError, owner)
    modules: dict[str, nn.Module] = {name: place for name, place in places.items() if place is not None}
    before = {name: _own(module, name) for name, module in modules.items()}
    shapes = {name: tuple(own.shape) for name, own in before.items()}
    compare_shapes({name: tuple(weight.shape) for name, weight in weights.items()}, shapes, owner)
    _refuse_second(before, weights, owner)
    handles: list[Any] = []
    try:
        for name, module in modules.items():
            own = before[name]
            if train:
                new = weights[name]
                if not whole:
                    handles.append(module.register_forward_pre_hook(_to_weight))
                    handles.append(module.register_forward_hook(_StartKept(own.dtype, keep_start)))
            else:
                new = nn.Parameter(weights[name].detach().to(own.device, own.dtype).clone(), requires_grad=False)
            setattr(module, _end(name), new)
            new.replaced_by = owner  # type: ignore[attr-defined]
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name, module in modules.items():
            setattr(module, _end(name), before[name])


class _StartKept:
    """After a linear module: the number format of before, and no gradient through the first token."""

    def __init__(self, dtype: torch.dtype, keep_start: bool) -> None:
        self.dtype, self.keep_start = dtype, keep_start

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if self.keep_start and output.ndim == 3:
            output = torch.cat([output[:, :1].detach(), output[:, 1:]], 1)
        return output if torch.is_autocast_enabled(output.device.type) else output.to(self.dtype)


def _to_weight(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Where the model computes in half precision, the trained weights still meet numbers of their own format."""
    (hidden,) = inputs
    if torch.is_autocast_enabled(hidden.device.type):
        return inputs
    return (hidden.to(_own(module, WEIGHT).dtype),)


def _refuse_second(before: Mapping[str, Any], weights: Mapping[str, Tensor], owner: str) -> None:
    for name, own in before.items():
        first = getattr(own, "replaced_by", None)
        if first is not None and not torch.equal(own.detach(), weights[name].detach().to(own)):
            raise ConfigurationError(
                f"the concepts {first!r} and {owner!r} both replace the same weights of the model, each by its own: "
                "use one at a time, or, where they are keys and values, merge them first "
                "(thisness.methods.custom_diffusion.merge)"
            )


def _place(model: nn.Module, name: str) -> nn.Module | None:
    """The module that holds a weight; under low-rank adapters the one that they wrap."""
    try:
        module: Any = model.get_submodule(name.rpartition(".")[0])
    except AttributeError:
        return None
    while hasattr(module, "base_layer"):
        module = module.base_layer
    return module if isinstance(getattr(module, _end(name), None), nn.Parameter) else None


def _weight(model: nn.Module, name: str) -> nn.Parameter:
    module = _place(model, name)
    if module is None:
        raise ArtefactError(f"{type(model).__name__} has no weights {name}")
    return _own(module, name)


def _own(module: nn.Module, name: str) -> nn.Parameter:
    return getattr(module, _end(name))


def _end(name: str) -> str:
    return name.rpartition(".")[2]
