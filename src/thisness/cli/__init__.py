"""The `thisness` command: what is started, and how its errors reach the person who typed it.

Exit codes: 0 done, 2 the input was wrong (one line says what to do), 1 our fault or the machine's, 130 stopped by
Ctrl-C, 143 stopped by SIGTERM. Nothing here imports torch: `thisness --help` answers at once.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

__all__ = ["main", "run"]


_STOPPED = 128 + signal.SIGINT
_terminated = False  # set by SIGTERM, to tell it from Ctrl-C in the exit code


def _on_sigterm(_signal: int, _frame: FrameType | None) -> NoReturn:
    """Let SIGTERM unwind everything as Ctrl-C does."""
    global _terminated
    _terminated = True
    raise KeyboardInterrupt


def _split_debug(words: Sequence[str]) -> tuple[list[str], bool]:
    """Take `--debug` out of the words, wherever it stands before `--`."""
    end = words.index("--") if "--" in words else len(words)
    kept = [word for word in words[:end] if word != "--debug"]
    return kept + list(words[end:]), len(kept) < end


def _say(text: str) -> None:
    """One line on the error stream, whatever the text holds."""
    with contextlib.suppress(OSError, ValueError):
        print("thisness: " + " ".join(text.split()), file=sys.stderr, flush=True)


def _unexpected(error: BaseException) -> str:
    """The one line for an error that no code of ours foresaw."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full: free some space, then run the same command again (what was written before is whole)"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory ({error}): try a smaller --batch-size or size, or another --device"
    name = type(error).__name__
    return f"unexpected {name}: {error}. This is a fault of thisness: run it again with --debug for the whole trace"


def run(words: Sequence[str]) -> int:
    """Run the command line.

    Args:
        words: what was typed after `thisness`.

    Returns:
        The exit code; see this module's text.
    """
    from typer.exceptions import Abort, TyperException

    from thisness.cli.app import build
    from thisness.cli.options import program
    from thisness.errors import ThisnessError

    words, debug = _split_debug(words)
    try:
        code = build(words).main(args=words, prog_name=program(), standalone_mode=False)
        sys.stdout.flush()
        if code != _STOPPED:  # how typer reports a KeyboardInterrupt
            return code if isinstance(code, int) else 0
    except TyperException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context else program()
        _say(f"{error.format_message().strip().rstrip('.')}. Help: {path} --help")
        return 2
    except BrokenPipeError:  # the reader went away: `thisness inspect ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, Abort):
        pass
    except ThisnessError as error:
        if debug:
            raise
        _say(str(error))
        return error.exit_code
    except Exception as error:
        if debug:
            raise
        _say(_unexpected(error))
        return 1
    _say("stopped")
    return _STOPPED + signal.SIGTERM - signal.SIGINT if _terminated else _STOPPED


def main() -> NoReturn:
    """The entry point: run what was typed and exit with its code."""
    signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # before anything had begun
        _say("stopped")
        code = _STOPPED
    sys.exit(code)
