"""What the denoiser reads, and how sentences become it."""

from .conditioning import ADJUSTMENTS, Adjustment, Conditioning
from .encoding import encode, encode_negative
from .sentence import Adjusted, Bound, Sentence, SentenceAdjustment, SentenceAttachment, encode_adjusted

__all__ = [
    "ADJUSTMENTS",
    "Adjusted",
    "Adjustment",
    "Bound",
    "Conditioning",
    "Sentence",
    "SentenceAdjustment",
    "SentenceAttachment",
    "encode",
    "encode_adjusted",
    "encode_negative",
]
