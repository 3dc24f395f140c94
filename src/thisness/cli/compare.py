"""In work."""

from __future__ import annotations


def compare() -> None:
    """In work."""
