"""Families of text-to-image models and their parts."""

from .base import FLOW, Base, Part, TextEncoding, instead
from .flux import Flux
from .loading import FAMILIES, load_base
from .registry import Facts, known
from .stable_diffusion import StableDiffusion
from .stable_diffusion_xl import StableDiffusionXL

__all__ = [
    "FAMILIES",
    "FLOW",
    "Base",
    "Facts",
    "Flux",
    "Part",
    "StableDiffusion",
    "StableDiffusionXL",
    "TextEncoding",
    "instead",
    "known",
    "load_base",
]
