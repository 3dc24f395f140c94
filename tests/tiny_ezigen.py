"""A tiny adapter of EZIGen with random weights, for tests."""

import torch

from thisness.files import save_tensors, write_json
from thisness.methods.ezigen_adapter import EZIGenAdapter
from thisness.methods.zero_shot import read_subject


def random_adapter(base, residual="plain", gate=0.7):
    adapter = EZIGenAdapter.of(base.denoiser, residual)
    draws = torch.Generator().manual_seed(5)
    for site in adapter.sites:
        site.feature_scale.data += 0.2 * torch.randn((), generator=draws)
        site.to_k.weight.data += 0.1 * torch.randn(site.to_k.weight.shape, generator=draws)
        if residual == "plain":
            site.gate.data.fill_(gate)
    return adapter.eval().requires_grad_(False)


def write_weights(folder, base, adapter, **config):
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / "model.safetensors", adapter.state_dict())
    told = {"method": "ezigen", "base": base.signature, "base_name": base.name, "prompt": "a photo of a {noun}"}
    write_json(folder / "config.json", {**told, **adapter.sizes, **config})
    return str(folder)


def read(one, base, weights, **settings):
    given = {"weights": weights, "share": 0.4, "min_loops": 2, "max_loops": 2, **settings}
    return read_subject("ezigen", one, base, preset="default", settings=given)
