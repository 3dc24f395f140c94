"""Engines. Oracle: the run in one process: the same bytes and values wherever the work is done, and whoever dies."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import pytest
from evaluation import toys

from thisness.errors import UserError
from thisness.evaluation.engines import Engine, open_engine, run_jobs
from thisness.evaluation.engines.dispatch import Lost
from thisness.evaluation.engines.opening import check_engine
from thisness.evaluation.jobs import Outcome, Share
from thisness.evaluation.locking import running
from thisness.evaluation.results import read_run
from thisness.evaluation.runner import run_benchmark

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install ray -c constraints.txt"
)
WORDS = toys.RECIPES[1]


class Played(Engine):
    """Two workers of a play: what comes of each job is written down beforehand."""

    count = 2

    def __init__(self, fates):
        self.fates, self.at_work, self.log = fates, deque(), []

    def send(self, worker, job):
        self.at_work.append((worker, job))
        self.log.append((job.subject, [each.key for _, each in self.at_work]))

    def wait(self, seconds):
        worker, job = self.at_work.popleft()
        fate = self.fates.get(job.subject, [])
        return [(worker, Lost("struck by lightning") if fate and fate.pop(0) else Outcome(job.subject))]

    def close(self):
        pass


def played(jobs, fates=None, **options):
    engine, found = Played(fates or {}), []
    complete = run_jobs(engine, jobs, lambda job, outcome: found.append((job.subject, outcome)), **options)
    return engine, found, complete


def test_every_job_is_done_once():
    _, found, complete = played([Share("r", str(number)) for number in range(7)])
    assert complete and sorted(subject for subject, _ in found) == [str(number) for number in range(7)]


def test_jobs_of_one_key_never_overlap_and_keep_their_order():
    jobs = [Share("r", f"{key}{number}", key=key) for number in range(3) for key in ("a", "b", "b")]
    engine, found, _ = played(jobs)
    assert all(len(keys) == len(set(keys)) for _, keys in engine.log)
    for key in ("a", "b"):
        assert [job.subject for job in jobs if job.key == key] == [s for s, _ in engine.log if s[0] == key]
    assert len(found) == len(jobs)


def test_a_job_that_kills_its_workers_fails_after_three():
    lost = []
    jobs = [Share("r", "deadly"), Share("r", "unlucky"), Share("r", "plain")]
    _, found, complete = played(
        jobs, {"deadly": [True] * 9, "unlucky": [True, True]}, on_lost=lambda job, reason: lost.append(job.subject)
    )
    outcomes = dict(found)
    assert complete and len(found) == 3 and lost.count("deadly") == 3 and lost.count("unlucky") == 2
    assert outcomes["deadly"].kind == "failed" and "struck by lightning" in outcomes["deadly"].failure
    assert outcomes["unlucky"].result == "unlucky"


def test_after_the_deadline_nothing_is_begun():
    _, found, complete = played([Share("r", "a")], deadline=time.monotonic() - 1)
    assert found == [] and not complete


def test_names_of_engines():
    assert check_engine("ray=host:6379") == ("ray", "host:6379")
    for text in ("raj", "local=3"):
        with pytest.raises(UserError, match="ray=ADDRESS"):
            check_engine(text)


def test_without_ray_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'thisness\[ray\]'"):
        open_engine("ray", 2, None)


def look(out):
    run = read_run(out)
    assert run.finished
    images = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (out / "images").iterdir()}
    return images, {each.id: (dict(each.values), each.failure) for each in run.scored}


def go(base_folder, out, **changes):
    given = {"recipes": ["base+sampling:steps=2", WORDS], "metrics": [toys.Redness(), toys.Nearness()], **changes}
    return run_benchmark(
        toys.benchmark(out.parent), given.pop("recipes"), out, base=str(base_folder), batch_size=2, progress=False,
        **given,
    )  # fmt: skip


@pytest.fixture(scope="module")
def alone(base_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "run"
    go(base_folder, out)
    return look(out)


def test_two_processes_of_which_one_is_killed(base_folder, alone, tmp_path, capfd):
    (tmp_path / "kill").write_text("Make")
    assert go(base_folder, tmp_path / "run", workers=2, worker=toys.Killed).whole
    assert look(tmp_path / "run") == alone
    assert not (tmp_path / "kill").exists(), "a worker was killed in the middle of a batch"


@needs_ray
def test_two_actors_of_ray_of_which_one_is_killed(base_folder, alone, tmp_path):
    (tmp_path / "kill").write_text("Make")
    assert go(base_folder, tmp_path / "run", engine="ray", workers=2, worker=toys.Killed).whole
    assert look(tmp_path / "run") == alone
    assert not (tmp_path / "kill").exists(), "an actor was killed in the middle of a batch"


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=needs_ray)])
def test_a_run_with_workers_is_killed_and_goes_on(engine, base_folder, alone, tmp_path):
    """SIGKILL of the run's own process at several moments; its workers must not go on writing."""
    out, toy = tmp_path / "run", Path(toys.__file__)
    paths = os.pathsep.join([*(path for path in sys.path if path), str(toy.parent.parent)])
    settings = f'{{"workers": 2, "engine": "{engine}", "recipes": ["base+sampling:steps=2", "{WORDS}"]}}'
    command = [sys.executable, str(toy), str(base_folder), str(tmp_path), str(out), settings]
    killed = 0
    for entries in (0, 1, 3, 7, 9, 16):  # lines of results that are waited for before the blow
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths})
        while process.poll() is None:
            file = out / "results.jsonl"
            if (out / "run.json").exists() and (
                entries == 0 or (file.exists() and len(file.read_bytes().splitlines()) >= entries)
            ):
                process.send_signal(signal.SIGKILL)
            time.sleep(0.02)
        killed += process.returncode == -signal.SIGKILL
        with running(out):
            pass  # waits until the workers are gone
    assert killed >= 3
    assert subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}).returncode == 0
    assert look(out) == alone
