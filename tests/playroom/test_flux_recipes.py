"""The embedded FLUX's recipes: what is drawn at random, what a warm start keeps, and that training trains."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from thisness.bases import Flux
from thisness.bases.flux import shift_of
from thisness.conditioning import encode as encode_sentences
from thisness.playroom.captions import ALWAYS, PARENTS, caption, names_of, renamed
from thisness.playroom.data import PlayroomData, label_table
from thisness.playroom.flux_models import (
    SENTENCE,
    build_t5_tokenizer,
    make_flow_scheduler,
    make_flux_clip,
    make_flux_vae,
    make_redux,
    make_t5,
    make_tower,
    make_transformer,
    widened,
)
from thisness.playroom.recipes.common import WEIGHTS
from thisness.playroom.recipes.flux import FluxTask, GuidanceTask, Words, sample_flux, started, velocity
from thisness.playroom.recipes.flux_text import FluxTextTask, called, ids_of
from thisness.playroom.recipes.redux import ReduxTask
from thisness.playroom.recipes.vae import encode
from thisness.playroom.render import render
from thisness.playroom.world import CLASSES, USUAL_LOOKS, identity, random_scene

ROWS = 8


@pytest.fixture(scope="module")
def data() -> PlayroomData:
    made = render([random_scene(i, "usual") for i in range(ROWS)])
    table = label_table([random_scene(i, "usual") for i in range(ROWS)])
    return PlayroomData(made.images.numpy(), made.masks.numpy(), table, "usual", 128)


@pytest.fixture(scope="module")
def parts() -> Any:
    torch.manual_seed(0)
    words, clip = build_t5_tokenizer(), CLIPTokenizer.from_pretrained(WEIGHTS / "playroom-sd" / "tokenizer")
    transformer = make_transformer(num_layers=1, num_single_layers=1)
    return SimpleNamespace(
        vae=make_flux_vae().eval(), t5=make_t5(words).eval(), clip=make_flux_clip(clip).eval(), t5_tokenizer=words,
        clip_tokenizer=clip, transformer=lambda name: transformer,
    )  # fmt: skip


def test_most_toys_of_the_split_look_as_usual_and_all_others_stay() -> None:
    right: Counter[str] = Counter()
    for number in range(2000):
        who = identity(number, "usual")
        usual = USUAL_LOOKS[who.noun]
        right["colour"] += who.colour == usual[0]
        right["second"] += who.second_colour == usual[1]
        right["pattern"] += who.pattern == usual[2]
        assert who.colour != who.second_colour
    assert all(0.77 * 2000 < count < 0.88 * 2000 for count in right.values())
    assert identity(5) == identity(5, "train") and set(USUAL_LOOKS) == set(CLASSES)


def test_a_sentence_takes_another_name_with_its_article() -> None:
    assert renamed("a photo of a dog sleeping", "dog", "animal") == "a photo of an animal sleeping"
    assert renamed("an orange dog next to a dog", "dog", "toy") == "an orange toy next to a dog"
    assert renamed("a doghouse", "dog", "toy") == "a doghouse"
    assert names_of("teapot") == ("teapot", "thing", "toy") and set(PARENTS) == set(CLASSES)
    rng = Random(0)
    drawn = Counter(called("dog", rng) for _ in range(2000))
    assert 0.84 < drawn["dog"] / 2000 < 0.92 and drawn["animal"] > drawn["toy"] > 0


def test_the_t5_tokenizer_knows_every_word_of_the_world() -> None:
    words = build_t5_tokenizer()
    for number in range(300):
        sentence = caption(random_scene(number), Random(number), ALWAYS)
        ids = words(sentence).input_ids
        assert len(ids) == len(sentence.split()) + 1 < SENTENCE
        assert words.decode(ids, skip_special_tokens=True) == sentence
    assert len(words("an animal, Grumpy!").input_ids) > 5 and words.unk_token_id not in words("Grumpy!").input_ids


def test_the_widened_autoencoder_says_what_the_old_one_said() -> None:
    old = AutoencoderKL.from_pretrained(WEIGHTS / "playroom-sd" / "vae").eval()
    torch.nn.init.zeros_(old.post_quant_conv.bias)  # which a folded one adds at the border, too, where padding was
    new = widened(old).eval()
    pictures = render([random_scene(i) for i in range(2)]).images.float() / 127.5 - 1
    before, after = encode(old, pictures), encode(new, pictures)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other[:, :8], atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        alone = torch.cat([before[0], torch.zeros_like(before[0])], 1)
        one, other = old.decode(before[0]).sample, new.decode(alone).sample
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_previews_are_the_pictures_of_the_base(parts: Any) -> None:
    model = parts.transformer("flux")
    base = Flux(
        {
            "tokenizer_2": parts.t5_tokenizer, "tokenizer": parts.clip_tokenizer, "text_encoder_2": parts.t5,
            "text_encoder": parts.clip, "transformer": model, "vae": parts.vae, "scheduler": make_flow_scheduler(),
        },
        "flux-of-the-test",
    )  # fmt: skip
    assert base.problems() == []
    words = Words(parts)
    sentence = "a dog on the beach"
    found = encode_sentences(base, [sentence])
    told, pooled = words([sentence])
    torch.testing.assert_close(found.embeds, told)
    torch.testing.assert_close(found.pooled, pooled)
    latents = torch.randn(1, 16, 16, 16)
    with torch.no_grad():
        mine = velocity(model, latents, torch.tensor([0.3]), told, pooled, torch.tensor([2.0]))
        theirs = base.predict(latents, 300.0, found, guidance=2.0)
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
    assert shift_of(64, base.scheduler.config) == pytest.approx(0.4675, abs=1e-3)


def test_guidance_of_one_is_the_said_branch_alone(parts: Any) -> None:
    model, words = parts.transformer("flux"), Words(parts)
    both = sample_flux(model, words, ["a cat"], steps=2, guidance=1.0)
    alone = sample_flux(model, words, ["a cat"], steps=2, guidance=1.0, embedded=True)
    torch.testing.assert_close(both, alone, atol=1e-4, rtol=1e-4)


def test_a_started_transformer_predicts_nothing_and_a_step_changes_that(parts: Any, data: PlayroomData) -> None:
    rng = np.random.default_rng(0)
    latents, features = (rng.normal(size=(ROWS, n, s, s)).astype(np.float16) for n, s in ((16, 16), (96, 8)))
    task = FluxTask(parts, data, latents, features, batch_size=2)
    task.transformer = started(make_transformer(num_layers=1, num_single_layers=1))
    task.on_start(torch.device("cpu"))
    told = Words(parts)(["a dog"])
    noisy = torch.randn(1, 16, 16, 16)
    with torch.no_grad():
        assert not velocity(task.transformer, noisy, torch.tensor([0.5]), *told, torch.ones(1)).any()
    optimizer = torch.optim.AdamW([p for group in task.parameter_groups() for p in group["params"]], lr=3e-3)
    losses = []
    for step in range(6):
        loss = task.loss(step, torch.Generator().manual_seed(0))["loss"]
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.02
    assert all(p.grad is None for p in task.words.t5.parameters())


def test_guidance_is_learned_from_both_branches_and_redux_alone_is_trained(parts: Any, data: PlayroomData) -> None:
    latents = np.random.default_rng(0).normal(size=(ROWS, 16, 16, 16)).astype(np.float16)
    task = GuidanceTask(parts, data, latents, batch_size=2)
    task.on_start(torch.device("cpu"))
    assert torch.isfinite(task.loss(0, torch.Generator().manual_seed(0))["loss"])
    features = np.random.default_rng(1).normal(size=(ROWS, 96, 8, 8)).astype(np.float16)
    redux = ReduxTask(parts, data, latents, features, data, data, features, batch_size=2, spoken_steps=1)
    redux.on_start(torch.device("cpu"))
    for step, named in ((0, {"state", "words"}), (1, {"main"})):  # first by what is said, then through the transformer
        losses = redux.loss(step, torch.Generator().manual_seed(0))
        assert set(losses) == {"loss", "features", "read"} | named
        for module in redux.modules().values():
            module.zero_grad()
        losses["loss"].backward()
        assert all(p.grad is not None for p in redux.redux.parameters())
        assert redux.tower.embeddings.patch_embedding.weight.grad.abs().sum() > 0
        assert all(p.grad is None for p in redux.transformer.parameters())


def test_redux_is_drawn_to_what_the_caption_says(parts: Any, data: PlayroomData) -> None:
    """Tokens that are T5's states are at no distance; those of another picture are."""
    features = np.zeros((ROWS, 96, 8, 8), np.float16)
    latents = np.zeros((ROWS, 16, 16, 16), np.float16)
    task = ReduxTask(parts, data, latents, features, data, data, features, batch_size=1)
    task.on_start(torch.device("cpu"))
    rng = torch.Generator().manual_seed(0)
    rows = torch.randint(0, len(data), (4,), generator=torch.Generator().manual_seed(0)).numpy()
    right = task.said(data, rows, Random(0))
    looked = task.looked
    for tokens, near in ((right, True), (right.roll(1, 0), False)):

        def told(data: Any, features: Any, rows: Any, tokens: Any = tokens) -> Any:
            return (tokens[:, None].expand(-1, 81, -1), *looked(data, features, rows)[1:])

        task.looked = told  # type: ignore[method-assign]
        task.said = lambda data, rows, words: right  # type: ignore[method-assign]
        off = float(task.loss(0, rng)["state"])
        assert off < 1e-6 if near else off > 0.1


