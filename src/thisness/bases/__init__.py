"""Families of text-to-image models and their parts."""

from .base import Base, Part, TextEncoding
from .loading import FAMILIES, load_base
from .registry import Facts, known
from .stable_diffusion import StableDiffusion
from .stable_diffusion_xl import StableDiffusionXL

__all__ = [
    "FAMILIES",
    "Base",
    "Facts",
    "Part",
    "StableDiffusion",
    "StableDiffusionXL",
    "TextEncoding",
    "known",
    "load_base",
]
