"""Metrics: what they are, each paragraph in docs/metrics.md, and the presets of published protocols."""

from . import copying, editing, patches, perceptual, pictures, spread, text  # noqa: F401 - they register themselves
from .base import METRICS, EncoderMetric, Masker, Metric, Tools, register_metric
from .making import PRESET_NOTES, PRESETS, Column, make_metrics
from .masking import open_masker
from .views import View

__all__ = [
    "METRICS",
    "PRESETS",
    "PRESET_NOTES",
    "Column",
    "EncoderMetric",
    "Masker",
    "Metric",
    "Tools",
    "View",
    "make_metrics",
    "open_masker",
    "register_metric",
]
