"""`thisness bench`: measure recipes on a benchmark, report, ask whether its judges can be believed."""

from __future__ import annotations

import typer

from thisness.cli.bench_judges import agreement, fit_proxy, ratings
from thisness.cli.bench_report import report
from thisness.cli.bench_run import run

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
app.command(no_args_is_help=True)(run)
app.command(no_args_is_help=True)(report)
app.command(no_args_is_help=True)(ratings)
app.command(no_args_is_help=True)(agreement)
app.command(no_args_is_help=True)(fit_proxy)
