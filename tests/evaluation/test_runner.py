"""The runner. Oracles: pictures replayed from their records, a run left alone, counted calls, damage done by hand."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from evaluation import rulers, toys
from PIL import Image

import tiny
from thisness.errors import ConfigurationError, ThisnessError, UserError
from thisness.evaluation import runner, worker
from thisness.evaluation.locking import running
from thisness.evaluation.results import read_entries, read_run
from thisness.evaluation.runner import run_benchmark
from thisness.methods.registry import Stopped

METRICS = (toys.Redness(), toys.Nearness())
SMALL = {"recipes": ["base+sampling:steps=2", toys.RECIPES[1]], "subjects": ["rex"], "batch_size": 2, "progress": False}


@pytest.fixture(scope="module")
def base():
    return tiny.base("zero-snr")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return toys.benchmark(tmp_path_factory.mktemp("bench"))


def go(base, bench, out, **changes):
    given = {**SMALL, "metrics": METRICS, **changes}
    return run_benchmark(bench, given.pop("recipes"), out, base=base, **given)


@pytest.fixture(scope="module")
def whole(base, bench, tmp_path_factory):
    """A finished run; nobody writes into it."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert go(base, bench, out).whole
    return out


@pytest.fixture
def copy(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "run"))


def look(out):
    images = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (out / "images").iterdir()}
    entries, damaged = read_entries(out / "results.jsonl")
    said = Counter((e["kind"], e.get("id") or (e["recipe"], e["subject"]), str(e.get("identities"))) for e in entries)
    assert damaged == 0 and set(said.values()) <= {1}
    return images, {each.id: (dict(each.values), each.failure) for each in read_run(out).scored}


class Counting:
    """A context in which calls of the worker are counted by kind of job and by recipe."""

    def __init__(self, monkeypatch):
        self.jobs, self.made, self.names = Counter(), [], []
        do = worker.Worker.do

        def counted(doing, job):
            self.jobs[type(job).__name__] += 1
            self.made += [row.id for row in getattr(job, "rows", ()) if type(job).__name__ == "Make"]
            self.names += getattr(job, "metrics", ())
            return do(doing, job)

        monkeypatch.setattr(worker.Worker, "do", counted)


def test_what_a_run_holds(whole, base, bench):
    run = read_run(whole)
    assert run.finished and run.planned == len(run.scored) == 2 * 3 + 2 * 3
    assert set(run.recipes) == {"base-sampling-steps-2", "words"} and run.base["signature"] == base.signature
    assert run.identities == {each.name: each.identity for each in METRICS}
    log = (whole / "concepts/words/rex/log.jsonl").read_text().splitlines()
    assert run.learning == {("words", "rex"): pytest.approx(json.loads(log[-1])["seconds"], abs=1e-3)}
    assert run.sizes["words", "rex"] == sum(
        file.stat().st_size for file in whole.glob("concepts/words/rex/*.safetensors")
    )
    assert run.sentences["rex", "rex-beach"] == "a dog on the beach"
    for copied, given in zip(run.references["rex"], bench.subject("rex").pictures, strict=True):
        assert np.array_equal(np.asarray(Image.open(copied)), np.asarray(Image.open(given)))
    for each in run.scored:
        pixels = np.asarray(Image.open(each.image))
        assert each.values["redness"] == pytest.approx(pixels[..., 0].mean() / 255)
    drift = {(each.recipe, each.seed): each for each in run.scored if each.family == "drift"}
    plain, known = drift["base-sampling-steps-2", 0], drift["words", 0]
    assert plain.values["nearness"] == 0.0, "its own baseline"
    means = [np.asarray(Image.open(each.image), np.float64).mean((0, 1)) / 255 for each in (plain, known)]
    assert known.values["nearness"] == pytest.approx(-abs(means[0] - means[1]).sum())


def test_pictures_replay_from_their_records(whole, base):
    from thisness.concept import Concept
    from thisness.generation import replay

    found = {each.recipe: each for each in read_run(whole).scored if each.case == "rex-beach" and each.seed == 1}
    concept = Concept.load(whole / "concepts/words/rex", base)
    again = replay(found["words"].image, base, concept)
    assert np.array_equal(np.asarray(again.images[0]), np.asarray(Image.open(found["words"].image)))


def test_a_finished_run_is_left_alone(copy, base, bench, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()}
    counting = Counting(monkeypatch)
    assert go(base, bench, copy).made == 0
    assert dict(counting.jobs) == {"Identify": 1}
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()} == before


