"""Recipes of ELITE and BLIP-Diffusion. Oracles: the captions' own attributes; learned rows one by one; what was trained
is what `read_subject` reads and what the sampler computes with."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from thisness.adapters import EMBEDDINGS
from thisness.adapters.words import LearnedRows
from thisness.attention import attached, rows_of
from thisness.bases import load_base
from thisness.conditioning import encode
from thisness.methods.zero_shot import read_subject
from thisness.playroom.captions import COLOURS
from thisness.playroom.data import PlayroomData, label_table
from thisness.playroom.recipes.blip_diffusion import BlipDiffusionTask
from thisness.playroom.recipes.elite import EliteGlobalTask, EliteLocalTask
from thisness.playroom.recipes.word_hosts import BatchRows, sentence
from thisness.playroom.render import render
from thisness.playroom.world import random_scene
from thisness.prompt import Prompt
from thisness.subject import Subject


@pytest.fixture(scope="module")
def data() -> PlayroomData:
    scenes = [random_scene(i) for i in range(4)]
    made = render(scenes, 128)
    return PlayroomData(made.images.numpy(), made.masks.numpy(), label_table(scenes), "train", 128)


@pytest.fixture(scope="module")
def latents() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((4, 8, 16, 16)).astype(np.float32)


def learned(task, steps=4):
    """Losses of one batch again and again, and which parameters never got a gradient."""
    task.on_start(torch.device("cpu"))
    parameters = [p for module in task.modules().values() for p in module.parameters()]
    optimizer, losses = torch.optim.AdamW(parameters, 2e-3), []
    for step in range(steps):
        loss = task.loss(step, torch.Generator().manual_seed(5))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    named = {n: p for module in task.modules().values() for n, p in module.named_parameters()}
    trained = {id(p) for p in parameters}
    frozen = [p for module in task.base.modules.values() for p in module.parameters() if id(p) not in trained]
    assert all(p.grad is None for p in frozen)
    return losses, {name for name, p in named.items() if p.grad is None or not p.grad.abs().sum() > 0}


def toy(data, row=0):
    image = Image.fromarray(data.images[row].transpose(1, 2, 0))
    noun = data.scene(row).subject.identity.noun
    return Subject("rex", noun, (image,), (data.masks[row, 0].astype(np.float32) / 255,)), noun


def test_captions_name_the_word_no_colour_of_it_and_half_of_the_poses():
    said = posed = 0
    for seed in range(300):
        scene = random_scene(seed)
        text = sentence(scene, Random(seed), "<w>")
        assert text.count("a <w>") == 1
        before = text.partition(" wearing ")[0].partition(" next to ")[0].partition(" with ")[0]
        assert not set(before.split()) & set(COLOURS)
        if scene.subject.pose != "upright":
            posed += 1
            said += scene.subject.pose in text
    assert 0.4 < said / posed < 0.6


def test_each_row_of_a_batch_has_words_of_its_own():
    torch.manual_seed(0)
    original, rows = torch.nn.Embedding(10, 4), torch.randn(3, 2, 4)
    table = BatchRows(original, 10)
    table.rows = rows
    ids = torch.tensor([[1, 10, 11, 3], [10, 2, 2, 11], [4, 5, 6, 7]])
    for row, found in zip(range(3), table(ids), strict=True):
        assert torch.equal(found, LearnedRows(original, 10, rows[row])(ids[row : row + 1])[0])


def prediction(base, subject, name, folder, noisy, t, **settings):
    """What a fresh base predicts with the concept that was read, and the concept."""
    concept = read_subject(name, subject, base, settings={"weights": str(folder)} | settings)
    with concept.attach(base) as brought, torch.no_grad():
        interventions = brought.interventions if brought else ()
        read = encode(base, Prompt("a photo of a {subject} sleeping").fill({"subject": concept.word}))
        with attached(base.denoiser, *interventions) as context:
            context.rows, context.spans = rows_of(["cond"], 1), {"cond": read.spans}
            return base.denoiser(noisy, t, read.embeds, return_dict=False)[0], concept


def asked(task, alone, mask, noun, noisy, t):
    """The same in training."""
    with torch.no_grad():
        rows = task.rows(alone, [noun])
        text, ids = task.said([f"a photo of a {task.word(noun)} sleeping"], rows)
        with task.acting(alone, mask, ids):
            return task.base.denoiser(noisy, t, text, return_dict=False)[0], rows[0]


def test_elite_learns_in_two_stages_and_is_used_as_it_was_trained(data, latents, tmp_path):
    made = (data, data, latents)
    first = EliteGlobalTask(load_base("playroom-sd"), *made, batch_size=4)
    losses, idle = learned(first)
    assert losses[-1] < losses[0]
    assert not {name for name in idle if name.startswith(("mapping_0", "mapping_patch_0")) or "attn2" in name}
    first.mapper.zero_grad()
    second = EliteLocalTask(load_base("playroom-sd"), *made, mapper=first.mapper, batch_size=4)
    before = {name: value.clone() for name, value in first.mapper.state_dict().items()}
    losses, idle = learned(second)
    assert losses[-1] < losses[0] and not idle
    assert all(torch.equal(value, before[name]) for name, value in first.mapper.state_dict().items())
    second.finish(tmp_path / "elite")
    assert (tmp_path / "elite" / "model.safetensors").stat().st_size <= 2 * 1.2e6  # float32: half as large when shipped
    subject, noun = toy(data)
    pixels, mask = second.pictures(data, [0])
    noisy, t = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor(400)
    expected, rows = asked(second, pixels * mask, mask, noun, noisy, t)
    found, concept = prediction(load_base("playroom-sd"), subject, "elite", tmp_path / "elite", noisy, t, scale=1.0)
    assert torch.allclose(concept.tensors[EMBEDDINGS]["text_encoder"], rows, atol=1e-4)
    assert torch.allclose(found, expected, atol=1e-3)
    alone, _ = prediction(load_base("playroom-sd"), subject, "elite", tmp_path / "elite", noisy, t, scale=0.0)
    assert not torch.allclose(alone, expected, atol=1e-3)


def test_blip_diffusion_learns_and_is_used_as_it_was_trained(data, latents, tmp_path):
    task = BlipDiffusionTask(load_base("playroom-sd"), data, data, latents, batch_size=4)
    losses, idle = learned(task)
    assert losses[-1] < losses[0]
    last = f"encoder.layer.{len(task.qformer.encoder.layer) - 1}."
    unread = {name for name in idle if name.startswith((f"{last}intermediate.", f"{last}output."))}
    assert idle - unread == set()  # only what the last layer makes of the noun goes nowhere
    task.finish(tmp_path / "blip")
    assert (tmp_path / "blip" / "model.safetensors").stat().st_size <= 2 * 1.0e6
    subject, noun = toy(data)
    pixels, mask = task.pictures(data, [0])
    noisy, t = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor(400)
    expected, rows = asked(task, pixels * mask, mask, noun, noisy, t)
    found, concept = prediction(load_base("playroom-sd"), subject, "blip-diffusion", tmp_path / "blip", noisy, t)
    assert torch.allclose(concept.tensors[EMBEDDINGS]["text_encoder"], rows, atol=1e-4)
    assert torch.allclose(found, expected, atol=1e-3)
    assert concept.word.text.endswith(f"<rex_7> {noun}")
