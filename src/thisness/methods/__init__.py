"""Personalization methods, one file each. Importing this package registers them all."""

from .registry import METHODS, Method, Stopped, learn, method_named, register_method  # isort: skip
from . import custom_diffusion, detex, dreambooth, dreambooth_full, textual_inversion  # noqa: F401  (they register themselves)

__all__ = ["METHODS", "Method", "Stopped", "learn", "method_named", "register_method"]
