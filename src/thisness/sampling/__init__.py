"""From noise to pictures."""

from .companion import Companion, Run
from .guidance import guided, rescaled
from .loop import Cancelled, Step, sample, seeded
from .options import SamplingOptions
from .pictures import decode_images
from .schedulers import SCHEDULERS, STARTS_AT_THE_START, begin_at, make_scheduler, noised_at

__all__ = [
    "SCHEDULERS",
    "STARTS_AT_THE_START",
    "Cancelled",
    "Companion",
    "Run",
    "SamplingOptions",
    "Step",
    "begin_at",
    "decode_images",
    "guided",
    "make_scheduler",
    "noised_at",
    "rescaled",
    "sample",
    "seeded",
]
