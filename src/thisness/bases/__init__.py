"""Families of text-to-image models and their parts."""

from .base import Base, Part, TextEncoding
from .loading import FAMILIES, load_base
from .registry import Facts, known
from .stable_diffusion import StableDiffusion

__all__ = ["FAMILIES", "Base", "Facts", "Part", "StableDiffusion", "TextEncoding", "known", "load_base"]
