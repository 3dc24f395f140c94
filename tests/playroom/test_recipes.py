"""The recipes: their mathematics, their caches, and that each task learns and resumes."""

from __future__ import annotations

from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from thisness.errors import UserError
from thisness.files import load_tensors, save_tensors
from thisness.playroom.captions import ALWAYS, ATTRIBUTES, UNKNOWN, caption
from thisness.playroom.data import PlayroomData, label_table
from thisness.playroom.recipes import campaign
from thisness.playroom.recipes.common import Workplace, picture_grid
from thisness.playroom.recipes.reader import accuracy, unambiguous
from thisness.playroom.recipes.text import build_tokenizer, estranged, tokenize
from thisness.playroom.recipes.unet import sample_timesteps
from thisness.playroom.recipes.vae import psnr, reconstruction_loss
from thisness.playroom.render import render
from thisness.playroom.world import random_scene, rng_of


@pytest.fixture(scope="module")
def data() -> PlayroomData:
    scenes = [random_scene(i) for i in range(16)]
    made = render(scenes, 128)
    return PlayroomData(made.images.numpy(), made.masks.numpy(), label_table(scenes), "train", 128)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_psnr_is_ten_log_ten_of_the_mean_squared_error() -> None:
    x = torch.zeros(2, 3, 4, 4)
    y = x.clone()
    y[0] += 0.2  # range 2: mse = 0.01 of it squared
    y[1] += 0.02
    assert float(psnr(y, x)) == pytest.approx((20 + 40) / 2, abs=1e-4)
    mask = torch.zeros(2, 1, 4, 4)
    mask[:, :, :2] = 1
    y[:, :, 2:] = 1.0  # what is outside the mask does not count
    assert float(psnr(y, x, mask)) == pytest.approx(30, abs=1e-4)


def test_reconstruction_loss_is_zero_only_for_the_same_picture_and_weighs() -> None:
    x, weight = torch.rand(1, 3, 8, 8), torch.ones(1, 1, 8, 8)
    assert float(reconstruction_loss(x, x, weight)) == 0
    flat = reconstruction_loss(x + 0.5, x, weight)  # a constant error has no gradient
    assert float(flat) == pytest.approx(0.75, abs=1e-5)
    assert float(reconstruction_loss(x + 0.5, x, 3 * weight)) == pytest.approx(2.25, abs=1e-5)


def test_timesteps_lean_to_the_noisy_side_and_cover_everything() -> None:
    t = sample_timesteps(20000, torch.Generator().manual_seed(0))
    assert t.min() >= 0 and t.max() <= 999
    uniform = 0.1
    middle = 1000 * torch.sigmoid(torch.tensor(0.3))
    assert abs(float(t.float().median()) - float(middle)) < 15
    assert float((t < 50).float().mean()) > uniform * 0.05 * 0.8


def test_tokenizer_keeps_every_caption_whole_and_any_text_legal(tokenizer) -> None:
    sentences = [caption(random_scene(i, "held-out"), rng_of("t", i), ALWAYS) for i in range(500)]
    ids = tokenize(tokenizer, sentences)
    assert ids.shape == (500, 48) and (ids[:, -1] == tokenizer.eos_token_id).all()
    lengths = (ids != tokenizer.eos_token_id).sum(1) + 1
    assert lengths.max() <= 36  # room for a dozen more
    words = sentences[0].split()
    assert [t.removesuffix("</w>") for t in tokenizer.tokenize(sentences[0])] == words  # one token a word
    strange = tokenizer("Ünïcode, <rex> 42%!").input_ids
    assert tokenizer.decode(strange, skip_special_tokens=True).replace(" ", "") == "ünïcode,<rex>42%!"


def test_strange_words_come_now_and_then_and_take_nothing_away() -> None:
    rng = Random(0)
    out = [estranged("a red dog", rng) for _ in range(2000)]
    changed = [s for s in out if s != "a red dog"]
    assert 0.11 < len(changed) / 2000 < 0.19
    assert all(
        [w for w in s.split() if w in ("a", "red", "dog")][:3] == ["a", "red", "dog"] or "a" in s for s in changed
    )
    assert all(len(s.split()) == 4 for s in changed)


def test_pictures_of_two_toys_are_not_asked_which_is_the_subject(data: PlayroomData) -> None:
    scenes = [random_scene(1, companion=1.0), random_scene(1, companion=0.0)]
    labels = unambiguous(torch.from_numpy(label_table(scenes)).long())
    names = list(ATTRIBUTES)
    assert labels[0, names.index("class")] == UNKNOWN and labels[0, names.index("background")] != UNKNOWN
    assert torch.equal(labels[1], torch.from_numpy(label_table(scenes)).long()[1])


