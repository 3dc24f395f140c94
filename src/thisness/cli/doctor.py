"""`thisness doctor`: is this folder fit to learn from, is this machine fit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def doctor(
    pictures: Annotated[Path | None, typer.Argument(help="A folder of pictures; without it, only the machine.")] = None,
) -> None:
    """Check a folder of pictures and this machine before anything expensive starts.

    Exits with 2 where something must be mended first.
    """
