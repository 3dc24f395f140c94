"""Attaching interventions to a model, and taking them off so that it is what it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from ..errors import ConfigurationError
from ..files import listed
from .context import Context
from .flux import HookedFluxProcessor
from .intervention import Intervention, goes_between, only_schedules
from .processor import HookedProcessor
from .sites import sites_of
from .slots import context_between, inserted_between

HOOKED: dict[str, type[HookedProcessor] | type[HookedFluxProcessor]] = {
    "AttnProcessor2_0": HookedProcessor,
    "AttnProcessor": HookedProcessor,  # plain, as in training
    "FluxAttnProcessor": HookedFluxProcessor,
}
"""By the processor in whose place it can be put without changing the result."""


@contextmanager
def attached(model: Any, *interventions: Intervention) -> Iterator[Context]:
    """Attach interventions to a denoiser.

    On exit, also by an exception, the model has the processor objects that it had before. May be nested: the inner
    ones act after the outer ones, and both share one context. Sites at which none acts are left alone. Low-rank
    adapters of PEFT may be there before or come in between. A copy made meanwhile is a plain model.

    Args:
        model: a UNet or a FLUX transformer of diffusers.
        interventions: in the order in which they act.

    Yields:
        The context that they see. `sample` keeps it up to date; around other code set `rows` and `step` yourself.

    Raises:
        ConfigurationError: an intervention acts at no site of the model, or a site has a processor that cannot be
            replaced without changing the result.
    """
    before = dict(model.attn_processors)
    outer_context = next(
        (each.context for each in before.values() if isinstance(each, (HookedProcessor, HookedFluxProcessor))), None
    )
    context = outer_context or context_between(model) or Context()
    attending = [each for each in interventions if not only_schedules(each)]
    inserted = [each for each in interventions if goes_between(each)]
    with ExitStack() as stack:
        if inserted:
            stack.enter_context(inserted_between(model, inserted, context))
        if attending:
            stack.enter_context(_processors(model, attending, before, context))
        yield context


@contextmanager
def _processors(model: Any, attending: list[Intervention], before: dict[str, Any], context: Context) -> Iterator[None]:
    now = dict(before)
    idle = set(map(id, attending))
    for name, site in sites_of(model).items():
        here = [each for each in attending if each.match(site)]
        if not here:
            continue
        idle -= set(map(id, here))
        old = before[f"{name}.processor"]
        hooked = isinstance(old, (HookedProcessor, HookedFluxProcessor))
        original, outer = (old.original, old.interventions) if hooked else (old, ())
        if type(original).__name__ not in HOOKED or getattr(model.get_submodule(name), "fused_projections", False):
            raise ConfigurationError(
                f"{name} attends by {type(original).__name__}: interventions need the standard one. Unload image "
                "adapters, and undo fused projections with unfuse_qkv_projections()"
            )
        kind = HOOKED[type(original).__name__]
        now[f"{name}.processor"] = kind(original, site, (*outer, *here), context)
    if idle:
        names = [type(each).__name__ for each in attending if id(each) in idle]
        raise ConfigurationError(f"{listed(names)} would act nowhere: no site of the model is of its choice")
    try:
        model.set_attn_processor(now)
        yield
    finally:
        model.set_attn_processor(before)