def test_accuracy_counts_only_what_a_picture_has() -> None:
    names = list(ATTRIBUTES)
    labels = torch.full((4, len(names)), UNKNOWN)
    labels[:, names.index("class")] = torch.tensor([0, 1, 2, 3])
    labels[0, names.index("object colour")] = 5

    def reader(images):  # says class 0, colour 5
        out = {n: torch.zeros(len(images), len(v)) for n, v in ATTRIBUTES.items()}
        out["object colour"][:, 5] = 1
        return out

    said = accuracy(reader, torch.zeros(4, 3, 8, 8), labels)  # type: ignore[arg-type]
    assert said["class"] == 0.25 and said["object colour"] == 1.0 and np.isnan(said["pose"])


def test_readers_of_both_kinds_read_every_attribute_and_survive_half_precision(tmp_path: Path) -> None:
    from thisness.playroom.models import Reader

    images = torch.rand(2, 3, 128, 128) * 2 - 1
    kinds = {}
    for kind in ("teacher", "judge"):
        torch.manual_seed(0)
        reader = Reader(kind).eval()
        logits = reader(images)
        assert {n: v.shape[1] for n, v in logits.items()} == {n: len(v) for n, v in ATTRIBUTES.items()}
        reader.save(tmp_path / kind)
        again = Reader.load(tmp_path / kind)(images)
        assert max(float((again[n] - logits[n]).detach().abs().max()) for n in logits) < 0.02
        kinds[kind] = type(reader.backbone).__name__
    assert kinds["teacher"] != kinds["judge"]  # the judge must be another network than the teacher


def test_vae_latents_do_not_depend_on_batching_and_fit_the_unet(data: PlayroomData) -> None:
    from thisness.playroom.models import make_unet, make_vae
    from thisness.playroom.recipes.vae import encode

    torch.manual_seed(0)
    vae = make_vae().eval()
    images = data.pictures(range(3))
    mean, std = encode(vae, images)
    unet = make_unet()
    assert mean.shape[1:] == (unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    assert (std > 0).all()
    alone, _ = encode(vae, images[1:2])
    assert torch.allclose(alone[0], mean[1], atol=0.05)


def test_unet_task_learns_and_its_heads_see_the_taps(data: PlayroomData, tokenizer) -> None:
    """On one batch the loss falls; every auxiliary head gets a gradient; the text encoder none."""
    from thisness.playroom.models import make_text_encoder, make_vae
    from thisness.playroom.recipes.unet import UNetTask

    torch.manual_seed(0)
    parts = SimpleNamespace(vae=make_vae(), text_encoder=make_text_encoder(tokenizer), tokenizer=tokenizer)
    rows = np.random.default_rng(0)
    task = UNetTask(
        parts, data, rows.standard_normal((16, 8, 16, 16)), rows.standard_normal((16, 96, 8, 8)), batch_size=4
    )
    task.on_start(torch.device("cpu"))
    optimizer = torch.optim.AdamW([p for m in task.modules().values() for p in m.parameters()], 3e-4)
    losses = []
    for step in range(6):
        out = task.loss(step, torch.Generator().manual_seed(1))
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        losses.append(float(out["loss"].detach()))
    assert losses[-1] < 0.97 * losses[0]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in task.guides.parameters())
    assert all(p.grad is None for p in parts.text_encoder.parameters())


@pytest.mark.parametrize("kind", ["clip", "identity"])
def test_the_rulers_tasks_learn_and_every_loss_reaches_its_part(data: PlayroomData, tokenizer, kind: str) -> None:
    """On one batch the loss falls; every part gets a gradient, those thrown away too; the text encoder none."""
    from thisness.playroom.models import Reader, make_text_encoder
    from thisness.playroom.recipes.clip import ClipTask
    from thisness.playroom.recipes.identity import IdentityTask

    torch.manual_seed(0)
    parts = SimpleNamespace(text_encoder=make_text_encoder(tokenizer), tokenizer=tokenizer)
    features = np.random.default_rng(0).standard_normal((16, 96, 8, 8))
    task = (
        ClipTask(parts, data, data, features, Reader("teacher"), batch_size=4)
        if kind == "clip"
        else IdentityTask(data, data, features, Reader("teacher"), batch_size=4)
    )
    task.on_start(torch.device("cpu"))
    optimizer = torch.optim.AdamW([p for m in task.modules().values() for p in m.parameters()], 1e-3)
    losses = []
    for step in range(6):
        out = task.loss(step, torch.Generator().manual_seed(3))
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        losses.append(float(out["loss"].detach()))
    assert losses[-1] < 0.9 * losses[0]
    untouched = {n for m in task.modules().values() for n, p in m.named_parameters() if p.grad is None}
    # of the final norm over all tokens and of the pooler only what the class token needs is used
    assert not {n for n in untouched if "layernorm" not in n}, untouched
    assert all(p.grad is None for p in parts.text_encoder.parameters())


