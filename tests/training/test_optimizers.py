"""Optimizers. Oracles: torch's own Muon in double precision's stead, singular values, AdamW alone as before."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from thisness.errors import ArtefactError, ConfigurationError
from thisness.training.config import LoopConfig
from thisness.training.optimizers import Muon, Optimizers, check_optimizer, matrices_apart, orthogonalised

CONFIG = LoopConfig(steps=10, lr=1e-2, weight_decay=0.1)


def layer(seed=0, out=6, into=10):
    torch.manual_seed(seed)
    return nn.Linear(into, out)


def test_orthogonalised_keeps_singular_vectors_and_levels_their_values():
    torch.manual_seed(0)
    for shape in ((16, 40), (40, 16), (24, 24)):
        u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
        matrix = u @ torch.diag(torch.linspace(1, 0.2, min(shape))) @ v
        inside = u.T @ orthogonalised(matrix) @ v.T
        assert (inside.diagonal() > 0.6).all() and (inside.diagonal() < 1.3).all()
        assert (inside - inside.diagonal().diag()).abs().max() < 1e-4
    assert torch.isfinite(orthogonalised(torch.zeros(3, 4))).all()


def test_muon_agrees_with_torch_where_that_is_exact_enough():
    """Torch iterates in bfloat16: three digits."""
    mine, theirs = layer(), layer()
    one = Muon([mine.weight], lr=1e-2, weight_decay=0.1)
    other = torch.optim.Muon([theirs.weight], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    before = mine.weight.detach().clone()
    for step in range(4):
        torch.manual_seed(step)
        mine.weight.grad = torch.randn_like(mine.weight)
        theirs.weight.grad = mine.weight.grad.clone()
        one.step()
        other.step()
    moved = (mine.weight - before).norm()
    assert (mine.weight - theirs.weight).norm() < 0.02 * moved


def test_groups_keep_their_own_rate_and_optimizer_through_a_reload():
    net = nn.Sequential(layer(), nn.LayerNorm(6), layer(1, 4, 6))
    groups = [*matrices_apart(net[0], [net[0], net[1]]), {"params": list(net[2].parameters()), "lr": 0.5}]

    def steps(optimizers, count, start=0):
        for step in range(start, start + count):
            optimizers.scale(1 / (step + 1))
            torch.manual_seed(step)
            for p in net.parameters():
                p.grad = torch.randn_like(p)
            optimizers.step()

    begun = {k: v.clone() for k, v in net.state_dict().items()}
    whole = Optimizers(groups, CONFIG)
    steps(whole, 4)
    ends = {k: v.clone() for k, v in net.state_dict().items()}
    assert [group["lr"] for group in whole.param_groups] == [0.0025, 0.0025, 0.125]
    assert {name.split("/")[0] for name in whole.moments()} >= {"muon", "0"}
    net.load_state_dict(begun)
    half = Optimizers(groups, CONFIG)
    steps(half, 2)
    kept = {name: value.clone() for name, value in half.moments().items()}
    again = Optimizers(groups, CONFIG)
    again.load_moments(kept)
    steps(again, 2, 2)
    assert all(torch.equal(net.state_dict()[k], ends[k]) for k in ends)
    assert not torch.equal(begun["0.weight"], ends["0.weight"])


def test_what_does_not_fit_is_refused():
    net = layer()
    with pytest.raises(ConfigurationError, match="matrices only"):
        Optimizers([{"params": list(net.parameters()), "optimizer": "muon"}], CONFIG)
    with pytest.raises(ConfigurationError, match="adamw, adamw8bit, prodigy or muon, not 'sgd'"):
        Optimizers([{"params": [net.weight], "optimizer": "sgd"}], CONFIG)
    plain = Optimizers([{"params": list(net.parameters())}], CONFIG)
    with pytest.raises(ArtefactError, match="does not fit: it is of muon"):
        plain.load_moments({"muon/0/momentum_buffer": torch.zeros(6, 10)})


class EightBits(torch.optim.AdamW):
    """What bitsandbytes' one does to checkpoints: it counts steps in plain numbers and keeps bytes."""

    def __init__(self, params, **given):
        super().__init__(params, **given)
        self.counted = []

    def step(self, closure=None):
        super().step(closure)
        for state in self.state.values():
            count = int(state["step"])
            self.counted.append(count)
            state["codes"] = torch.full((4,), count, dtype=torch.uint8)

    def state_dict(self):
        found = super().state_dict()
        for state in found["state"].values():
            state["step"] = int(state["step"])
        return found

    def load_state_dict(self, state):
        assert all(type(each["step"]) is int for each in state["state"].values())
        for each in state["state"].values():
            each["step"] = torch.tensor(float(each["step"]))
        super().load_state_dict(state)


