"""`thisness bench`: measure recipes on a benchmark, and report."""

from __future__ import annotations

import typer

from thisness.cli.bench_report import report
from thisness.cli.bench_run import run

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
app.command(no_args_is_help=True)(run)
app.command(no_args_is_help=True)(report)
