"""The training of EZIGen's adapter. Oracles: the loss written plainly, row by row, with hooks in the place of slots;
the adapter without keys; the base; frequencies; the order of subjects."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_ezigen import random_adapter, read

import tiny
from thisness.attention import attached
from thisness.conditioning import encode
from thisness.errors import ConfigurationError
from thisness.methods.ezigen_adapter import UNSUBJECT, EZIGenAdapter, SubjectAttention
from thisness.methods.ezigen_training import (
    Batch,
    EZIGenTraining,
    TrainingConfig,
    drops,
    parameter_groups,
    save_weights,
    timesteps,
)

SENTENCES = ("a dog on the beach", "", "a cat in the snow", "a red hat", "a dog")
COUNTS = (2, 1, 0, 3, 1)
NOUNS = ("dog", "cat", "hat", "cat", "dog", "hat", "dog")


@pytest.fixture(scope="module")
def base():
    made = tiny.base()
    made.denoiser.requires_grad_(False)
    return made


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch(base, **changes):
    with torch.no_grad():
        words = encode(base, [f"a photo of a {noun}" for noun in NOUNS])
    mask = (noise(5, 1, 16, 16, seed=9) > 0).float()
    full = {"targets": noise(5, 4, 8, 8), "sentences": SENTENCES, "counts": COUNTS, "words": words, "mask": mask}
    return Batch(**full | {"subjects": noise(7, 4, 8, 8, seed=1)} | changes)


def plain_site(site, h, features):
    """h: (L, C); features: a list of (L, C), of each subject. Eq. 3, written out."""
    u = F.layer_norm(h, (h.shape[-1],), site.norm.weight, site.norm.bias)
    q, keys = u @ site.to_q.weight.T, [u @ site.to_k.weight.T]
    values = [u @ site.to_v.weight.T]
    for each in features:
        keys.append(site.feature_scale * each @ site.to_k.weight.T)
        values.append(site.feature_scale * each @ site.to_v.weight.T)
    k, v = torch.cat(keys), torch.cat(values)
    width = h.shape[-1] // site.heads
    heads = []
    for n in range(site.heads):
        part = slice(n * width, (n + 1) * width)
        heads.append(torch.softmax(q[:, part] @ k[:, part].T / width**0.5, -1) @ v[:, part])
    a = torch.cat(heads, -1) @ site.to_out.weight.T + site.to_out.bias
    return site.gate * a


def plain_loss(base, adapter, given, rng):
    """Each row alone; features and adapter by hooks on the denoiser's own parts."""
    unet, alphas = base.denoiser, base.scheduler.alphas_cumprod.float()
    high = torch.where(torch.rand(5, generator=rng) < 0.5, 1000, 500)
    t = (torch.rand(5, generator=rng) * high).long()
    eps, seen = torch.randn(5, 4, 8, 8, generator=rng), torch.randn(1, 4, 8, 8, generator=rng)
    blocks = [unet.get_submodule(name.rpartition(".")[0]) for name in adapter.names]
    total, weights, at = 0.0, 0.0, 0
    for row in range(5):
        read: list[list[torch.Tensor]] = [[] for _ in blocks]
        for number in range(at, at + COUNTS[row]):
            noisy = alphas[1].sqrt() * given.subjects[number : number + 1] + (1 - alphas[1]).sqrt() * seen
            hooks = [
                b.attn1.register_forward_pre_hook(lambda m, args, n=n, read=read: read[n].append(args[0][0]))
                for n, b in enumerate(blocks)
            ]
            unet(noisy, 1, given.words.rows([number]).embeds)
            [hook.remove() for hook in hooks]
        at += COUNTS[row]
        deltas: dict[int, torch.Tensor] = {}
        hooks = []
        for n, block in enumerate(blocks):

            def ahead(module, args, n=n, read=read, deltas=deltas):
                deltas[n] = plain_site(adapter.sites[n], args[0][0], read[n])[None]
                return (args[0] + deltas[n],)

            def after(module, args, out, n=n, deltas=deltas):
                return out + deltas[n]

            hooks += [block.norm2.register_forward_pre_hook(ahead), block.attn2.register_forward_hook(after)]
        a = alphas[t[row]]
        noisy = a.sqrt() * given.targets[row] + (1 - a).sqrt() * eps[row]
        found = unet(noisy[None], t[row], encode(base, SENTENCES[row]).embeds).sample[0]
        [hook.remove() for hook in hooks]
        weight = 1 + 2.0 * F.avg_pool2d(given.mask[row], 2)
        total += ((found - eps[row]) ** 2 * weight).sum() / (4 * 8 * 8)
        weights += weight.sum() / (8 * 8)
    return float(total / weights)


def test_the_loss_is_the_plain_one_with_none_one_and_several_subjects(base):
    adapter, given = random_adapter(base), batch(base)
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        found = EZIGenTraining(base, adapter).loss(given, torch.Generator().manual_seed(3))["loss"].item()
        assert found == pytest.approx(plain_loss(base, adapter, given, rng), rel=1e-4)


def errors(training, given, reads=None):
    with torch.no_grad():
        keys = training.keys(given, noise(1, 4, 8, 8, seed=7))
        t = torch.tensor([10, 200, 400, 600, 800])[: len(given.targets)]
        return training.errors(
            given, noise(*given.targets.shape, seed=8), t, keys, given.reads if reads is None else reads
        )[0]