def test_moments_in_8_bits_go_through_a_checkpoint(monkeypatch, tmp_path):
    import sys
    from types import SimpleNamespace

    from thisness.files import load_tensors, save_tensors

    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", SimpleNamespace(AdamW8bit=EightBits))
    config = LoopConfig(steps=4, lr=0.1, optimizer="adamw8bit")

    def run(net, optimizers, steps):
        for step in steps:
            torch.manual_seed(step)
            for p in net.parameters():
                p.grad = torch.randn_like(p)
            optimizers.step()

    whole, half = layer(), layer()
    run(whole, Optimizers([{"params": list(whole.parameters())}], config), range(4))
    first = Optimizers([{"params": list(half.parameters())}], config)
    run(half, first, range(2))
    save_tensors(tmp_path / "moments.safetensors", first.moments())
    again = Optimizers([{"params": list(half.parameters())}], config)
    again.load_moments(load_tensors(tmp_path / "moments.safetensors"))
    run(half, again, range(2, 4))
    assert torch.equal(whole.weight, half.weight)
    assert again.each["adamw8bit"].counted[-1] == 4


def test_8_bits_without_the_library_or_an_accelerator_is_one_line(monkeypatch):
    import sys
    from types import SimpleNamespace

    check_optimizer("adamw", torch.device("cpu"))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigurationError, match="needs bitsandbytes.*pip install bitsandbytes"):
        check_optimizer("adamw8bit", torch.device("cuda"))
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", SimpleNamespace(AdamW8bit=EightBits))
    with pytest.raises(ConfigurationError, match="runs on a GPU"):
        check_optimizer("adamw8bit", torch.device("cpu"))
    check_optimizer("adamw8bit", torch.device("cuda"))


def least_squares(optimizers, net, steps):
    torch.manual_seed(0)
    inputs, wanted = torch.randn(64, 10), torch.randn(64, 6)
    for _ in steps:
        optimizers.zero_grad()
        loss = (net(inputs) - wanted).square().mean()
        loss.backward()
        optimizers.step()
    return float(loss.detach())


def test_prodigy_finds_its_own_rate_whatever_lr_says():
    torch.manual_seed(0)
    inputs, wanted = torch.randn(64, 10), torch.randn(64, 6)
    inputs = torch.cat([inputs, torch.ones(64, 1)], 1)
    best = float((inputs @ torch.linalg.lstsq(inputs, wanted).solution - wanted).square().mean())
    ends = []
    for lr in (1e-6, 10.0):
        net = layer()
        config = LoopConfig(steps=400, lr=lr, optimizer="prodigy", weight_decay=0.0)
        groups = [{"params": [net.weight], "lr": lr}, {"params": [net.bias]}]
        ends.append(least_squares(Optimizers(groups, config), net, range(400)))
    assert ends[0] == ends[1]
    assert ends[0] < best * 1.02


def test_prodigy_goes_through_a_checkpoint_bit_for_bit(tmp_path):
    from thisness.files import load_tensors, save_tensors

    config = LoopConfig(steps=40, lr=1.0, optimizer="prodigy")
    whole, half = layer(), layer()
    least_squares(Optimizers([{"params": list(whole.parameters())}], config), whole, range(40))
    first = Optimizers([{"params": list(half.parameters())}], config)
    least_squares(first, half, range(25))
    save_tensors(tmp_path / "moments.safetensors", first.moments())
    again = Optimizers([{"params": list(half.parameters())}], config)
    again.load_moments(load_tensors(tmp_path / "moments.safetensors"))
    least_squares(again, half, range(25, 40))
    assert torch.equal(whole.weight, half.weight)
    plain = Optimizers([{"params": list(half.parameters())}], CONFIG)
    with pytest.raises(ArtefactError, match="does not fit: it is of prodigy"):
        plain.load_moments(first.moments())


def test_prodigy_is_the_librarys_with_the_papers_switches_and_says_nothing(capsys):
    from prodigyopt import Prodigy

    config = LoopConfig(steps=20, lr=1.0, optimizer="prodigy")
    ours, theirs = layer(), layer()
    least_squares(Optimizers([{"params": list(ours.parameters())}], config), ours, range(20))
    assert capsys.readouterr().out == ""
    plain = Prodigy(theirs.parameters(), weight_decay=0.01, use_bias_correction=True, safeguard_warmup=True)
    least_squares(plain, theirs, range(20))
    assert torch.equal(ours.weight, theirs.weight)


def test_prodigy_without_its_library_is_one_line(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    with pytest.raises(ConfigurationError, match="needs prodigyopt.*pip install prodigyopt"):
        check_optimizer("prodigy", torch.device("cpu"))
