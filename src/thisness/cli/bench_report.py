"""`thisness bench report`: what a run says, as pages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder that `bench run --out` wrote.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to write; the folder `report` in RUN by default.")
    ] = None,
    x: Annotated[
        str | None, typer.Option("--x", metavar="METRIC", help="Across; the run's first metric of prompt following.")
    ] = None,
    y: Annotated[
        str | None, typer.Option("--y", metavar="METRIC", help="Upwards; the run's first metric of identity.")
    ] = None,
) -> None:
    """Write what a run says: one HTML file that opens offline, Markdown with figures, and JSON.

    Works while the run is still going on, with what is there.
    """
    from thisness.evaluation.report import write_report

    for path in write_report(run, out, x=x, y=y):
        typer.echo(f"{path}")
