"""`thisness diagnose`: why a method does what it does."""

from __future__ import annotations

import typer

from thisness.cli.diagnose_concept import concept
from thisness.cli.diagnose_pose_bias import pose_bias

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
app.command(no_args_is_help=True)(pose_bias)
app.command(no_args_is_help=True)(concept)
