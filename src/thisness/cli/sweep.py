"""In work."""

from __future__ import annotations


def sweep() -> None:
    """In work."""
