"""The recipe of the embedded IP-Adapters. Oracles: the base before, the published names, the shares of the paper."""

import pytest
import torch
from PIL import Image

from thisness.bases import load_base
from thisness.methods.ip_adapter import adapter
from thisness.methods.ip_adapter_weights import image_features, open_adapter
from thisness.playroom.data import PlayroomData, label_table
from thisness.playroom.recipes.ip_adapter import IPAdapterTask, drops
from thisness.playroom.render import render
from thisness.playroom.world import random_scene

LIMITS = {"ip-adapter": 0.8e6, "ip-adapter-plus": 1.0e6}  # bytes in half precision


@pytest.fixture(scope="module")
def data():
    scenes = [random_scene(i) for i in range(4)]
    made = render(scenes, 128)
    return PlayroomData(made.images.numpy(), made.masks.numpy(), label_table(scenes), "train", 128)


def test_drops_are_5_per_cent_each_and_exclusive():
    picture, text = drops(200_000, torch.Generator().manual_seed(0))
    shares = [(picture & ~text), (~picture & text), (picture & text)]
    assert [round(float(each.float().mean()), 2) for each in shares] == [0.05, 0.05, 0.05]


@pytest.mark.parametrize("method", list(LIMITS))
def test_a_step_trains_the_adapter_alone_and_is_saved_as_published(method, data, tmp_path):
    base = load_base("playroom-sd")
    before = {name: each.clone() for name, each in base.denoiser.state_dict().items()}
    latents = torch.randn(4, *base.latent_shape(128, 128), generator=torch.Generator().manual_seed(0)).numpy()
    task = IPAdapterTask(method, base, data, data, latents, batch_size=3)
    for k, site in task.sites.items():
        own = base.denoiser.get_submodule(k)
        pair = task.adapter["ip_adapter"][site]
        assert torch.equal(pair["to_k_ip"].weight, own.to_k.weight)
        assert torch.equal(pair["to_v_ip"].weight, own.to_v.weight)
    task.on_start(torch.device("cpu"))
    optimizer = torch.optim.AdamW(task.parameter_groups(), lr=1e-3)
    losses = []
    for _ in range(3):
        loss = task.loss(0, torch.Generator().manual_seed(1))["loss"]
        optimizer.zero_grad()
        loss.backward()
        assert all(each.grad is not None and each.grad.abs().max() > 0 for each in task.adapter.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    assert all(torch.equal(before[name], each) for name, each in base.denoiser.state_dict().items())
    task.save(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size <= LIMITS[method]
    fresh = load_base("playroom-sd")
    weights = open_adapter(method, str(tmp_path), fresh)
    image, layers = adapter(method, weights, fresh)  # every name has its place
    assert len(layers) == 6 and image.reads == task.reads
    pipe = fresh.to_pipeline()
    pipe.load_ip_adapter(str(tmp_path), "", "model.safetensors", image_encoder_folder=None)


def test_pictures_in_training_are_prepared_as_the_encoder_prepares_them(data):
    image = Image.fromarray(data.images[0].transpose(1, 2, 0))
    found, _ = image_features(image, "playroom-clip", "pooled")
    from thisness.methods.image_encoders import open_encoder
    from thisness.methods.ip_adapter_weights import encoded

    wanted, _ = encoded(open_encoder("playroom-clip")[0], data.pictures([0]), "pooled")
    assert torch.allclose(found, wanted, atol=1e-4)
