"""Oracles: the model before; the stock processor; a copy of the model; PEFT's own output."""

import copy

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, SlicedAttnProcessor

import tiny
from thisness.attention import (
    CaptureMaps,
    Intervention,
    MaskAttention,
    Rows,
    SwapKeysValues,
    Where,
    attached,
    sites_of,
)
from thisness.bases import Base
from thisness.conditioning import encode
from thisness.errors import ConfigurationError
from thisness.sampling import SamplingOptions, sample


@pytest.fixture(scope="module")
def unet():
    return tiny.unet()


def call(unet, batch=2):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(batch, 4, 8, 8, generator=generator)
    text = torch.randn(batch, 6, 16, generator=generator)
    with torch.no_grad():
        return unet(latents, 500, encoder_hidden_states=text, return_dict=False)[0]


class Idle(Intervention):
    """Is called at every place and changes nothing."""

    def __init__(self):
        self.calls = []

    def inputs(self, site, hidden, encoded, context):
        self.calls.append(("inputs", site.name))
        return hidden, encoded

    def qkv(self, site, attn, q, k, v, context):
        self.calls.append(("qkv", site.name))
        return q, k, v

    def mask(self, site, q, k, mask, context):
        self.calls.append(("mask", site.name))
        return mask

    def reads_probs(self, site, q, k, context):
        return True

    def probs(self, site, probs, context):
        self.calls.append(("probs", site.name))
        return probs

    def extra(self, site, attn, q, out, context):
        self.calls.append(("extra", site.name))
        return out


class Louder(Intervention):
    """Scales the output of the heads at each site."""

    def __init__(self, factor=1.5, where=None):
        self.factor, self.where = factor, where or Where()

    def extra(self, site, attn, q, out, context):
        return out * self.factor


def state(model):
    return dict(model.attn_processors), {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_unchanged(model, before):
    processors, tensors = before
    now = dict(model.attn_processors)
    assert list(now) == list(processors) and all(now[name] is processors[name] for name in now)
    assert list(model.state_dict()) == list(tensors)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())


def test_idle_interventions_change_no_bit(unet):
    expected, idle = call(unet), Idle()
    with attached(unet, idle):
        assert torch.equal(call(unet), expected)
    places = ("inputs", "qkv", "mask", "probs", "extra")
    assert sorted(idle.calls) == sorted((place, name) for place in places for name in sites_of(unet))


@pytest.mark.parametrize("config", [{}, {"use_linear_projection": True}, {"cross_attention_norm": "layer_norm"}])
def test_idle_interventions_change_no_bit_in_other_unets(config):
    if "cross_attention_norm" in config:
        model = tiny.unet()
        attention = model.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn2")
        attention.norm_cross = torch.nn.LayerNorm(16)
        attention.rescale_output_factor = 1.3
        attention.residual_connection = True
    else:
        model = tiny.unet(**config)
    expected = call(model)
    with attached(model, Idle()):
        assert torch.equal(call(model), expected)


def test_a_picture_shaped_input_and_the_encoders_mask_are_treated_as_by_the_stock_processor(unet):
    """The forms that a UNet of this family does not use itself: 4 dimensions, group norm, a mask of the text."""
    from diffusers.models.attention_processor import Attention, AttnProcessor2_0

    from thisness.attention import Context, HookedProcessor, Site

    torch.manual_seed(0)
    attention = Attention(16, heads=2, dim_head=8, norm_num_groups=4, residual_connection=True)
    hooked = HookedProcessor(AttnProcessor2_0(), Site("x", "self", 0, 4), [Idle()], Context())
    pictures = torch.randn(2, 16, 4, 4)
    assert torch.equal(hooked(attention, pictures), AttnProcessor2_0()(attention, pictures))
    latents, text = torch.randn(2, 4, 8, 8), torch.randn(2, 6, 16)
    keep = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]])
    arguments = {"encoder_hidden_states": text, "encoder_attention_mask": keep, "return_dict": False}
    with torch.no_grad():
        expected = unet(latents, 3, **arguments)[0]
        with attached(unet, Idle()):
            assert torch.equal(unet(latents, 3, **arguments)[0], expected)
        assert not torch.equal(unet(latents, 3, encoder_hidden_states=text, return_dict=False)[0], expected)


