"""FLUX's attention with interventions. Oracles: the plain model, given a shorter sentence, the other row, its own mask;
a softmax of our own."""

import copy

import pytest
import tiny_flux
import torch

from thisness.attention import (
    CaptureMaps,
    InjectKeysValues,
    Intervention,
    MaskAttention,
    RecordKeysValues,
    Rows,
    SwapKeysValues,
    Where,
    attached,
    rows_of,
    sites_of,
)
from thisness.bases.flux import position_ids
from thisness.errors import ConfigurationError

JOINT = Where(kinds=("dual", "single"))


@pytest.fixture(scope="module")
def model():
    return tiny_flux.transformer()


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def call(model, tokens, text, pooled=None, **more):
    pooled = noise(len(tokens), tiny_flux.CLIP_WIDTH, seed=9) if pooled is None else pooled
    return model(
        hidden_states=tokens,
        encoder_hidden_states=text,
        pooled_projections=pooled,
        timestep=torch.full((len(tokens),), 0.5),
        guidance=torch.full((len(tokens),), 3.5),
        txt_ids=torch.zeros(text.shape[1], 3),
        img_ids=position_ids(4, 4),
        return_dict=False,
        **more,
    )[0]


@pytest.fixture(scope="module")
def inputs():
    return noise(2, 16, 64), noise(2, 6, 32, seed=1)


def close(one, other):
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_the_sites_are_the_blocks_in_the_order_in_which_they_run(model, inputs):
    seen = []

    class Watch(Intervention):
        def qkv(self, site, attn, q, k, v, context):
            seen.append((site.name, site.kind, site.layer, tuple(q.shape)))
            return q, k, v

    with attached(model, Watch()):
        call(model, *inputs)
    shape = (2, 22, 48)
    assert seen == [
        ("transformer_blocks.0.attn", "dual", 0, shape),
        ("transformer_blocks.1.attn", "dual", 1, shape),
        ("single_transformer_blocks.0.attn", "single", 0, shape),
        ("single_transformer_blocks.1.attn", "single", 1, shape),
    ]
    assert [site.name for site in sites_of(model).values()] == [name for name, *_ in seen]


def test_the_hooked_processor_is_the_stock_one_bit_for_bit(model, inputs):
    plain = call(model, *inputs)
    mask = torch.ones(1, 1, 22, 22, dtype=torch.bool)
    mask[..., 2] = False
    masked = call(model, *inputs, joint_attention_kwargs={"attention_mask": mask})
    before = dict(model.attn_processors)

    class Identity(Intervention):
        where = JOINT

        def inputs(self, site, hidden, encoded, context):
            return hidden, encoded

        def qkv(self, site, attn, q, k, v, context):
            return q, k, v

        def mask(self, site, q, k, mask, context):
            return mask

        def extra(self, site, attn, q, out, context):
            return out

    for idle in (Identity(), CaptureMaps(JOINT, rows=Rows())):
        with attached(model, idle):
            assert torch.equal(call(model, *inputs), plain)
            assert close(call(model, *inputs, joint_attention_kwargs={"attention_mask": mask}), masked)
            assert torch.equal(call(copy.deepcopy(model), *inputs), plain)
    assert all(model.attn_processors[name] is each for name, each in before.items())
    assert not close(plain, masked)


def test_maps_are_a_softmax_and_looking_changes_nothing(model, inputs):
    found = {}

    class Own(Intervention):
        where = JOINT

        def qkv(self, site, attn, q, k, v, context):
            one, other = (each.unflatten(-1, (4, 12)).transpose(1, 2) for each in (q, k))
            found[site.name] = (one @ other.transpose(-1, -2) / 12**0.5).softmax(-1).mean(1)
            return q, k, v

    maps = CaptureMaps(JOINT, rows=Rows())
    with attached(model, Own(), maps):
        call(model, *inputs)
    assert len(maps.maps) == 4
    assert all(close(each, found[name]) for (_, name), each in maps.maps.items())


