"""What tuning-based concepts put on a base: learned words and low-rank changes of weights; on and off again exactly."""

from .handler import EMBEDDINGS, LORA, AdapterHandler
from .lora import attached_lora, inserted_lora
from .words import LearnedRows, attached_words

__all__ = [
    "EMBEDDINGS",
    "LORA",
    "AdapterHandler",
    "LearnedRows",
    "attached_lora",
    "attached_words",
    "inserted_lora",
]