def test_what_is_damaged_is_made_again_and_nothing_else(copy, whole, base, bench, monkeypatch):
    files = sorted((copy / "images").iterdir())
    files[0].unlink()
    files[3].write_bytes(files[3].read_bytes()[:-9])
    shutil.copyfile(files[4], files[6])
    lines = (copy / "results.jsonl").read_bytes().splitlines(keepends=True)
    torn = [number for number, line in enumerate(lines) if b'"picture"' in line][-1]
    identifier = json.loads(lines[torn])["id"]
    lines[torn] = lines[torn][:30] + b"\n"
    (copy / "results.jsonl").write_bytes(b"".join(lines) + b'{"kind": "pic')
    counting = Counting(monkeypatch)
    finished = go(base, bench, copy)
    assert look(copy) == look(whole)
    touched = {files[0].stem, files[3].stem, files[6].stem, identifier}
    assert touched <= set(counting.made) and len(counting.made) <= 2 * len(touched), "whole batches of two"
    assert finished.made == len(touched), "those beside them in their batches had the same bytes"
    assert counting.jobs["Learn"] <= 1 and counting.jobs["Share"] == 0


def test_lost_scores_are_scored_again(copy, whole, base, bench, monkeypatch):
    lines = (copy / "results.jsonl").read_bytes().splitlines(keepends=True)
    scores = [number for number, line in enumerate(lines) if b'"score"' in line]
    (copy / "results.jsonl").write_bytes(b"".join(line for n, line in enumerate(lines) if n != scores[1]))
    counting = Counting(monkeypatch)
    assert go(base, bench, copy).made == 0
    assert dict(counting.jobs) == {"Identify": 1, "Score": 1}
    assert look(copy) == look(whole)


def test_a_further_metric_is_scored_alone(base, bench, tmp_path, whole, monkeypatch):
    go(base, bench, tmp_path / "run", metrics=METRICS[:1])
    assert set(read_run(tmp_path / "run").identities) == {"redness"}
    counting = Counting(monkeypatch)
    go(base, bench, tmp_path / "run")
    assert counting.jobs["Make"] == 0 and set(counting.names) == {"nearness"}
    assert look(tmp_path / "run")[1] == look(whole)[1]
    newer = toys.Nearness()
    newer.identity = {"metric": "nearness", "version": 2}
    counting.names.clear()
    go(base, bench, tmp_path / "run", metrics=[METRICS[0], newer])
    assert set(counting.names) == {"nearness"}, "under another identity its values are not its values"


def test_another_plan_is_refused_with_what_differs(copy, base, bench):
    with pytest.raises(ConfigurationError, match=r"another run \(.*seeds: \[0,1\] there, \[3\] here.*another --out"):
        go(base, bench, copy, seeds=[3])
    with pytest.raises(ConfigurationError, match="words.learning.steps: 2 there, 3 here"):
        go(base, bench, copy, recipes=[SMALL["recipes"][0], toys.RECIPES[1].replace("steps=2+", "steps=3+")])
    with pytest.raises(ConfigurationError, match="base.signature"):
        go(tiny.base(), bench, copy)
    with pytest.raises(ConfigurationError, match="threads: 1 there, 2 here"):
        go(base, bench, copy, threads=2)


def test_a_run_is_extended_and_keeps_what_it_has(base, bench, tmp_path, monkeypatch):
    """Oracle: the run of everything, made at once; counted calls."""
    all_of_it = {"recipes": [*SMALL["recipes"], "longer=base+sampling:steps=3"], "subjects": ()}
    assert go(base, bench, tmp_path / "at once", **all_of_it).whole
    out = tmp_path / "run"
    assert go(base, bench, out, recipes=SMALL["recipes"][:1]).whole
    with pytest.raises(ConfigurationError, match="another run .*add the rest with --extend"):
        go(base, bench, out, **all_of_it)
    before, begun = look(out), json.loads((out / "run.json").read_text())
    counting = Counting(monkeypatch)
    assert go(base, bench, out, **all_of_it, extend=True).whole
    assert look(out) == look(tmp_path / "at once") and before[0].items() <= look(out)[0].items()
    assert not {Path(name).stem for name in before[0]} & set(counting.made), "nothing was made twice"
    counting.made.clear()
    assert go(base, bench, out, **all_of_it).whole and not counting.made, "from now on it is that run"
    assert json.loads((out / "run.json").read_text())["environment"] == begun["environment"]


def test_further_seeds_leave_the_batches_that_were_made(copy, base, bench, monkeypatch):
    before = look(copy)[0]
    counting = Counting(monkeypatch)
    assert go(base, bench, copy, seeds=[0, 1, 2], extend=True).whole
    assert before.items() <= look(copy)[0].items() and len(look(copy)[0]) == 1.5 * len(before)
    assert not {Path(name).stem for name in before} & set(counting.made)
    assert go(base, bench, copy, seeds=[0, 1, 2]).made == 0


