"""`thisness bench report`: what a run says, as pages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="The folder that `bench run --out` wrote; several of one benchmark."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where to write; the folder `report` in the first RUN by default."),
    ] = None,
    x: Annotated[
        str | None, typer.Option("--x", metavar="METRIC", help="Across; the run's first metric of prompt following.")
    ] = None,
    y: Annotated[
        str | None, typer.Option("--y", metavar="METRIC", help="Upwards; the run's first metric of identity.")
    ] = None,
) -> None:
    """Write what a run says: one HTML file that opens offline, Markdown with figures, and JSON.

    Works while the run is still going on, with what is there. Several runs (other bases, other times) stand in one
    table, recipe by recipe, on the subjects, sentences and seeds that they share.
    """
    from thisness.evaluation.joining import joined
    from thisness.evaluation.report import FOLDER, write_report
    from thisness.evaluation.results import read_run

    whole = joined([read_run(each) for each in dict.fromkeys(run)])
    for path in write_report(whole, run[0] / FOLDER if out is None else out, x=x, y=y):
        typer.echo(f"{path}")
