"""The commands of `thisness`, put together. No module here imports torch when it is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import typer
from typer.core import TyperGroup

_GROUPS = {
    "bench": "Measure recipes on a benchmark, resumable; report what came out.",
    "diagnose": "Why a method does what it does: pose bias, semantic collapse.",
    "playroom": "Render scenes and subjects of the Playroom; train and check the embedded models.",
}
"""Commands with sub-commands: modules with an `app`, loaded only where they are called."""


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
        words: what was typed: the sub-commands of a group are loaded only where it is called.
    """
    from thisness.cli.attention import attention
    from thisness.cli.compare import compare
    from thisness.cli.convert import convert
    from thisness.cli.demo import demo
    from thisness.cli.doctor import doctor
    from thisness.cli.edit import edit
    from thisness.cli.export import export
    from thisness.cli.generate import generate
    from thisness.cli.inspect import inspect
    from thisness.cli.learn import learn
    from thisness.cli.masks import masks
    from thisness.cli.sweep import sweep
    from thisness.cli.train import train

    app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    app.callback(invoke_without_command=True)(_callback)
    plain = (demo, generate, edit, learn, train, compare, sweep, attention, inspect, export, convert, masks, doctor)
    for function in plain:
        app.command(function.__name__, no_args_is_help=function is not demo)(function)
    for name, help_text in _GROUPS.items():
        if name in words:
            app.add_typer(import_module(f"thisness.cli.{name}").app, name=name, help=help_text)
        else:
            app.command(name, help=help_text)(lambda: None)
    command = typer.main.get_command(app)
    assert isinstance(command, TyperGroup)
    return command
