"""Personalization methods, one file each. Importing this package registers them all."""

from .registry import METHODS, Method, Stopped, learn, method_named, register_method  # isort: skip
from . import (  # noqa: F401  (they register themselves)
    aligngen,
    blip_diffusion,
    custom_diffusion,
    detex,
    dreambooth,
    dreambooth_full,
    elite,
    ezigen,
    harmonizing_orchestrate,
    harmonizing_probe,
    harmonizing_swap,
    ip_adapter,
    ominicontrol,
    tea_adjustment,
    textual_inversion,
)

__all__ = ["METHODS", "Method", "Stopped", "learn", "method_named", "register_method"]
