"""Several concepts of Custom Diffusion in one training. Oracles: the trained state itself; an undisturbed run."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from thisness.adapters import EMBEDDINGS, REPLACED
from thisness.concept import Concept
from thisness.conditioning import encode
from thisness.errors import ConfigurationError
from thisness.generation import generate
from thisness.methods import Stopped, learn
from thisness.methods.custom_diffusion import CustomDiffusion, _joint, learn_joint
from thisness.methods.registry import settings_for
from thisness.sampling import SamplingOptions
from thisness.subject import Subject

SETTINGS = {
    "steps": 3, "lr": 0.02, "precision": "fp32", "captions": "plain", "prior_pictures": 2, "prior_steps": 2,
    "start": "sks+hat", "batch_size": 2, "prior_batch": 1,
}  # fmt: skip
SENTENCE = "a <rex> dog on a <mimi> cat"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THISNESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def base():
    return tiny.base()


def toy(name: str, noun: str, seed: int) -> Subject:
    draws = np.random.default_rng(seed)
    return Subject(name, noun, tuple(Image.fromarray(draws.integers(0, 255, (16, 16, 3), np.uint8)) for _ in range(2)))


@pytest.fixture(scope="module")
def subjects() -> list[Subject]:
    return [toy("rex", "dog", 0), toy("mimi", "cat", 1)]


@pytest.fixture(scope="module")
def concepts(base, subjects) -> list[Concept]:
    return learn_joint(subjects, base, progress=False, preset="default", **SETTINGS)


@torch.no_grad()
def answer(base) -> torch.Tensor:
    """What the denoiser says to a sentence with both words."""
    return base.predict(torch.ones(1, 4, 8, 8), torch.tensor([10]), encode(base, SENTENCE))


def test_both_words_and_the_shared_weights_get_gradients(base, subjects):
    settings = settings_for(CustomDiffusion, base, SETTINGS, "default")
    with ExitStack() as stack:
        task, _ = stack.enter_context(_joint(base, settings, False, subjects))
        task.on_start(torch.device("cpu"))
        task.loss(0, torch.Generator().manual_seed(0))["loss"].backward()
        assert set(task.modules()) == {"weights", "rex/words", "mimi/words"}
        for module in task.modules().values():
            assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
        starts = {n: task.modules()[f"{n}/words"]["text_encoder"].detach() for n in ("rex", "mimi")}
        table = base.text_encoder.get_input_embeddings().original.original.weight
        for name, word in (("rex", "sks"), ("mimi", "hat")):
            (number,) = base.tokenizer(word, add_special_tokens=False)["input_ids"]
            assert torch.equal(starts[name][0], table[number])


def test_the_shared_weights_gradient_is_the_mean_over_the_subjects(base, subjects):
    settings = settings_for(CustomDiffusion, base, SETTINGS, "default")
    with ExitStack() as stack:
        task, _ = stack.enter_context(_joint(base, settings, False, subjects))
        task.on_start(torch.device("cpu"))
        found = task.loss(0, torch.Generator().manual_seed(0))
        states = torch.Generator().manual_seed(0)
        seeds = [int(torch.randint(2**62, (), generator=states)) for _ in subjects]
        assert len(set(seeds)) == 2
        alone = [
            task.tasks[subject.name].loss(0, torch.Generator().manual_seed(seed))["loss"]
            for subject, seed in zip(subjects, seeds, strict=True)
        ]
        torch.testing.assert_close(found["loss"], torch.stack(alone).mean())
        weights = list(task.modules()["weights"].parameters())
        together = torch.autograd.grad(found["loss"], weights)
        apart = torch.autograd.grad(torch.stack(alone).mean(), weights)
        for one, other in zip(together, apart, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_attached_together_they_are_the_trained_state(base, subjects):
    """To the bit, in either order; and neither alone is."""
    settings = settings_for(CustomDiffusion, base, SETTINGS, "default")
    plain = {name: tensor.clone() for name, tensor in base.denoiser.state_dict().items()}
    with ExitStack() as stack:
        task, made = stack.enter_context(_joint(base, settings, False, subjects))
        task.on_start(torch.device("cpu"))
        optimizer = torch.optim.AdamW(task.parameter_groups(), lr=0.02)
        for step in range(3):
            optimizer.zero_grad()
            task.loss(step, torch.Generator().manual_seed(0))["loss"].backward()
            optimizer.step()
        trained, concepts = answer(base), made()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in base.denoiser.state_dict().items())
    for first, second in (concepts, concepts[::-1]):
        with first.attach(base), second.attach(base):
            assert torch.equal(answer(base), trained)


def test_weights_are_shared_words_are_not(base, concepts):
    rex, mimi = concepts
    assert (rex.word.text, mimi.word.text) == ("<rex> dog", "<mimi> cat")
    assert rex.settings["joint_with"] == ["mimi"] and mimi.settings["joint_with"] == ["rex"]
    assert all(torch.equal(tensor, mimi.tensors[REPLACED][key]) for key, tensor in rex.tensors[REPLACED].items())
    assert not torch.equal(*(c.tensors[EMBEDDINGS]["text_encoder"] for c in concepts))
    both = generate(
        base, "a {rex} on a {mimi}", concept={"rex": rex, "mimi": mimi}, options=SamplingOptions(steps=2)
    )  # fmt: skip
    assert both.record["sentence"] == SENTENCE
    alone = learn("custom-diffusion", toy("spot", "dog", 3), base, progress=False, preset="default", **SETTINGS | {
        "start": "sks", "steps": 1})  # fmt: skip
    with rex.attach(base), pytest.raises(ConfigurationError, match="'rex' and 'spot' both replace"), alone.attach(base):
        pass


def test_stopped_resumed_written_and_not_done_again(base, subjects, concepts, tmp_path):
    folder, stops = tmp_path / "both", 0
    given = {"progress": False, "preset": "default", "folder": folder, **SETTINGS}
    while True:
        try:
            again = learn_joint(subjects, base, stop_after=0.0, **given)
            break
        except Stopped:
            stops += 1
    assert stops == 2 and sorted(path.name for path in tmp_path.iterdir()) == ["both"]
    for one, other in zip(concepts, again, strict=True):
        loaded = Concept.load(folder / one.name, base=base)
        assert loaded.manifest == one.manifest == other.manifest
        for file, group in one.tensors.items():
            assert all(torch.equal(tensor, loaded.tensors[file][key]) for key, tensor in group.items())
    stamps = {path: path.stat().st_mtime_ns for path in folder.glob("*/concept.json")}
    learn_joint(subjects, base, **given)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/concept.json")} == stamps


def test_one_subject_is_refused(base, subjects):
    with pytest.raises(ConfigurationError, match="joint learning of rex: give at least two"):
        learn_joint(subjects[:1], base)
