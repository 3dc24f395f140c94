"""`thisness doctor`: is this folder fit to learn from, is this machine fit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

STYLES = {"good": "green", "note": "cyan", "warning": "yellow", "error": "bold red"}
NOT_FIT = 2


def doctor(
    pictures: Annotated[Path | None, typer.Argument(help="A folder of pictures; without it, only the machine.")] = None,
    resolution: Annotated[int, typer.Option(min=8, help="Of the base that is to learn, in pixels.")] = 128,
    resize_mask: Annotated[bool, typer.Option("--resize-mask", help="Fit masks of another size.")] = False,
) -> None:
    """Check a folder of pictures and this machine before anything expensive starts.

    Exits with 2 where something must be mended first.
    """
    from rich.console import Console
    from rich.table import Table

    from thisness.doctor import check_machine, check_pictures, worst

    parts = {"machine": check_machine()}
    if pictures is not None:
        parts = {str(pictures): check_pictures(pictures, resolution=resolution, resize_mask=resize_mask)} | parts
    console = Console()
    for heading, findings in parts.items():
        table = Table(title=heading, title_justify="left", title_style="bold", box=None, show_header=False)
        table.add_column()
        table.add_column()
        table.add_column(overflow="fold")  # a long path is broken, never cut
        for finding in findings:
            style = STYLES[finding.level]
            table.add_row(f"[{style}]{finding.level}[/]", finding.topic, _plain(finding.text))
        console.print(table)
    gravest = worst(finding for findings in parts.values() for finding in findings)
    if gravest == "error":
        typer.echo("not fit: mend what is marked error first", err=True)
        raise typer.Exit(NOT_FIT)
    typer.echo("fit to learn from" if pictures is not None else "this machine is fit")


def _plain(text: str) -> str:
    """Text whose brackets are no markup: file names may hold anything."""
    from rich.markup import escape

    return escape(text)
