"""`thisness inspect`: what a file or folder is, and how to get it again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from thisness.cli.generate import DeviceOption


def inspect(
    path: Annotated[Path, typer.Argument(help="A picture of ours, its record, a concept, a base, a weights file.")],
    replay: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Make it again into this folder.")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Say what a file or folder is: a picture with its record, a concept, a base; and how to make it again."""