def test_an_extension_that_would_lose_something_is_refused(copy, base, bench):
    before = {path: path.read_bytes() for path in copy.rglob("*.json*")}
    with pytest.raises(ConfigurationError, match="cannot be extended .*not asked for: recipe words.*ask for all"):
        go(base, bench, copy, recipes=SMALL["recipes"][:1], subjects=(), extend=True)
    with pytest.raises(ConfigurationError, match="cannot be extended .*not asked for: seed 1"):
        go(base, bench, copy, seeds=[0, 2], extend=True)
    with pytest.raises(ConfigurationError, match="cannot be extended .*words.learning.steps: 2 there, 3 here"):
        changed = [SMALL["recipes"][0], toys.RECIPES[1].replace("steps=2+", "steps=3+")]
        go(base, bench, copy, recipes=changed, seeds=[0, 1, 2], extend=True)
    with pytest.raises(ConfigurationError, match="cannot be extended .*threads: 1 there, 2 here"):
        go(base, bench, copy, subjects=(), threads=2, extend=True)
    assert {path: path.read_bytes() for path in copy.rglob("*.json*")} == before


@pytest.mark.parametrize("damage", [b'{"id": "x', None])
def test_a_damaged_plan_is_not_extended(copy, base, bench, damage):
    (copy / "plan.jsonl").unlink()
    if damage is not None:
        (copy / "plan.jsonl").write_bytes(damage)
    with pytest.raises(UserError, match="plan.jsonl cannot be read .*start anew"):
        go(base, bench, copy, seeds=[0, 1, 2], extend=True)


def test_an_extension_that_was_cut_short_is_typed_again(copy, base, bench, monkeypatch):
    from thisness.evaluation import starting

    with monkeypatch.context() as patch, pytest.raises(OSError, match="gone"):

        def killed(path, data):
            raise OSError("the machine is gone")

        patch.setattr(starting, "write_json", killed)
        go(base, bench, copy, seeds=[0, 1, 2], extend=True)
    with pytest.raises(UserError, match="--extend again"):
        go(base, bench, copy)
    assert go(base, bench, copy, seeds=[0, 1, 2], extend=True).whole


def test_a_recipe_that_fails_on_one_subject_leaves_the_rest(base, bench, tmp_path, monkeypatch):
    from thisness.evaluation.learning import Learned

    prepare = Learned.prepare

    def failing(self, subject, *rest):
        if subject.name == "mia":
            raise ThisnessError("this subject cannot be learned")
        return prepare(self, subject, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Learned, "prepare", failing)
        finished = go(base, bench, tmp_path / "run", subjects=())
    assert finished.failures == {("words", "this subject cannot be learned"): 2 * 3} and not finished.whole
    run = read_run(tmp_path / "run")
    failed = {(each.recipe, each.subject) for each in run.scored if each.failure}
    assert failed == {("words", "mia")} and run.finished and len(run.scored) == run.planned
    assert all(each.image is None and not each.values for each in run.scored if each.failure)
    assert go(base, bench, tmp_path / "run", subjects=()).whole, "the same command tries them again"
    assert not any(each.failure for each in read_run(tmp_path / "run").scored)
    look(tmp_path / "run")


def test_a_sentence_that_cannot_be_made_fails_alone(base, bench, tmp_path):
    from dataclasses import replace

    long = replace(bench.cases[0], id="rex-long", text="a {subject} " + "very " * 40)
    more = replace(bench, cases=(*bench.cases, long))
    finished = go(base, more, tmp_path / "run")
    assert sum(finished.failures.values()) == 4 and {recipe for recipe, _ in finished.failures} == set(
        read_run(tmp_path / "run").recipes
    )
    assert {each.case for each in read_run(tmp_path / "run").scored if each.failure} == {"rex-long"}


def test_a_metric_that_fails_leaves_the_others(copy, base, bench):
    finished = go(base, bench, copy, metrics=[*METRICS, toys.Broken()])
    assert len(finished.problems) == 3 and "this metric is broken" in finished.problems[0]
    assert not read_run(copy).finished
    assert go(base, bench, copy).whole