def test_attach_and_detach_leave_everything_as_before(unet):
    before, expected = state(unet), call(unet)
    with attached(unet, Louder()):
        assert list(unet.state_dict()) == list(before[1])  # nothing of ours is saved with the model
        assert not torch.allclose(call(unet), expected)
    assert_unchanged(unet, before)
    assert torch.equal(call(unet), expected)


def test_also_after_an_exception(unet):
    before, expected = state(unet), call(unet)

    class Boom(Intervention):
        def qkv(self, site, attn, q, k, v, context):
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"), attached(unet, Boom()):
        call(unet)
    assert_unchanged(unet, before)
    assert torch.equal(call(unet), expected)


def test_also_nested(unet):
    """The inner ones act after the outer ones; leaving the inner leaves the outer."""
    before, expected = state(unet), call(unet)
    with attached(unet, Louder(2.0)) as outer:
        middle = call(unet)
        hooked = state(unet)
        with attached(unet, Louder(0.5)) as inner:
            assert inner is outer
            assert torch.equal(call(unet), expected)  # 2 * 0.5, exact in floating point
        assert_unchanged(unet, hooked)
        assert torch.equal(call(unet), middle)
        with pytest.raises(RuntimeError), attached(unet, Louder(3.0)):
            raise RuntimeError
        assert torch.equal(call(unet), middle)
    assert_unchanged(unet, before)
    assert torch.equal(call(unet), expected)


def test_the_order_of_attachment_is_the_order_of_action(unet):
    class Plus(Intervention):
        def extra(self, site, attn, q, out, context):
            return out + 1.0

    with attached(unet, Plus(), Louder(2.0)):
        one = call(unet)
    with attached(unet, Louder(2.0), Plus()):
        other = call(unet)
    assert not torch.allclose(one, other)
    with attached(unet, Plus()), attached(unet, Louder(2.0)):
        assert torch.equal(call(unet), one)


def test_only_chosen_sites_and_steps(unet):
    plain = call(unet)
    where = Where(kinds=("cross",), names=("mid_block.*",), steps=range(2, 4))
    with attached(unet, Louder(where=where)) as context:
        changed = [n for n, p in unet.attn_processors.items() if p.__class__.__name__ == "HookedProcessor"]
        assert changed == ["mid_block.attentions.0.transformer_blocks.0.attn2.processor"]
        for context.step in range(5):
            assert torch.equal(call(unet), plain) == (context.step not in (2, 3))


def test_sites_are_named_by_what_they_are(unet):
    sites = list(sites_of(unet).values())
    assert [(site.stage, site.kind, site.layer, site.resolution) for site in sites] == [
        *(("down", kind, 0, 8) for kind in ("self", "cross")),
        *(("mid", kind, 1, 4) for kind in ("self", "cross")),
        *(("up", kind, layer, 8) for layer in (2, 3) for kind in ("self", "cross")),
    ]
    seen = []

    class Watch(Intervention):
        def qkv(self, site, attn, q, k, v, context):
            seen.append(site)
            assert q.shape[1] == site.resolution**2
            assert k.shape[1] == (6 if site.kind == "cross" else site.resolution**2)
            return q, k, v

    with attached(unet, Watch()):
        call(unet)
    assert seen == sites  # the order is that in which they run


def test_what_would_act_nowhere_is_refused(unet):
    before = state(unet)
    with (
        pytest.raises(ConfigurationError, match="Louder would act nowhere"),
        attached(unet, Louder(where=Where(kinds=("dual",)))),
    ):
        pass
    assert_unchanged(unet, before)


def test_processors_that_compute_something_else_are_not_replaced():
    model = tiny.unet()
    model.set_attn_processor(SlicedAttnProcessor(1))
    with pytest.raises(ConfigurationError, match="attends by SlicedAttnProcessor"), attached(model, Louder()):
        pass
    model = tiny.unet()
    model.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1").fuse_projections()
    with pytest.raises(ConfigurationError, match="unfuse_qkv_projections"), attached(model, Louder()):
        pass


