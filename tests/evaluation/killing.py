"""Runs that are killed, in a process of its own: `python killing.py WORK KILLS`, prints what came of them as JSON.

Each round is a fork that runs until it is killed: at a chosen point, or at a random moment. The last one is left alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from evaluation import toys

import thisness.training.loop  # noqa: F401
import tiny
from thisness.evaluation import results, runner, starting, worker
from thisness.generation import generate  # noqa: F401 (loaded here once, not in every fork; so are others)
from thisness.methods import tuning
from thisness.subject import Subject  # noqa: F401


def kill_self(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(number: int, original, *, before=None):
    """The original, which is followed (or preceded) by the end at its call of this number."""
    calls = [0]

    def call(*args, **kwargs):
        calls[0] += 1
        if calls[0] == number and before is not None:
            before(*args, **kwargs)
            kill_self()
        result = original(*args, **kwargs)
        if calls[0] == number:
            kill_self()
        return result

    return call


def half_line(handle: int, line: bytes) -> None:
    os.write(handle, line[: len(line) // 2])


def half_file(path: Path, data: bytes) -> None:
    runner.partial_sibling(path).write_bytes(data[: len(data) // 2])


class Writing:
    """Stands in for `os` in results.py."""

    def __init__(self, write) -> None:
        self.write = write

    def __getattr__(self, name: str):
        return getattr(os, name)


POINTS = {
    "before run.json": lambda: setattr(starting, "write_json", kill_self),
    "identities": lambda: setattr(runner, "note_metrics", at_call(1, runner.note_metrics)),
    "learning": lambda: setattr(tuning.TuningTask, "loss", at_call(2, tuning.TuningTask.loss)),
    "concept without line": lambda: setattr(worker, "_logged_seconds", at_call(1, worker._logged_seconds)),
    "picture without line": lambda: setattr(runner, "_put", at_call(2, runner._put)),
    "half a picture": lambda: setattr(runner, "_put", at_call(2, runner._put, before=half_file)),
    "half a line": lambda: setattr(results, "os", Writing(at_call(2, os.write, before=half_line))),
    "a batch half noted": lambda: setattr(results, "os", Writing(at_call(3, os.write))),
    "some scores": lambda: setattr(runner.ResultsFile, "append", at_call(2, runner.ResultsFile.append)),
    "half a score": lambda: setattr(results, "os", Writing(at_call(4, os.write, before=half_line))),
    "before the summary": lambda: setattr(runner, "summary", kill_self),
}


def forked(base, work: Path, out: Path, prepare=None) -> int:
    """The number of a process that runs."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            if prepare is not None:
                prepare()
            metrics = [toys.Redness(), toys.Nearness()]
            runner.run_benchmark(
                toys.benchmark(work), toys.RECIPES[:2], out, base=base, metrics=metrics, subjects=["rex"], batch_size=2,
                progress=False,
            )  # fmt: skip
            code = 0
        except BaseException as error:
            print(repr(error), file=sys.stderr)
        finally:
            os._exit(code)
    return process


def ended(process: int) -> str:
    """How it ended."""
    status = os.waitpid(process, 0)[1]
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"code {os.WEXITSTATUS(status)}"


def look(out: Path) -> dict:
    """Pictures by their bytes, values, and how many times each thing is said."""
    run = results.read_run(out)
    entries, damaged = results.read_entries(out / "results.jsonl")
    about = [results._about(entry) for entry in entries]
    return {
        "images": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (out / "images").iterdir()},
        "values": {each.id: dict(each.values) for each in run.scored},
        "finished": run.finished,
        "doubled": len(about) - len(set(about)),
        "damaged": damaged,
    }


def main(work: str, kills: str) -> None:
    folder = Path(work)
    base = tiny.base("zero-snr")
    begun = time.monotonic()
    said: dict = {"whole ended": ended(forked(base, folder, folder / "whole"))}
    seconds = time.monotonic() - begun
    said["points"] = {name: ended(forked(base, folder, folder / "points", POINTS[name])) for name in POINTS}
    said["points ended"] = ended(forked(base, folder, folder / "points"))
    draws = random.Random(7)
    said["kills"] = 0
    for _ in range(int(kills)):
        process = forked(base, folder, folder / "random")
        time.sleep(draws.uniform(0.02, 0.7) * seconds)
        os.kill(process, signal.SIGKILL)
        said["kills"] += ended(process) == "signal 9"
    said["random ended"] = ended(forked(base, folder, folder / "random"))
    said["found"] = {name: look(folder / name) for name in ("whole", "points", "random")}
    print(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