def test_recipes_that_sample_otherwise_share_what_is_learned(base, bench, tmp_path, monkeypatch):
    counting = Counting(monkeypatch)
    learned = toys.RECIPES[1].removeprefix("words=").split("+")[0]
    recipes = [f"two={learned}+sampling:steps=2", f"three={learned}+sampling:steps=3"]
    assert go(base, bench, tmp_path / "run", recipes=recipes).whole
    assert counting.jobs["Learn"] == 1
    assert [path.name for path in (tmp_path / "run/concepts").iterdir()] == ["two"]
    assert read_run(tmp_path / "run").learning.keys() == {("two", "rex"), ("three", "rex")}


def test_a_sentence_is_encoded_once(base, bench, tmp_path, monkeypatch):
    calls = Counter()
    encode = type(base).encode_tokens

    def counted(self, tokens):
        calls[tuple(tokens[0][0].tolist())] += 1
        return encode(self, tokens)

    monkeypatch.setattr(type(base), "encode_tokens", counted)
    go(base, bench, tmp_path / "run", recipes=["base+sampling:steps=2"], batch_size=1, seeds=[0, 1, 2])
    assert calls and set(calls.values()) == {1}, "three batches of each sentence, and the empty one in all of them"
    assert "encode_tokens" not in vars(base)


def test_one_run_at_a_time(copy, base, bench):
    with running(copy), pytest.raises(UserError, match="another run is at work"):
        go(base, bench, copy)


def test_a_full_disk_ends_the_run_and_the_next_call_goes_on(base, bench, tmp_path, whole, monkeypatch):
    put, calls = runner._put, []

    def full(path, data):
        calls.append(path)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        put(path, data)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(runner, "_put", full)
        go(base, bench, tmp_path / "run")
    assert not list((tmp_path / "run/images").glob(".*"))
    go(base, bench, tmp_path / "run")
    assert look(tmp_path / "run") == look(whole)


def test_stop_after_stops_and_goes_on(base, bench, tmp_path, whole):
    with pytest.raises(Stopped, match="stopped with 0 of 12 pictures: the same command goes on"):
        go(base, bench, tmp_path / "run", stop_after=0.0)
    with contextlib.suppress(Stopped):
        go(base, bench, tmp_path / "run", stop_after=0.3)
    go(base, bench, tmp_path / "run")
    assert look(tmp_path / "run") == look(whole)


def test_wrong_input_is_refused_before_anything_is_made(base, bench, tmp_path):
    from dataclasses import replace

    wrong = {
        "'../x' must be": replace(bench, cases=(replace(bench.cases[0], id="../x"),)),
        "there is no subject 'max'": replace(bench, cases=(replace(bench.cases[0], subjects=(("subject", "max"),)),)),
        "unknown placeholder": replace(bench, cases=(replace(bench.cases[0], text="a {toy} sleeping"),)),
        "is not there": replace(
            bench, subjects=(replace(bench.subjects[0], pictures=(tmp_path / "no.png",)), bench.subjects[1])
        ),
    }
    for says, given in wrong.items():
        with pytest.raises(UserError, match=says):
            go(base, given, tmp_path / "run", subjects=())
    for changes, says in (
        ({"recipes": ["bse"]}, "did you mean 'base'"),
        ({"recipes": ["textual-inversion:stepz=3"]}, "did you mean 'steps'"),
        ({"engine": "rai"}, "did you mean 'ray'"),
        ({"workers": 2}, "an opened base cannot go to other processes"),
    ):
        with pytest.raises(UserError, match=says):
            go(base, bench, tmp_path / "run", **changes)
    assert not (tmp_path / "run/run.json").exists() and not (tmp_path / "run/images").exists()


def test_values_do_not_tell_where_a_run_was_interrupted(base, bench, tmp_path):
    """With real encoders and their cache: rows in batches of other sizes would differ in their last bits."""
    clip, vit = rulers.save_clip(tmp_path / "clip"), rulers.save_vit(tmp_path / "vit")
    metrics = [
        f'clip-t:encoder="{clip}"',
        f'clip-i:encoder="{clip}"',
        f'dino-i:encoder="{vit}"',
        f'patches:encoder="{vit}"',
    ]
    given = {"metrics": [*metrics, f'drift:encoder="{vit}"'], "subjects": ()}
    out = tmp_path / "run"
    assert go(base, bench, out, **given).whole
    before = look(out)
    assert all(any(v is not None for v in values.values()) for values, _ in before[1].values())
    lines = (out / "results.jsonl").read_bytes().splitlines(keepends=True)
    scores = [number for number, line in enumerate(lines) if b'"score"' in line]
    for keep in (0, 3, len(scores) // 2, len(scores) - 1):
        lost = set(scores[keep:])
        (out / "results.jsonl").write_bytes(b"".join(line for number, line in enumerate(lines) if number not in lost))
        assert go(base, bench, out, **given).whole
        assert look(out) == before
