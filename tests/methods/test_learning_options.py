"""Options that all methods share. Oracles: the mean by its recursion, written out over runs of 1, 2, 3 steps; another
process that really holds the lock; what torchrun sets."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
import torch

import tiny
from thisness.adapters.words import vocabulary_rows
from thisness.errors import ConfigurationError, UserError
from thisness.methods import learn
from thisness.methods.packed import learn_packed
from thisness.methods.registry import LOCK, Stopped
from thisness.methods.tuning import TuningSettings, decisive

GIVEN = {"preset": "default", "lr": 0.05, "captions": "plain", "precision": "fp32", "progress": False}
HOLD = """
import sys, time
from pathlib import Path
from thisness.files.locks import locked
with locked(Path(sys.argv[1]), "taken"):
    print("held", flush=True)
    time.sleep(120)
"""


@pytest.fixture(scope="module")
def base():
    return tiny.base()


def word(concept):
    return concept.tensors["embeddings.safetensors"]["text_encoder"]


def test_the_running_mean_is_what_is_kept_and_survives_a_stop(base, tmp_path):
    rows = [vocabulary_rows(base, "dog")["text_encoder"]]
    rows += [word(learn("textual-inversion", tiny.toy(), base, steps=n, **GIVEN)) for n in (1, 2, 3)]
    mean = rows[0]
    for n, row in enumerate(rows[1:], 1):
        decay = min(0.2, (1 + n) / (10 + n))
        mean = decay * mean + (1 - decay) * row
    kept = learn("textual-inversion", tiny.toy(), base, steps=3, ema=0.2, **GIVEN)
    torch.testing.assert_close(word(kept), mean, rtol=0, atol=1e-6)
    assert (word(kept) - rows[-1]).abs().max() > 1e-3
    stops = 0
    while True:
        try:
            again = learn(
                "textual-inversion", tiny.toy(), base, steps=3, ema=0.2, folder=tmp_path / "x", stop_after=0.0, **GIVEN
            )
            break
        except Stopped:
            stops += 1
    assert stops == 2 and torch.equal(word(again), word(kept)) and again.manifest == kept.manifest


def test_what_was_learned_before_there_were_these_settings_counts_as_the_same():
    said = decisive(TuningSettings())
    assert "ema" not in said and "optimizer" not in said
    said = decisive(TuningSettings(ema=0.9, optimizer="adamw8bit"))
    assert said["ema"] == 0.9 and said["optimizer"] == "adamw8bit"
    with pytest.raises(ConfigurationError, match="ema must be in"):
        TuningSettings(ema=1.5)


def test_8_bits_on_the_cpu_are_refused_before_the_work(base, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigurationError, match="needs bitsandbytes"):
        learn("textual-inversion", tiny.toy(), base, steps=1, optimizer="adamw8bit", **GIVEN)


def test_prodigy_does_not_use_the_rate_and_goes_on_as_if_never_stopped(base, tmp_path):
    given = GIVEN | {"steps": 4, "optimizer": "prodigy", "folder": tmp_path / "x", "lr": 7.0, "stop_after": 0.0}
    whole = learn("textual-inversion", tiny.toy(), base, **GIVEN | {"steps": 4, "optimizer": "prodigy"})
    for _ in range(3):
        with pytest.raises(Stopped):
            learn("textual-inversion", tiny.toy(), base, **given)
    assert torch.equal(word(learn("textual-inversion", tiny.toy(), base, **given)), word(whole))


def test_a_second_process_in_one_folder_gets_one_line_and_a_killed_one_leaves_none(base, tmp_path):
    training = tmp_path / "rex.training"
    held = subprocess.Popen([sys.executable, "-c", HOLD, str(training / LOCK)], stdout=subprocess.PIPE, text=True)
    try:
        assert held.stdout.readline() == "held\n"
        for fresh in (True, False):
            with pytest.raises(UserError, match="another `learn` is at work in .*rex.training: wait for it"):
                learn("textual-inversion", tiny.toy(), base, steps=1, folder=tmp_path / "rex", resume=fresh, **GIVEN)
        assert [each.name for each in tmp_path.iterdir()] == ["rex.training"]
    finally:
        held.send_signal(signal.SIGKILL)
        held.wait()
    learn("textual-inversion", tiny.toy(), base, steps=1, folder=tmp_path / "rex", **GIVEN)
    assert not training.exists() and (tmp_path / "rex" / "concept.json").is_file()


def test_a_removed_lock_lets_nobody_in_twice(tmp_path):
    """Who holds a lock removes its file: who opened the old one must not take that for the lock."""
    from thisness.files.locks import locked

    path = tmp_path / "lock"
    with locked(path, "taken"):
        path.unlink()
        with locked(path, "taken"), pytest.raises(UserError, match="taken"), locked(path, "taken"):
            pass
    start = time.monotonic()
    with locked(path, "taken"), pytest.raises(UserError), locked(path, "taken", seconds=0.2):
        pass
    assert time.monotonic() - start >= 0.2


def test_several_subjects_under_torchrun_are_refused(base, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigurationError, match="learned by one process.*without torchrun"):
        learn_packed("textual-inversion", [tiny.toy()], base, folder=tmp_path / "c", steps=1, **GIVEN)
    assert not list(tmp_path.iterdir())
