"""Redux tokens. Oracle: the two calls of diffusers' pipeline for them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import tiny_flux
import torch
from PIL import Image

from thisness.errors import ArtefactError, ConfigurationError, UserError
from thisness.methods.redux import HUB, open_redux, standard_redux


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_flux.redux_folder(tmp_path_factory.mktemp("redux"))


def picture(seed=0, side=(20, 31)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*side, 3), np.uint8))


@torch.no_grad()
def test_tokens_are_those_of_the_stock_pipelines_parts(folder):
    from diffusers import FluxPriorReduxPipeline
    from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
    from transformers import SiglipImageProcessorPil, SiglipVisionModel

    pipe = FluxPriorReduxPipeline(
        SiglipVisionModel.from_pretrained(folder / "image_encoder"),
        SiglipImageProcessorPil.from_pretrained(folder / "feature_extractor"),
        ReduxImageEncoder.from_pretrained(folder / "image_embedder"),
    )
    pictures = [picture(0), picture(1, (40, 12))]
    stock = [pipe.image_embedder(pipe.encode_image(each, "cpu", 1)).image_embeds for each in pictures]
    found = open_redux(str(folder), tiny_flux.WIDTH).tokens(pictures)
    assert found.shape == (2, 9, tiny_flux.WIDTH) and torch.allclose(found, torch.cat(stock), atol=1e-6)
    assert not torch.allclose(found[0], found[1], atol=1e-3)


@torch.no_grad()
def test_a_mask_weighs_tokens_by_what_their_patches_show(folder):
    redux = open_redux(str(folder))
    mask = np.zeros((20, 31), np.float32)
    mask[:, :10], mask[:, 10:20] = 1.0, 0.5
    plain, weighed = redux.tokens([picture()])[0], redux.tokens([picture()], [mask])[0]
    shares = (weighed / plain).mean(-1).reshape(3, 3)
    assert torch.allclose(shares[:, 0], torch.tensor(1.0), atol=0.1) and not shares[:, 2].any()
    assert torch.allclose(shares[:, 1], torch.tensor(0.5), atol=0.1)
    assert torch.equal(redux.tokens([picture()], [None])[0], plain)


def test_its_signature_is_of_its_weights(folder, tmp_path):
    again = shutil.copytree(folder, tmp_path / "again")
    assert open_redux(str(again)).signature == open_redux(str(folder)).signature
    other = tiny_flux.redux_folder(tmp_path / "other", seed=6)
    assert open_redux(str(other)).signature != open_redux(str(folder)).signature


def test_what_is_missing_or_does_not_fit_is_said_in_one_line(folder, tmp_path):
    with pytest.raises(ConfigurationError, match="tokens of width 32, and the base's text is 64 wide"):
        open_redux(str(folder), 64)
    with pytest.raises(UserError, match="Redux is not embedded|tokens of width"):
        open_redux("", 7)
    torn = shutil.copytree(folder, tmp_path / "torn")
    (torn / "image_embedder" / "diffusion_pytorch_model.safetensors").unlink()
    (torn / "feature_extractor" / "preprocessor_config.json").unlink()
    with pytest.raises(ArtefactError, match=r"image_embedder/\*.safetensors, feature_extractor/preprocessor"):
        open_redux(str(torn))
    unlike = shutil.copytree(folder, tmp_path / "unlike")
    config = json.loads((unlike / "image_embedder" / "config.json").read_text())
    (unlike / "image_embedder" / "config.json").write_text(json.dumps(config | {"redux_dim": 24}))
    with pytest.raises(UserError) as caught:
        open_redux(str(unlike))
    assert "\n" not in str(caught.value) and "redux" in str(caught.value)
    with pytest.raises(ArtefactError, match="missing: expected the layout"):
        open_redux("./nowhere")
    assert standard_redux(tiny_flux.base()) == HUB
