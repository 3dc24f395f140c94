"""What tuning-based concepts put on a base: learned words, low-rank changes of weights, replaced weights; on and off
again exactly."""

from .handler import EMBEDDINGS, LORA, REPLACED, AdapterHandler
from .lora import attached_lora, inserted_lora
from .replaced import replaced_weights
from .words import LearnedRows, attached_words

__all__ = [
    "EMBEDDINGS",
    "LORA",
    "REPLACED",
    "AdapterHandler",
    "LearnedRows",
    "attached_lora",
    "attached_words",
    "inserted_lora",
    "replaced_weights",
]
