"""In work."""

from __future__ import annotations


def report() -> None:
    """In work."""
