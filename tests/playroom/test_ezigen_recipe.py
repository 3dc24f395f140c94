"""Oracles: the loop uninterrupted; the base before; the scenes that the data says."""

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