def test_hidden_words_are_as_if_they_were_not_there(model, inputs):
    tokens, text = inputs
    with attached(model, MaskAttention.hide([1, 4])):
        masked = call(model, tokens, text)
    assert close(masked, call(model, tokens, text[:, [0, 2, 3, 5]]))


def test_a_stock_mask_and_ours_add_up(model, inputs):
    mask = torch.ones(1, 1, 22, 22, dtype=torch.bool)
    mask[..., 1] = False
    with attached(model, MaskAttention.hide([4])):
        both = call(model, *inputs, joint_attention_kwargs={"attention_mask": mask})
    with attached(model, MaskAttention.hide([1, 4])):
        assert close(both, call(model, *inputs))


def test_swapped_and_recorded_keys_and_values_are_the_other_rows_own(model, inputs):
    tokens, text = inputs
    swapped = SwapKeysValues(Rows("cond", 1), Rows("cond", 0), JOINT)
    recorded = RecordKeysValues(JOINT, rows=Rows("cond", 1))
    with attached(model, recorded) as context:
        context.rows = rows_of(["cond"], 2)
        plain = call(model, tokens, text)
    with attached(model, swapped) as context:
        context.rows = rows_of(["cond"], 2)
        both = call(model, tokens, text)
    assert close(both[1], plain[1]) and not close(both[0], plain[0])

    class Instead(Intervention):
        where = JOINT

        def qkv(self, site, attn, q, k, v, context):
            return q, *recorded.cache[0, site.name]

    pooled = noise(2, tiny_flux.CLIP_WIDTH, seed=9)[:1]
    with attached(model, Instead()):
        alone = call(model, tokens[:1], text[:1], pooled)
    assert close(alone, both[:1])


def test_injected_keys_are_beside_its_own(model, inputs):
    """Its own keys and values once more change nothing: every probability is halved and counted twice."""
    tokens, text = inputs
    recorded = RecordKeysValues(JOINT, rows=Rows())
    with attached(model, recorded):
        plain = call(model, tokens, text)
    with attached(model, InjectKeysValues(recorded.cache, rows=Rows())):
        assert close(call(model, tokens, text), plain)


def test_probabilities_and_outputs_can_be_changed(model, inputs):
    class Hide(Intervention):
        where = JOINT
        edits_probs = True

        def probs(self, site, probs, context):
            kept = torch.ones(22)
            kept[4] = 0
            return probs * kept / (probs * kept).sum(-1, keepdim=True)

    with attached(model, Hide()):
        edited = call(model, *inputs)
    with attached(model, MaskAttention.hide([4])):
        assert close(edited, call(model, *inputs))

    class Twice(Intervention):
        where = Where(kinds=("single",), layers=(1,))

        def extra(self, site, attn, q, out, context):
            return out + 1

    with attached(model, Twice()):
        assert not close(call(model, *inputs), call(tiny_flux.transformer(), *inputs))


def test_gradients_flow_and_checkpointing_gives_the_same(inputs):
    model = tiny_flux.transformer()
    found = []
    for checkpointing in (False, True):
        tokens = inputs[0].clone().requires_grad_(True)
        if checkpointing:
            model.train().enable_gradient_checkpointing()
        with attached(model, MaskAttention.hide([1])), torch.enable_grad():
            call.__wrapped__(model, tokens, inputs[1]).square().sum().backward()
        found.append(tokens.grad)
    assert torch.equal(*found) and bool(found[0].any())


def test_what_would_be_wrong_is_refused(model, inputs):
    with pytest.raises(ConfigurationError, match="would act nowhere"), attached(model, SwapKeysValues(Rows(), Rows())):
        pass
    own = tiny_flux.transformer()
    own.fuse_qkv_projections()
    with pytest.raises(ConfigurationError, match="unfuse_qkv_projections"), attached(own, MaskAttention.hide([1])):
        pass
    for name in ("flash_varlen", "sage_varlen", "_flash_3_varlen"):
        with attached(model, MaskAttention.hide([1])):
            for each in model.attn_processors.values():
                each._attention_backend = name
            with pytest.raises(ConfigurationError, match=f"{name}' leaves masks out"):
                call(model, *inputs)