def test_an_identity_batch_holds_two_scenes_of_each_toy_and_few_classes(data: PlayroomData) -> None:
    from thisness.playroom.models import Reader
    from thisness.playroom.recipes.identity import CLASSES_IN_BATCH, IdentityTask

    task = IdentityTask(data, data, np.zeros((16, 96, 8, 8)), Reader("teacher"), batch_size=4)
    rows, toys = task._rows(torch.Generator().manual_seed(0))
    assert (rows // 4 == toys.numpy()).all() and len(set(rows)) == len(rows)
    assert (torch.bincount(toys)[toys] == 2).all()
    assert len({int(data.labels[row, 0]) for row in rows}) <= CLASSES_IN_BATCH


def test_campaign_says_what_must_come_first_and_what_there_is(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    with pytest.raises(UserError, match="vae and text and teacher first"):
        campaign.run("unet", place)
    with pytest.raises(UserError, match="did you mean 'judge'"):
        campaign.run("jugde", place)


def test_assembling_says_what_it_changes_and_leaves_the_rest(tmp_path: Path) -> None:
    place, target = Workplace(tmp_path / "train"), tmp_path / "weights"

    def trained(name: str, value: float) -> None:
        place.built(name).mkdir(parents=True, exist_ok=True)
        save_tensors(place.built(name) / "model.safetensors", {"x": torch.full((2,), value)}, {"format": "pt"})
        (place.built(name) / "config.json").write_text("{}")

    with pytest.raises(UserError, match="nothing trained in .*train all"):
        campaign.assemble(place, target)
    trained("clip", 1.0)
    trained("finder", 1.0)
    assert campaign.assemble(place, target) == {"clip": "new", "finder": "new"}
    trained("clip", 2.0)
    trained("finder", 2.0)
    said: list[str] = []
    assert campaign.run("assemble", place, target=target, only=["clip"], say=said.append)
    assert said == ["clip: changed"]
    kept = {name: float(load_tensors(target / name / "model.safetensors")["x"][0]) for name in ("clip", "finder")}
    assert kept == {"clip": 2.0, "finder": 1.0}
    assert campaign.assemble(place, target) == {"clip": "as before", "finder": "changed"}
    with pytest.raises(UserError, match="elite not trained"):
        campaign.assemble(place, target, ["clip", "elite"])
    with pytest.raises(UserError, match="no weights are called 'clop'.*did you mean 'clip'"):
        campaign.assemble(place, target, ["clop"])


def test_adopted_weights_are_where_the_next_training_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`adopt`, then `train unet`: the task begins with the shipped UNet, under a name of its own."""
    from diffusers import UNet2DConditionModel

    from thisness.playroom.recipes.common import WEIGHTS

    place = Workplace(tmp_path)
    campaign.run("adopt", place)
    began = []
    monkeypatch.setattr(
        campaign, "encoded", lambda kind, place, model: np.zeros((4, *campaign.SHAPES[kind]), np.float16)
    )
    monkeypatch.setattr(
        Workplace, "train_data", lambda self: SimpleNamespace(labels=np.zeros((4, len(ATTRIBUTES)), np.int8))
    )
    monkeypatch.setattr(campaign, "run_task", lambda task, *rest: began.append(task) or False)
    assert campaign.train_unet(place) is False
    shipped = UNet2DConditionModel.from_pretrained(WEIGHTS / "playroom-sd" / "unet").state_dict()
    assert began[0].name == "unet-more"
    assert all(torch.equal(tensor, shipped[name]) for name, tensor in began[0].unet.state_dict().items())


def test_grid_places_pictures_row_by_row(tmp_path: Path) -> None:
    from PIL import Image

    images = torch.stack([torch.full((3, 4, 4), v) for v in (-1.0, 0.0, 1.0)])
    picture_grid(images, tmp_path / "g.png", 2)
    with Image.open(tmp_path / "g.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (12, 12, 3)
    assert pixels[1, 1, 0] == 0 and pixels[1, 7, 0] == 128 and pixels[7, 1, 0] == 255
