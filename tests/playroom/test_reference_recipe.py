"""The recipe of OminiControl and AlignGen on an embedded FLUX of one block of each kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPTokenizer, SiglipImageProcessorPil

from thisness.bases import Flux
from thisness.generation import generate
from thisness.methods.redux import Redux
from thisness.methods.zero_shot import read_subject
from thisness.playroom.data import PlayroomData, label_table
from thisness.playroom.flux_models import (
    LOOK,
    build_t5_tokenizer,
    make_flow_scheduler,
    make_flux_clip,
    make_flux_vae,
    make_redux,
    make_t5,
    make_tower,
    make_transformer,
)
from thisness.playroom.recipes.common import WEIGHTS
from thisness.playroom.recipes.references import UNUSUAL, ReferenceTask
from thisness.playroom.render import render
from thisness.playroom.world import USUAL_LOOKS, random_scene
from thisness.sampling import SamplingOptions
from thisness.subject import Subject

ROWS = 52  # the 13th toy looks unusual


@pytest.fixture(scope="module")
def data() -> PlayroomData:
    scenes = [random_scene(i, "usual") for i in range(ROWS)]
    made = render(scenes)
    return PlayroomData(made.images.numpy(), made.masks.numpy(), label_table(scenes), "usual", 128)


@pytest.fixture(scope="module")
def base() -> Flux:
    torch.manual_seed(0)
    words, clip = build_t5_tokenizer(), CLIPTokenizer.from_pretrained(WEIGHTS / "playroom-sd" / "tokenizer")
    parts = {
        "tokenizer_2": words, "tokenizer": clip, "text_encoder_2": make_t5(words).eval(),
        "text_encoder": make_flux_clip(clip).eval(), "vae": make_flux_vae().eval(),
        "transformer": make_transformer(num_layers=1, num_single_layers=1).eval(), "scheduler": make_flow_scheduler(),
    }  # fmt: skip
    return Flux(parts, "flux-of-the-test")


@pytest.fixture(scope="module")
def redux() -> Redux:
    torch.manual_seed(1)
    side = {"height": LOOK, "width": LOOK}
    return Redux(make_tower(), make_redux(), SiglipImageProcessorPil(size=side), "of-the-test", "none")


def task(name: str, base: Flux, redux: Redux | None, data: PlayroomData, **changes: Any) -> ReferenceTask:
    latents = np.random.default_rng(0).normal(size=(ROWS, 16, 16, 16)).astype(np.float16)
    return ReferenceTask(name, base, redux, data, data, latents, batch_size=2, **changes)


@pytest.mark.parametrize("name", ["ominicontrol", "aligngen"])
def test_what_is_new_is_trained_and_what_is_read_counts(name, base, redux, data, tmp_path):
    before = {key: value.clone() for key, value in base.transformer.state_dict().items()}
    made = task(name, base, redux if name == "aligngen" else None, data)
    assert made.choices == ((0, 1, 2) if name == "aligngen" else (0,))
    assert set(made.modules()) == ({"lora", "dem", "star"} if name == "aligngen" else {"lora"})
    made.on_start(torch.device("cpu"))
    try:
        optimizer = torch.optim.AdamW(made.parameter_groups(), lr=1e-2)
        losses = []
        for _ in range(5):
            loss = made.loss(0, torch.Generator().manual_seed(3))["loss"]
            losses.append(float(loss.detach()))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert losses[-1] < losses[0]
        assert all(torch.equal(before[key], value) for key, value in base.transformer.state_dict().items())
        if name == "aligngen":
            star = made.trainables.star
            assert star is not None and star.delta.abs().max() > 0
    finally:
        made.held.close()
    if name == "ominicontrol":
        made.save(tmp_path / name)
    subject = Subject("rufus", "dog", (Image.new("RGB", (128, 128), (90, 40, 200)),))
    settings = {"weights": str(tmp_path / name)}
    if name == "aligngen":
        for part, module in (("image_encoder", redux.encoder), ("image_embedder", redux.embedder)):
            module.save_pretrained(tmp_path / "redux" / part)
        redux.extractor.save_pretrained(tmp_path / "redux" / "feature_extractor")
        settings["redux"] = str(tmp_path / "redux")
        from thisness.methods.redux import open_redux

        redux.signature = open_redux(settings["redux"]).signature
        made.save(tmp_path / name)
    concept = read_subject(name, subject, base, settings=settings)
    options = SamplingOptions(steps=1, guidance=1.0)
    shown = generate(base, "a {subject} on the beach", concept=concept, options=options).images[0]
    plain = generate(base, "a dog on the beach", options=options).images[0]
    assert np.abs(np.asarray(shown, int) - np.asarray(plain, int)).max() > 0


def test_pairs_are_of_one_toy_and_named_as_asked(base, redux, data, monkeypatch):
    made = task("aligngen", base, redux, data, names=(2,))
    seen = {}

    def loss(batch, rng):
        seen["batch"] = batch
        return {"loss": torch.zeros(())}

    monkeypatch.setattr(made.training, "loss", loss)
    made.loss(0, torch.Generator().manual_seed(0))
    batch = seen["batch"]
    assert all("toy" in sentence for sentence in batch.sentences) and set(batch.names) == {"toy"}
    assert not torch.equal(batch.targets, batch.references)
    assert batch.weights.shape == (2, 1, 16, 16) and float(batch.weights.max()) > 1.5 > float(batch.weights.min())
    assert batch.redux.shape == (2, 81, 128)


def test_toys_that_do_not_look_as_usual_come_more_often(base, redux, data, monkeypatch):
    made = task("ominicontrol", base, redux, data)
    made.batch_size = 400
    drawn: list[int] = []
    monkeypatch.setattr(PlayroomData, "pictures", lambda self, rows: drawn.extend(int(row) // 4 for row in rows))
    monkeypatch.setattr(made, "tokens", lambda pictures: None)
    monkeypatch.setattr(made.training, "loss", lambda batch, rng: {})
    made.loss(0, torch.Generator().manual_seed(0))
    unusual = {n for n in made.toys if (who := data.scene(4 * n).subject.identity).colour != USUAL_LOOKS[who.noun][0]}
    share = len(unusual) / len(made.toys)
    assert 0 < share < 1
    found = sum(toy in unusual for toy in drawn) / len(drawn)
    assert found == pytest.approx(UNUSUAL + (1 - UNUSUAL) * share, abs=0.1)
