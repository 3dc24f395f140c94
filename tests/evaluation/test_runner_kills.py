"""A run that is killed. Oracle: the same run left alone: its pictures' bytes, its values, each thing said once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


KILLS = 5


def experiment(work: Path, kills: int) -> dict:
    """What the runs of killing.py came to."""
    paths = os.pathsep.join([*(path for path in sys.path if path), str(HERE.parent)])
    done = subprocess.run(
        [sys.executable, str(HERE / "killing.py"), str(work), str(kills)],
        env={**os.environ, "PYTHONPATH": paths, "THISNESS_CACHE": str(work / "cache"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]) | {"stderr": done.stderr}


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    return experiment(tmp_path_factory.mktemp("killed"), KILLS)


def test_a_run_left_alone_makes_and_scores_everything_once(said):
    whole = said["found"]["whole"]
    assert said["whole ended"] == "code 0" and whole["finished"]
    assert len(whole["images"]) == len(whole["values"]) == 12
    assert all(set(values) == {"redness", "nearness"} for values in whole["values"].values())
    assert whole["doubled"] == whole["damaged"] == 0


def test_killed_at_chosen_points_the_result_is_the_same(said):
    assert said["points"] == dict.fromkeys(said["points"], "signal 9"), said["stderr"]
    assert said["points ended"] == "code 0", said["stderr"]
    assert said["found"]["points"] == said["found"]["whole"]


def test_killed_at_random_moments_the_result_is_the_same(said):
    check_random(said)


@pytest.mark.slow
def test_killed_at_many_random_moments_the_result_is_the_same(tmp_path):
    check_random(experiment(tmp_path, 60))


def check_random(said):
    assert said["kills"] > 0
    assert said["random ended"] == "code 0", said["stderr"]
    assert said["found"]["random"] == said["found"]["whole"]
