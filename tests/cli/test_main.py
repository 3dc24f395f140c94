"""How errors reach the person who typed. Oracle: exit codes and the error stream of a command that fails on purpose."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import typer

from thisness import cli
from thisness.errors import ArtefactError, ThisnessError, UserError


def failing_with(monkeypatch, error):
    """Let `thisness fail` raise the error (or return where it is None)."""
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.callback()
    def top() -> None: ...

    @app.command()
    def fail(count: int = 0) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr("thisness.cli.app.build", lambda words: typer.main.get_command(app))


class OutOfMemoryError(RuntimeError):
    """As torch names its own."""


@pytest.mark.parametrize(
    "error, code, says",
    [
        (None, 0, ""),
        (typer.Exit(0), 0, ""),
        (typer.Exit(2), 2, ""),
        (UserError("mask is 640x480: pass another"), 2, "thisness: mask is 640x480: pass another\n"),
        (ArtefactError("two\nlines"), 2, "thisness: two lines\n"),
        (ThisnessError("the loss is not finite"), 1, "thisness: the loss is not finite\n"),
        (KeyboardInterrupt(), 130, "thisness: stopped\n"),
        (typer.Abort(), 130, "thisness: stopped\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "the disk is full"),
        (MemoryError("too much"), 1, "out of memory"),
        (OutOfMemoryError("tried to allocate"), 1, "out of memory"),
        (ValueError("odd"), 1, "unexpected ValueError: odd"),
    ],
)
def test_exit_code_and_one_line(monkeypatch, capsys, error, code, says):
    failing_with(monkeypatch, error)
    assert cli.run(["fail"]) == code
    said = capsys.readouterr().err
    assert says in said and "Traceback" not in said and said.count("\n") == bool(says)


def test_an_unexpected_error_points_to_debug(monkeypatch, capsys):
    failing_with(monkeypatch, ValueError("odd"))
    cli.run(["fail"])
    assert "--debug" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--debug", "fail"], ["fail", "--debug"], ["fail", "--debug", "--count", "1"]])
def test_debug_shows_the_trace_from_anywhere_on_the_line(monkeypatch, words):
    failing_with(monkeypatch, ValueError("odd"))
    with pytest.raises(ValueError, match="odd"):
        cli.run(words)


@pytest.mark.parametrize(
    "words, says",
    [
        (["fail", "--cuont", "1"], "--cuont"),
        (["fail", "--count", "x"], "--count"),
        (["fial"], "fial"),
        (["fail", "--", "--debug"], "--debug"),
    ],
)
def test_a_mistyped_line_is_one_line_with_the_way_to_the_help(monkeypatch, capsys, words, says):
    failing_with(monkeypatch, None)
    assert cli.run(words) == 2
    said = capsys.readouterr().err
    assert says in said and "--help" in said and said.count("\n") == 1


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_unwind_and_leave_one_line(tmp_path, number, code):
    """A process that is told to stop runs its `finally` blocks and exits with the signal's code."""
    program = f"""
        import time, typer, thisness.cli, thisness.cli.app
        app = typer.Typer()
        @app.callback()
        def top(): ...
        @app.command()
        def wait():
            try:
                open({str(tmp_path / "begun")!r}, "w").close()
                time.sleep(30)
            finally:
                open({str(tmp_path / "unwound")!r}, "w").close()
        thisness.cli.app.build = lambda words: typer.main.get_command(app)
        thisness.cli.main()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), "wait"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a background shell ignores it
    )
    deadline = time.monotonic() + 20
    while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert process.returncode == code
    assert said == "thisness: stopped\n"
    assert (tmp_path / "unwound").exists()


def test_a_reader_that_goes_away_is_no_error():
    line = f"{sys.executable} -m thisness --help | true"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=20)
    assert done.stderr == ""