def test_a_dropped_subject_is_absent(base):
    """The row is, bit for bit, what the adapter gives without keys, whatever the others of the batch read; with closed
    gates it is the base."""
    adapter, given = random_adapter(base), batch(base)
    training = EZIGenTraining(base, adapter)
    one = errors(training, given)
    other = errors(training, batch(base, subjects=noise(7, 4, 8, 8, seed=33)))
    assert torch.equal(one[2], other[2]) and not torch.allclose(one[0], other[0], atol=1e-3)
    t = torch.tensor([10, 200, 400, 600, 800])
    alpha = training.alphas[t].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * given.targets + (1 - alpha).sqrt() * noise(5, 4, 8, 8, seed=8)
    with torch.no_grad(), attached(base.denoiser, SubjectAttention(adapter, [])) as context:
        from thisness.attention.context import Row

        context.rows = tuple(Row(UNSUBJECT, n) for n in range(5))
        unread = base.predict(noisy, t, encode(base, SENTENCES))
    assert torch.equal((unread - noise(5, 4, 8, 8, seed=8)) ** 2, errors(training, given, [[]] * 5))
    assert torch.allclose(one[2], errors(training, given, [[]] * 5)[2], atol=1e-5)
    closed = random_adapter(base, gate=0.0)
    with torch.no_grad():
        base_alone = (base.predict(noisy, t, encode(base, SENTENCES)) - noise(5, 4, 8, 8, seed=8)) ** 2
    assert torch.equal(errors(EZIGenTraining(base, closed), given), base_alone)
    assert not torch.allclose(unread, base.predict(noisy, t, encode(base, SENTENCES)), atol=1e-3)


def test_the_order_of_subjects_does_not_matter(base):
    training, given = EZIGenTraining(base, random_adapter(base)), batch(base)
    turned = [each[::-1] for each in given.reads]
    assert torch.allclose(errors(training, given), errors(training, given, turned), atol=1e-5)
    swapped = [given.reads[-1], *given.reads[:-1]]
    assert not torch.allclose(errors(training, given), errors(training, given, swapped), atol=1e-3)


def test_drops_and_levels_have_their_shares():
    """Within 1 % over 10,000 draws."""
    subject, text = drops(10_000, torch.Generator().manual_seed(0))
    assert abs(subject.mean() - 0.2) < 0.01 and abs(text.mean() - 0.1) < 0.01
    assert abs((subject & text).mean() - 0.05) < 0.01
    config = TrainingConfig(drop_subject=0.8, drop_both=0.0, drop_text=0.1)
    subject, text = drops(10_000, torch.Generator().manual_seed(0), config)
    assert abs(subject.mean() - 0.8) < 0.01 and abs(text.mean() - 0.1) < 0.01 and not (subject & text).any()
    t = timesteps(10_000, torch.Generator().manual_seed(0), 1000, late=1.0)
    assert t.max() < 500 and abs(float(t.float().mean()) - 250) < 10
    t = timesteps(10_000, torch.Generator().manual_seed(0), 1000, late=0.5)
    assert abs(float((t >= 500).float().mean()) - 0.25) < 0.01
    with pytest.raises(ConfigurationError, match="drop_both 0.3"):
        TrainingConfig(drop_both=0.3)
    with pytest.raises(ConfigurationError, match="late 2"):
        TrainingConfig(late=2)


def test_only_the_adapter_learns_and_the_loss_goes_down(base, tmp_path):
    before = {f"{n}/{k}": v.clone() for n, m in base.modules.items() for k, v in m.state_dict().items()}
    torch.manual_seed(0)
    adapter, given = EZIGenAdapter.of(base.denoiser), batch(base)
    training = EZIGenTraining(base, adapter)
    groups = parameter_groups(adapter, 0.05)
    assert sum(p.numel() for g in groups for p in g["params"]) == sum(p.numel() for p in adapter.parameters())
    optimizer, losses = torch.optim.AdamW(groups, lr=3e-3), []
    for _ in range(12):
        parts = training.loss(given, torch.Generator().manual_seed(3))
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
        losses.append(parts["loss"].item())
    assert losses[-1] < 0.97 * losses[0] and parts["gate"] > 0.1
    after = {f"{n}/{k}": v for n, m in base.modules.items() for k, v in m.state_dict().items()}
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for m in base.modules.values() for p in m.parameters())
    save_weights(tmp_path / "mine", base, adapter)
    concept = read(tiny.toy(), base, str(tmp_path / "mine"))
    assert concept.settings["prompt"] == "a photo of a {noun}"


def test_the_gap_tells_the_right_subject_from_anothers(base):
    """Zero at closed gates. The three numbers are the losses with the subjects as given, a row on, and taken away."""
    given = batch(base, counts=(2, 1, 1, 2, 1))
    closed = EZIGenTraining(base, random_adapter(base, gate=0.0)).gap(given, torch.Generator().manual_seed(0))
    assert closed["gap"] == 0 and closed["right"] == closed["absent"]
    training = EZIGenTraining(base, random_adapter(base))
    found = training.gap(given, torch.Generator().manual_seed(0))
    assert found["gap"] == pytest.approx(found["swapped"] - found["right"]) and found["gap"] != 0
    rng = torch.Generator().manual_seed(0)
    eps, t = torch.randn(5, 4, 8, 8, generator=rng), torch.linspace(20, 600, 5).long()
    with torch.no_grad():
        none, weight = training.errors(given, eps, t, [], [[]] * 5)
    assert found["absent"] == pytest.approx(float((none * weight).mean() / weight.mean()))
    none = batch(base, counts=(0,) * 5, subjects=noise(0, 4, 8, 8), words=None)
    assert training.gap(none, torch.Generator().manual_seed(0))["gap"] == 0
    assert training.gap(replace(given, mask=None), torch.Generator().manual_seed(0)) != found
