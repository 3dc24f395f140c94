"""From noise to pictures."""

from .companion import Companion, Run
from .guidance import guided, rescaled
from .loop import Cancelled, Step, sample, seeded
from .options import SamplingOptions
from .pictures import decode_images
from .schedulers import SCHEDULERS, make_scheduler

__all__ = [
    "SCHEDULERS",
    "Cancelled",
    "Companion",
    "Run",
    "SamplingOptions",
    "Step",
    "decode_images",
    "guided",
    "make_scheduler",
    "rescaled",
    "sample",
    "seeded",
]
