"""What a layer may look at: capture, swap, inject, mask; attached to a model and taken off again."""

from .attach import attached
from .capture import CaptureMaps
from .context import Context, Row, Rows, rows_of
from .exchange import InjectKeysValues, RecordKeysValues, SwapKeysValues
from .image_tokens import ImageTokens
from .intervention import ATTACHMENTS, Intervention, Where
from .masking import MaskAttention
from .processor import HookedProcessor, probabilities
from .sites import Site, crossing_sites, sites_of

__all__ = [
    "ATTACHMENTS",
    "CaptureMaps",
    "Context",
    "HookedProcessor",
    "ImageTokens",
    "InjectKeysValues",
    "Intervention",
    "MaskAttention",
    "RecordKeysValues",
    "Row",
    "Rows",
    "Site",
    "SwapKeysValues",
    "Where",
    "attached",
    "crossing_sites",
    "probabilities",
    "rows_of",
    "sites_of",
]
