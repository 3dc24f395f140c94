"""Making pictures, keeping their records, making them again."""

from .again import replay
from .make import generate
from .record import check_record, pixel_hash
from .result import Generation

__all__ = ["Generation", "check_record", "generate", "pixel_hash", "replay"]