def test_the_plain_processor_is_hooked_and_computes_the_same(unet):
    """As training on a CPU has it. Oracles: the plain processor's output; the maps that the fused one's place gives."""
    fused = CaptureMaps(rows=Rows())
    with attached(unet, fused):
        call(unet)
    model = tiny.unet()
    model.set_attn_processor(AttnProcessor())
    expected, plain = call(model), CaptureMaps(rows=Rows())
    with attached(model, plain):
        torch.testing.assert_close(call(model), expected, rtol=0, atol=1e-5)
    assert torch.equal(call(model), expected)
    torch.testing.assert_close(plain.average(), fused.average(), rtol=0, atol=1e-6)


def test_a_copy_made_meanwhile_is_a_plain_model(unet):
    expected = call(unet)
    with attached(unet, Louder()):
        twin = copy.deepcopy(unet)
    assert torch.equal(call(twin), expected)
    assert not any(p.__class__.__name__ == "HookedProcessor" for p in twin.attn_processors.values())


def test_low_rank_adapters_act_in_the_hooked_processor():
    from peft import LoraConfig

    model = tiny.unet()
    plain = call(model)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False))
    expected = call(model)
    assert not torch.allclose(plain, expected)
    with attached(model, Idle()):
        assert torch.equal(call(model), expected)
    model.delete_adapters("default")
    model = tiny.unet()
    with attached(model, Idle()):
        torch.manual_seed(0)
        model.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
        meanwhile = call(model)
    assert torch.equal(call(model), meanwhile) and not torch.allclose(meanwhile, plain)


def test_gradients_flow_through_the_hooked_processor(unet):
    def gradient(*interventions):
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        text = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(2))
        with attached(unet, *interventions):
            unet(latents, 10, encoder_hidden_states=text, return_dict=False)[0].square().sum().backward()
        return latents.grad

    assert torch.equal(gradient(Idle()), gradient())


def test_gradients_of_a_loss_on_maps(unet):
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    maps = CaptureMaps(detach=False, rows=Rows())
    with attached(unet, maps):
        unet(latents, 10, encoder_hidden_states=torch.randn(1, 6, 16), return_dict=False)
    maps.average(side=8)[..., 2].sum().backward()
    assert latents.grad.abs().sum() > 0


def test_around_the_stock_pipeline():
    """Interventions act in the stock pipeline as in our loop, once the roles of the rows are said."""
    from thisness.attention import rows_of

    pipe = tiny.pipeline()
    base = Base.from_pipeline(pipe)
    swap = SwapKeysValues(Rows("cond", 1), Rows("cond", 0))
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    with attached(pipe.unet, swap) as context:
        context.rows = rows_of(("uncond", "cond"), 2)
        stock = pipe(
            "a dog", num_images_per_prompt=2, num_inference_steps=2, guidance_scale=3.0, generator=generators,
            output_type="latent",
        ).images  # fmt: skip
    options = SamplingOptions(steps=2, guidance=3.0)
    ours = sample(base, encode(base, "a dog"), None, (0, 1), options, interventions=[swap])
    assert torch.equal(ours, stock)
    assert not torch.equal(ours, sample(base, encode(base, "a dog"), None, (0, 1), options))


def test_several_interventions_together():
    base = tiny.base()
    options = SamplingOptions(steps=2, guidance=3.0)
    mask, swap = MaskAttention.hide([2]), SwapKeysValues(Rows("cond", 1), Rows("cond", 0))
    maps = CaptureMaps()
    conditioning = encode(base, "a dog on the beach")

    def run(*interventions):
        return sample(base, conditioning, None, (0, 1), options, interventions=interventions)

    both = run(mask, swap, maps)
    assert torch.equal(both, run(mask, swap))
    assert not torch.equal(both, run(mask)) and not torch.equal(both, run(swap))
    assert all(each[..., 2].abs().max() == 0 for each in maps.maps.values())  # what is hidden gets no attention
