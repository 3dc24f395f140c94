"""The training of IP-Adapters. Oracles: the loss written plainly, row by row; the method with the folder that was
written; the base before."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from things import draw_things

import tiny
from thisness.conditioning import encode
from thisness.files import load_tensors, read_json
from thisness.methods import Stopped
from thisness.methods.image_encoders import open_encoder
from thisness.methods.ip_adapter_training import Batch, IPAdapterTraining, drops, make_adapter, without
from thisness.methods.pair_training import train_adapter
from thisness.methods.pairs import FolderPairs
from thisness.methods.zero_shot import read_subject
from thisness.subject import Subject

FEW = {"steps": 3, "batch_size": 2, "warmup": 0, "preview_every": 0, "tracker": "off", "lr": 0.01}


@pytest.fixture(scope="module")
def base():
    made = tiny.base()
    made.denoiser.requires_grad_(False)
    return made


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_loss_is_the_plain_one(base):
    """Eq. 5 by hooks on each cross-attention, a row at a time."""
    torch.manual_seed(0)
    adapter = make_adapter("ip-adapter", base, open_encoder(tiny.clip_folder())[0])
    training = IPAdapterTraining(base, adapter, subject_weight=1.5)
    sentences, mask = ["a dog", "", "a cat on the beach"], (noise(3, 1, 16, 16, seed=4) > 0).float()
    given = Batch(noise(3, 4, 8, 8), sentences, noise(3, 12, seed=1), mask)
    with torch.no_grad():
        found = training.loss(given, torch.Generator().manual_seed(2))["loss"]
        rng = torch.Generator().manual_seed(2)
        eps, t = torch.randn(3, 4, 8, 8, generator=rng), torch.randint(0, 1000, (3,), generator=rng)
        alphas, total, weights = base.scheduler.alphas_cumprod.float(), 0.0, 0.0
        for row in range(3):
            tokens = adapter["image_proj"](given.features[row : row + 1])
            hooks = []
            for name, k in training.sites.items():
                attn, pair = base.denoiser.get_submodule(name), adapter["ip_adapter"][k]

                def ahead(module, args, attn=attn, pair=pair, tokens=tokens):
                    q, keys, values = attn.to_q(attn.seen), pair["to_k_ip"](tokens), pair["to_v_ip"](tokens)
                    q, keys, values = (
                        each.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for each in (q, keys, values)
                    )
                    more = torch.softmax(q @ keys.transpose(-1, -2) / q.shape[-1] ** 0.5, -1) @ values
                    return (args[0] + more.transpose(1, 2).flatten(-2),)

                def note(module, args, kwargs, attn=attn):
                    attn.seen = args[0]

                hooks.append(attn.register_forward_pre_hook(note, with_kwargs=True))
                hooks.append(attn.to_out[0].register_forward_pre_hook(ahead))
            a = alphas[t[row]]
            noisy = a.sqrt() * given.targets[row] + (1 - a).sqrt() * eps[row]
            answer = base.denoiser(noisy[None], t[row], encode(base, sentences[row]).embeds).sample[0]
            for hook in hooks:
                hook.remove()
            weight = 1 + 1.5 * F.avg_pool2d(mask[row], 2)
            total += float(((answer - eps[row]) ** 2 * weight).mean())
            weights += float(weight.mean())
    assert float(found) == pytest.approx(total / weights, rel=1e-4)


def test_drops_are_of_equal_shares_and_exclusive():
    for share in (0.05, 0.2):
        picture, text = drops(100_000, torch.Generator().manual_seed(0), share)
        for each in (picture & ~text, ~picture & text, picture & text):
            assert abs(float(each.float().mean()) - share) < 0.01
    kept = without(torch.ones(3, 2, 2), torch.zeros(1, 2, 2), torch.tensor([True, False, True]))
    assert kept[:, 0, 0].tolist() == [0, 1, 0]


@pytest.mark.parametrize("method", ["ip-adapter", "ip-adapter-plus"])
def test_stopped_and_resumed_equals_uninterrupted_and_is_read_by_the_method(base, tmp_path, method):
    data = [FolderPairs(draw_things(tmp_path / "things"))]
    before = {f"{n}/{k}": v.clone() for n, m in base.modules.items() for k, v in m.state_dict().items()}
    given = FEW | {"image_encoder": tiny.clip_folder()}
    train_adapter(method, data, base, folder=tmp_path / "whole", progress=False, **given | {"preview_every": 3})
    with pytest.raises(Stopped):
        train_adapter(method, data, base, folder=tmp_path / "parts", progress=False, stop_after=0.0, **given)
    with pytest.raises(Stopped):
        train_adapter(method, data, base, folder=tmp_path / "parts", progress=False, stop_after=0.0, **given)
    train_adapter(method, data, base, folder=tmp_path / "parts", progress=False, **given)
    whole, parts = (load_tensors(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    after = {f"{n}/{k}": v for n, m in base.modules.items() for k, v in m.state_dict().items()}
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert read_json(tmp_path / "whole" / "config.json")["image_encoder"]["name"] == tiny.clip_folder()
    subject = Subject.from_folder(tmp_path / "things" / "rex" / "0.png", "dog", "rex")
    concept = read_subject(method, subject, base, settings={"weights": str(tmp_path / "whole")})
    from thisness.sampling import SamplingOptions, sample

    text, options = encode(base, "a dog on the beach"), SamplingOptions(steps=2)
    plain = sample(base, text, None, [0], options)
    with concept.attach(base) as brought:
        drawn = sample(base, text, None, [0], options, interventions=brought.interventions)
    assert not torch.allclose(plain, drawn, atol=1e-3)
