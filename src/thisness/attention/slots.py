"""The place between self- and cross-attention of a transformer block, without another model file.

diffusers' `BasicTransformerBlock` has a slot there for GLIGEN: where `cross_attention_kwargs` hold "gligen", it calls
`self.fuser(hidden, objs)` on the residual stream. Here `fuser` is a plain callable, no module: the names of weights
and processors stay as they are, and nothing is called in a step in which no intervention acts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from ..errors import ConfigurationError
from ..files import listed
from .context import Context
from .intervention import Intervention
from .sites import Site, sites_of

GLIGEN = "gligen"


class Slot:
    """What stands in a block's `fuser`.

    Attributes:
        site: the cross-attention that comes next.
        interventions: in the order in which they act.
        context: shared by all sites.
    """

    def __init__(self, site: Site, interventions: Sequence[Intervention], context: Context) -> None:
        self.site, self.interventions, self.context = site, tuple(interventions), context

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copy of the model made meanwhile is a plain one."""
        return None

    def __call__(self, hidden: Tensor, _: Any) -> Tensor:
        """hidden: (B, L, width), self-attention already added."""
        for each in self.interventions:
            if each.active(self.context):
                hidden = each.between(self.site, hidden, self.context)
        return hidden


def blocks_of(model: Any) -> dict[Site, Any]:
    """The transformer blocks that read a text, by the site of their cross-attention, in the order in which they run."""
    sites = [site for site in sites_of(model).values() if site.kind == "cross"]
    return {site: model.get_submodule(site.name.rpartition(".")[0]) for site in sites}


def context_between(model: Any) -> Context | None:
    """The context of interventions that are between already."""
    slots = (_slot(block) for block in blocks_of(model).values())
    return next((slot.context for slot in slots if isinstance(slot, Slot)), None)


@contextmanager
def inserted_between(model: Any, interventions: Sequence[Intervention], context: Context) -> Iterator[None]:
    """Let interventions act between self- and cross-attention; on exit the model is as it was. May be nested.

    Raises:
        ConfigurationError: the model uses the slot itself (GLIGEN), or an intervention would act nowhere.
    """
    blocks = blocks_of(model)
    taken = [site.name for site, block in blocks.items() if not isinstance(_slot(block), (Slot, type(None)))]
    if taken or not isinstance(getattr(model, "position_net", None), (_Through, type(None))):
        raise ConfigurationError("this denoiser has GLIGEN's layers, which stand where an image adapter goes")
    idle = [each for each in interventions if not any(each.match(site) for site in blocks)]
    if idle:
        names = [type(each).__name__ for each in idle]
        raise ConfigurationError(f"{listed(names)} would act nowhere: no block of the model is of its choice")

    def told(
        called: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        given = kwargs.get("cross_attention_kwargs") or {}
        if called is not model or GLIGEN in given or not any(each.active(context) for each in interventions):
            return None
        return args, {**kwargs, "cross_attention_kwargs": {**given, GLIGEN: {"objs": None}}}

    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(told, with_kwargs=True).remove)
        stack.enter_context(_attribute(model, "position_net", _Through()))
        for site, block in blocks.items():  # in all: the slot is called in all of them or in none
            outer = slot.interventions if (slot := _slot(block)) is not None else ()
            here = [each for each in interventions if each.match(site)]
            stack.enter_context(_attribute(block, "fuser", Slot(site, (*outer, *here), context)))
        yield


def _slot(block: Any) -> Any:
    return getattr(block, "fuser", None)


@contextmanager
def _attribute(module: Any, name: str, value: Any) -> Iterator[None]:
    """Set a plain attribute; afterwards it is what it was, or not there."""
    had, before = name in module.__dict__, module.__dict__.get(name)
    setattr(module, name, value)
    try:
        yield
    finally:
        if had:
            setattr(module, name, before)
        else:
            delattr(module, name)


class _Through:
    """Stands in the place of GLIGEN's `position_net`."""

    def __call__(self, objs: Any) -> Any:
        return objs
