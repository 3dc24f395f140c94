"""Oracles: the untouched model, bit for bit; a hook before norm2 and after attn2 that does the same by another way."""

import copy

import pytest
import torch

import tiny
from thisness.attention import Intervention, Where, attached, sites_of
from thisness.conditioning import encode
from thisness.errors import ConfigurationError


class Adds(Intervention):
    """A fixed random direction, as strong as `amount`, in the steps of `where`."""

    def __init__(self, amount=1.0, where=None, calls=None):
        self.amount, self.where, self.calls = amount, where or Where(), [] if calls is None else calls

    def delta(self, hidden):
        draws = torch.randn(hidden.shape[-1], generator=torch.Generator().manual_seed(hidden.shape[-1]))
        return self.amount * draws * torch.tanh(hidden)

    def between(self, site, hidden, context):
        self.calls.append(site.name)
        return hidden + self.delta(hidden)


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def base(request):
    return tiny.base() if request.param == "sd" else tiny.base_xl()


@pytest.fixture(scope="module")
def run(base):
    latents = torch.randn(2, *base.latent_shape(16, 16), generator=torch.Generator().manual_seed(0))
    read = encode(base, ["a dog", "a cat on the beach"])

    @torch.no_grad()
    def call(model=None):
        return base.predict(latents, torch.tensor(500), read)

    return call


def state(unet):
    modules = [(name, sorted(m.__dict__), len(m._forward_pre_hooks)) for name, m in unet.named_modules()]
    return modules, list(unet.state_dict()), {name: id(p) for name, p in unet.attn_processors.items()}


def test_attached_but_idle_is_the_untouched_model_and_leaves_it_so(base, run):
    before, plain = state(base.denoiser), run()
    with attached(base.denoiser, Adds(where=Where(steps=[3]))) as context:
        assert list(base.denoiser.state_dict()) == before[1]
        assert torch.equal(run(), plain)
        context.step = 3
        assert not torch.allclose(run(), plain)
    with attached(base.denoiser, Adds(0.0)):
        assert torch.equal(run(), plain)
    with pytest.raises(RuntimeError), attached(base.denoiser, Adds()):
        raise RuntimeError
    assert state(base.denoiser) == before and torch.equal(run(), plain)


def test_it_does_what_hooks_around_cross_attention_do(base, run):
    acting = Adds(0.3)
    with attached(base.denoiser, acting):
        ours = run()
    hooks, kept = [], {}
    for module in base.denoiser.modules():
        if type(module).__name__ != "BasicTransformerBlock":
            continue

        def before(norm, args, block=module):
            kept[block] = acting.delta(args[0])
            return (args[0] + kept[block],)

        hooks.append(module.norm2.register_forward_pre_hook(before))
        hooks.append(module.attn2.register_forward_hook(lambda m, a, out, block=module: out + kept[block]))
    try:
        assert torch.allclose(run(), ours, atol=1e-5)
    finally:
        for hook in hooks:
            hook.remove()


def test_blocks_are_met_in_the_order_in_which_they_run(base, run):
    calls = []
    with attached(base.denoiser, Adds(0.0, calls=calls)):
        run()
    assert calls == [site.name for site in sites_of(base.denoiser).values() if site.kind == "cross"]
    stages = [name.split("_")[0] for name in calls]
    assert stages == sorted(stages, key=["down", "mid", "up"].index)  # named_modules() has the middle last


def test_nested_ones_share_a_context_and_copies_are_plain(base, run):
    plain = run()
    with attached(base.denoiser, Adds(0.2)) as outer:
        one = run()
        with attached(base.denoiser, Adds(0.3)) as inner:
            assert inner is outer
            two = run()
            copied = copy.deepcopy(base.denoiser)
        assert torch.equal(run(), one) and not torch.allclose(one, two)
    assert torch.equal(run(), plain)
    unet, base.parts["unet"] = base.denoiser, copied
    try:
        assert torch.equal(run(), plain)
    finally:
        base.parts["unet"] = unet


def test_acting_nowhere_and_gligen_are_refused(base):
    with (
        pytest.raises(ConfigurationError, match="Adds would act nowhere"),
        attached(base.denoiser, Adds(where=Where(names=["elsewhere"]))),
    ):
        pass
    block = next(m for m in base.denoiser.modules() if type(m).__name__ == "BasicTransformerBlock")
    block.fuser = torch.nn.Identity()
    try:
        with pytest.raises(ConfigurationError, match="GLIGEN"), attached(base.denoiser, Adds()):
            pass
    finally:
        del block.fuser


def test_gradients_flow_with_checkpointing():
    base = tiny.base()
    amount = torch.nn.Parameter(torch.tensor(0.1))
    latents = torch.randn(1, *base.latent_shape(16, 16), generator=torch.Generator().manual_seed(0))
    read = encode(base, "a dog")
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            base.denoiser.enable_gradient_checkpointing()
            base.denoiser.train()
        with attached(base.denoiser, Adds(amount)):
            (grad,) = torch.autograd.grad(base.predict(latents, torch.tensor(500), read).square().mean(), amount)
        grads.append(float(grad))
    assert grads[0] != 0 and grads[0] == pytest.approx(grads[1], rel=1e-4)
