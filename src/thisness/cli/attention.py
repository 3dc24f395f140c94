"""In work."""

from __future__ import annotations


def attention() -> None:
    """In work."""