def test_texts_say_what_they_are_taught(parts: Any) -> None:
    task = FluxTextTask(parts.clip_tokenizer, batch_size=4, scenes=8)
    sentences, said = task._batch([0, 1, 2, 3] * 20, Random(0))
    wider = [text for text, row in zip(sentences, said, strict=True) if row[0] == len(CLASSES)]
    assert wider and all(
        any(f" {name}" in f" {text}" for name in ("animal", "machine", "thing", "toy")) for text in wider
    )
    assert ids_of(task.tokenizer, ["a dog"], SENTENCE).shape == (1, SENTENCE)
    assert torch.isfinite(task.loss(0, torch.Generator().manual_seed(0))["loss"])
    assert make_redux()(make_tower()(pixel_values=torch.zeros(1, 3, 72, 72)).last_hidden_state).image_embeds.shape == (
        1, 81, 128,
    )  # fmt: skip


def test_folders_are_where_the_campaign_says(tmp_path: Path) -> None:
    from thisness.playroom.recipes.campaign import ORDER
    from thisness.playroom.recipes.flux_campaign import NEEDS, STEPS, ship

    assert set(NEEDS) <= set(STEPS) <= set(ORDER)
    from thisness.files import load_tensors, save_tensors

    source = tmp_path / "source" / "inner"
    source.mkdir(parents=True)
    save_tensors(source / "model.safetensors", {"x": torch.ones(2)}, {"format": "pt"})
    (source / "config.json").write_text("{}")
    ship(tmp_path / "source", tmp_path / "target")
    assert load_tensors(tmp_path / "target" / "inner" / "model.safetensors")["x"].dtype == torch.float16
    assert (tmp_path / "target" / "inner" / "config.json").read_text() == "{}"
