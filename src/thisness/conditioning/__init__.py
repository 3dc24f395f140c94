"""What the denoiser reads, and how sentences become it."""

from .conditioning import ADJUSTMENTS, Adjustment, Conditioning
from .encoding import encode

__all__ = ["ADJUSTMENTS", "Adjustment", "Conditioning", "encode"]
