"""The commands of `thisness`, put together. No module here imports torch when it is loaded."""

from __future__ import annotations

from collections.abc import Sequence

import typer
from typer.core import TyperGroup

_PLAYROOM_HELP = "Render scenes and subjects of the Playroom; train and check the embedded models."


def _callback(
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
    debug: bool = typer.Option(False, "--debug", help="Show the whole trace of an error (anywhere on the line)."),
) -> None:
    """Personalized text-to-image generation: keep what makes one thing this thing.

    Exit codes: 0 done, 2 the input was wrong, 1 our fault.
    """
    del debug  # taken out of the words before they are parsed; declared here for the help
    if version:
        from thisness import __version__

        typer.echo(f"thisness {__version__}")
        raise typer.Exit


def build(words: Sequence[str] = ()) -> TyperGroup:
    """The command with its sub-commands.

    Args:
        words: what was typed: the playroom's sub-commands are loaded only where they are called.
    """
    from thisness.cli.demo import demo
    from thisness.cli.doctor import doctor
    from thisness.cli.generate import generate
    from thisness.cli.inspect import inspect
    from thisness.cli.learn import learn

    app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    app.callback(invoke_without_command=True)(_callback)
    for function in (demo, generate, learn, inspect, doctor):
        app.command(function.__name__, no_args_is_help=function is not demo)(function)
    if "playroom" in words:
        from thisness.cli.playroom import app as playroom

        app.add_typer(playroom, name="playroom", help=_PLAYROOM_HELP)
    else:
        app.command("playroom", help=_PLAYROOM_HELP)(lambda: None)
    command = typer.main.get_command(app)
    assert isinstance(command, TyperGroup)
    return command
