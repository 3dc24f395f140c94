"""In work."""

from __future__ import annotations


def run() -> None:
    """In work."""
