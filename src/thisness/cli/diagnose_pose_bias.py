"""In work."""

from __future__ import annotations


def pose_bias() -> None:
    """In work."""
