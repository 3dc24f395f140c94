"""Oracles: the matrices multiplied out into the weights; the model before; diffusers' own names of attributes."""

from __future__ import annotations

import copy

import pytest
import torch

import tiny
from thisness.adapters.lora import attached_lora, inserted_lora, learned
from thisness.errors import ArtefactError, ConfigurationError

SITE = "down_blocks.0.attentions.0.transformer_blocks.0"
RANKS = {f"{SITE}.attn1.to_q": 2, f"{SITE}.attn2.to_k": 3, f"{SITE}.attn2.to_out.0": 1, "conv_in": 2}


@pytest.fixture(scope="module")
def model():
    return tiny.unet().requires_grad_(False)


def weights(seed: int, ranks=RANKS) -> dict[str, torch.Tensor]:
    """Random weights for some modules of the tiny UNet."""
    unet, generator, found = tiny.unet(), torch.Generator().manual_seed(seed), {}
    for name, rank in ranks.items():
        shape = unet.get_submodule(name).weight.shape
        window = shape[2:]
        found[f"{name}.lora_A.weight"] = torch.randn(rank, shape[1], *window, generator=generator)
        found[f"{name}.lora_B.weight"] = torch.randn(shape[0], rank, *(1 for _ in window), generator=generator)
    return found


def output(model) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    latents, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 16, generator=generator)
    with torch.no_grad():
        return model(latents, 10, text).sample


def state(model) -> tuple:
    """All that must be as before: attributes, modules by identity, parameters by identity, flags, modes."""
    return (
        set(model.__dict__),
        [(name, id(module), module.training) for name, module in model.named_modules()],
        [(name, id(p), p.requires_grad) for name, p in model.named_parameters()],
    )


def test_equals_the_weights_multiplied_out(model):
    tensors, merged = weights(0), copy.deepcopy(model)
    for name in RANKS:
        a, b = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
        merged.get_submodule(name).weight.data += (b.flatten(1) @ a.flatten(1)).view(-1, *a.shape[1:]) * 0.5
    with attached_lora(model, tensors, "rufus", scale=0.5):
        found = output(model)
    torch.testing.assert_close(found, output(merged), rtol=0, atol=2e-5)
    assert (found - output(model)).abs().max() > 0.1


def test_untrained_changes_no_bit_and_all_is_as_before(model):
    before, pixels, random = state(model), output(model), torch.get_rng_state()
    with pytest.raises(RuntimeError, match="on purpose"), inserted_lora(model, RANKS, "rufus") as layers:
        assert torch.equal(output(model), pixels)
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
        assert len(trained) == 2 * len(RANKS) and all("lora_" in name for name in trained)
        assert all(layer.lora_A["rufus"].weight.dtype == torch.float32 for layer in layers.values())
        raise RuntimeError("on purpose")
    assert state(model) == before
    assert torch.equal(output(model), pixels)
    assert torch.equal(torch.get_rng_state(), random)


def test_two_adapters_add_up_in_any_nesting(model):
    before, plain = state(model), output(model)
    overlapping = {f"{SITE}.attn1.to_q": 3, "time_embedding.linear_1": 2}
    with attached_lora(model, weights(0), "rufus"):
        one, inner = output(model), state(model)
        with attached_lora(model, weights(1, overlapping), "mug"):
            both = output(model)
        assert state(model)[0] == inner[0] and torch.equal(output(model), one)
    assert not torch.equal(one, both)
    merged = copy.deepcopy(model)
    for tensors in (weights(0), weights(1, overlapping)):
        for name in {key.rsplit(".lora_")[0] for key in tensors}:
            a, b = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
            merged.get_submodule(name).weight.data += (b.flatten(1) @ a.flatten(1)).view(-1, *a.shape[1:])
    torch.testing.assert_close(both, output(merged), rtol=0, atol=5e-5)
    with attached_lora(model, weights(1, overlapping), "mug"), attached_lora(model, weights(0), "rufus"):
        torch.testing.assert_close(output(model), both, rtol=0, atol=1e-5)
    assert state(model) == before and torch.equal(output(model), plain)


def test_same_name_twice_is_refused(model):
    with (
        attached_lora(model, weights(0), "rufus"),
        pytest.raises(ConfigurationError, match="'rufus' is attached already"),
    ):
        attached_lora(model, weights(0), "rufus").__enter__()


def test_misfits_are_listed(model):
    before = state(model)
    with pytest.raises(ArtefactError, match="none of the 4 modules"):
        attached_lora(model, {f"elsewhere.{k}": v for k, v in weights(0).items()}, "rufus").__enter__()
    partly = weights(0) | {"nowhere.lora_A.weight": torch.ones(1, 2), "nowhere.lora_B.weight": torch.ones(2, 1)}
    with pytest.raises(ArtefactError, match="no such modules: nowhere"):
        attached_lora(model, partly, "rufus").__enter__()
    wrong = weights(0) | {f"{SITE}.attn1.to_q.lora_A.weight": torch.ones(2, 5)}
    with pytest.raises(ArtefactError, match=r"attn1.to_q is \(2, 5\): expected \(2, 8\)"):
        attached_lora(model, wrong, "rufus").__enter__()
    half = {k: v for k, v in weights(0).items() if k != "conv_in.lora_B.weight"}
    with pytest.raises(ArtefactError, match="only one of A and B for conv_in"):
        attached_lora(model, half, "rufus").__enter__()
    with pytest.raises(ArtefactError, match="no weights"):
        attached_lora(model, {}, "rufus").__enter__()
    assert state(model) == before


def test_scale_is_multiplied_into_what_is_saved(model):
    with inserted_lora(model, RANKS, "rufus", scale=0.5) as layers:
        for number, layer in enumerate(layers.values()):
            torch.nn.init.normal_(layer.lora_B["rufus"].weight, generator=torch.Generator().manual_seed(number))
        while_learning = output(model)
        tensors = {k.removeprefix("unet."): v for k, v in learned(layers, "rufus", "unet", scale=0.5).items()}
    with attached_lora(model, tensors, "rufus"):
        torch.testing.assert_close(output(model), while_learning, rtol=0, atol=1e-5)
