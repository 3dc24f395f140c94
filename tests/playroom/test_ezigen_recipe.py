"""Oracles: the loop uninterrupted; the base before; probabilities; other pixels of who is not there."""

import numpy as np
import pytest
import torch

from thisness.bases import load_base
from thisness.methods.ezigen import EZIGen
from thisness.methods.zero_shot import read_subject
from thisness.playroom.data import PlayroomData, label_table
from thisness.playroom.recipes import ezigen as recipe
from thisness.playroom.recipes.vae import encode
from thisness.playroom.render import render
from thisness.playroom.world import random_scene
from thisness.subject import Subject
from thisness.training.loop import LoopConfig, train

CONFIG = LoopConfig(steps=3, lr=1e-3, clip=1.0, ema=0.9, seed=1, log_every=1)


def rendered(split):
    scenes = [random_scene(i, split) for i in range(8)]
    made = render(scenes, 128)
    return PlayroomData(made.images.numpy(), made.masks.numpy(), label_table(scenes), split, 128)


@pytest.fixture(scope="module")
def parts():
    base, data = load_base("playroom-sd"), rendered("train")
    latents = encode(base.vae, data.pictures(range(8)))[0].numpy()
    return base, data, rendered("held-out"), latents, recipe.encoded_subjects(base.vae, data, range(8)).numpy()


@pytest.fixture
def task(parts):
    torch.manual_seed(0)
    return recipe.EZIGenTask(load_base("playroom-sd"), *parts[1:], batch_size=2)


def test_stopped_and_resumed_equals_uninterrupted_and_only_the_adapter_changes(task, parts, tmp_path):
    before = {name: tensor.clone() for name, tensor in task.base.denoiser.state_dict().items()}
    train(task, CONFIG, tmp_path / "whole", progress=False)
    whole = {name: tensor.clone() for name, tensor in task.adapter.state_dict().items()}
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.base.denoiser.state_dict().items())
    assert all(p.grad is None for module in task.base.modules.values() for p in module.parameters())
    assert all(p.grad is not None for p in task.adapter.parameters())
    torch.manual_seed(5)
    again = recipe.EZIGenTask(task.base, *parts[1:], batch_size=2)
    for _ in range(3):
        done = train(again, CONFIG, tmp_path / "parts", progress=False, stop_after=0.0)
    assert done.finished and all(
        torch.equal(tensor, whole[name]) for name, tensor in again.adapter.state_dict().items()
    )
    again.save(tmp_path / "built")
    assert (tmp_path / "built" / "model.safetensors").stat().st_size < 4 * 2**20
    image = recipe.cut_out(parts[2], 0)
    subject = Subject("rex", "dog", (image,), (np.ones((128, 128), np.float32),))
    settings = {"weights": str(tmp_path / "built")}
    concept = read_subject("ezigen", subject, parts[0], settings=settings)
    assert concept.method == EZIGen.name and concept.settings["prompt"] == recipe.PROMPT


def test_a_fifth_has_no_subject_and_a_tenth_no_text():
    """Within 1 % over 10,000 draws (D22)."""
    subject, text = recipe.drops(10_000, torch.Generator().manual_seed(0))
    assert abs(subject.mean() - 0.2) < 0.01 and abs(text.mean() - 0.1) < 0.01
    assert abs((subject & text).mean() - 0.05) < 0.01


def test_at_the_start_the_loss_is_the_bases_and_absent_means_absent(task, parts):
    """Gates closed: subject or none, the same. Open: what is not read makes no difference, what is does."""
    base, data, _, latents, subjects = parts
    clean = torch.from_numpy(latents[:2]).float() * base.vae.config.scaling_factor
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    text = task.nouns.rows([0, 1])
    read = torch.from_numpy(subjects[task.usable[:2]]).float()
    mask = torch.ones(2, 1, 128, 128)
    seen = torch.zeros(1, *clean.shape[1:])

    def loss(keys, told):
        with torch.no_grad():
            given = task.keys(task.adapter, keys, [0] * len(told), seen) if len(told) else None
            return task.errors(task.adapter, clean, noise, torch.tensor([300, 300]), text, mask, given, np.array(told))[
                0
            ]

    none = loss(None, [])
    assert torch.equal(loss(read, [0, 1]), none)
    for site in task.adapter.sites:
        site.gate.data.fill_(0.5)
    one = loss(read[:1], [0])
    assert not torch.allclose(one[0], none[0], atol=1e-3)  # the gate is open: `none` was of a closed one
    absent, other = loss(None, []), loss(read[1:], [0])
    assert torch.allclose(one[1], absent[1], atol=1e-5) and torch.allclose(other[1], absent[1], atol=1e-5)  # D23
    assert not torch.allclose(one[0], other[0], atol=1e-3) and not torch.allclose(one[0], absent[0], atol=1e-3)


def test_pairs_are_two_scenes_of_one_toy_and_subjects_are_cut_out(parts):
    data = parts[1]
    for row in range(8):
        image = recipe.cut_out(data, row)
        if image is None:
            assert not parts[4][row].any()
            continue
        edge = np.asarray(image)[[0, -1]]
        assert (edge > 250).all() and parts[4][row].any()
    assert data.scene(0).subject.identity == data.scene(3).subject.identity != data.scene(4).subject.identity
