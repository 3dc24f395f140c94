"""`thisness bench run`. Oracle: the run's folder against what was typed; exit codes; one line for wrong input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from evaluation import rulers, toys

from thisness import cli
from thisness.evaluation.results import read_entries, read_run


@pytest.fixture
def copy(tmp_path):
    """A user's copy of a benchmark: a folder of subjects with a file of prompts."""
    bench = toys.benchmark(tmp_path / "made")
    root = tmp_path / "copy"
    for each in bench.subjects:
        (root / each.name).mkdir(parents=True)
        for file in each.pictures:
            (root / each.name / file.name).write_bytes(file.read_bytes())
    table = "".join(f"{each.name},{each.noun}\n" for each in bench.subjects)
    (root / "subjects.csv").write_text("name,noun\n" + table)
    (root / "prompts.txt").write_text("a {subject} sleeping\na {subject} on the beach\n")
    return root


def words(base_folder, copy, out, *more):
    metric = f"clip-i:encoder={copy.parent / 'clip'}"
    if not (copy.parent / "clip").exists():
        rulers.save_clip(copy.parent / "clip")
    return [
        "bench", "run", "folder", "--folder", str(copy), "--recipes", "base,words=textual-inversion:steps=2,seed=1",
        "--out", str(out), "--base", str(base_folder), "--seeds", "0-1", "--sampling", "steps=2", "--workers", "1",
        "--metrics", metric, "--device", "cpu", *more,
    ]  # fmt: skip


def test_a_run_is_what_was_typed(base_folder, copy, tmp_path, capsys):
    typed = words(base_folder, copy, tmp_path / "run", "--subjects", "rex")
    assert cli.run(typed) == 0
    run = read_run(tmp_path / "run")
    assert run.finished and {each.subject for each in run.scored} == {"rex"} and len(run.scored) == 2 * 2 * 2
    assert run.recipes["words"]["learning"]["seed"] == 1 and run.recipes["base"]["sampling"]["steps"] == 2
    said = capsys.readouterr()
    assert "words" in said.out and "4 of 4 pictures, 0 failures" in said.out and "bench report" in said.out
    assert cli.run(typed) == 0, "a run that is done is left alone"


def test_failures_are_told_and_the_exit_code_says_so(base_folder, copy, tmp_path, capsys):
    with (copy / "prompts.txt").open("a") as file:
        file.write("a {subject} " + "very " * 60 + "\n")
    assert cli.run(words(base_folder, copy, tmp_path / "run", "--subjects", "rex")) == 1
    said = capsys.readouterr()
    assert "2 pictures could not be made" in said.err and said.err.splitlines()[-1].startswith("thisness: 4 pictures")
    assert sum(bool(each.failure) for each in read_run(tmp_path / "run").scored) == 4


@pytest.mark.parametrize(
    "more, says",
    [
        (["--recipes", "dreambooth-lore"], "did you mean 'dreambooth-lora'"),
        (["--metrics", "dino-j"], "did you mean 'dino-i'"),
        (["--judge", "orakle"], "did you mean 'oracle'"),
        (["--engine", "rai"], "did you mean 'ray'"),
        (["--subjects", "rox"], "did you mean 'rex'"),
        (["--seeds", "3-1"], "runs backwards"),
        (["--sampling", "stepz=1"], "did you mean 'steps'"),
        (["--size", "huge"], "size"),
    ],
)
def test_wrong_words(base_folder, copy, tmp_path, refused, more, says):
    typed = words(base_folder, copy, tmp_path / "run")
    if more[0] in ("--recipes", "--metrics"):
        typed[typed.index(more[0]) + 1] = more[1]
        more = []
    assert says in refused(*typed, *more)
    assert not (tmp_path / "run" / "images").exists() or not any((tmp_path / "run" / "images").iterdir())


def test_another_plan_is_refused(base_folder, copy, tmp_path, refused):
    typed = words(base_folder, copy, tmp_path / "run", "--subjects", "rex")
    assert cli.run(typed) == 0
    typed[typed.index("--seeds") + 1] = "0-2"
    assert "another run (benchmark.seeds: [0,1] there, [0,1,2] here" in refused(*typed)


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_with_one_line_and_the_command_goes_on(base_folder, copy, tmp_path, number, code):
    typed = [sys.executable, "-m", "thisness", *words(base_folder, copy, tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(typed, env=environment, stderr=subprocess.PIPE, text=True)
    results = tmp_path / "run" / "results.jsonl"
    while process.poll() is None and not (results.exists() and len(read_entries(results)[0]) >= 2):
        time.sleep(0.05)
    process.send_signal(number)
    said = process.communicate()[1].splitlines()
    assert process.returncode == code and said[-1].startswith("thisness: stopped") and "goes on" in said[-1]
    done = subprocess.run(typed, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and read_run(tmp_path / "run").finished
    assert json.loads((tmp_path / "run" / "run.json").read_text())["command"].startswith("thisness bench run folder")
