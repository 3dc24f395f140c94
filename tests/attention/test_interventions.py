"""Oracles: a softmax of our own; the other row computed alone; the plain model given a longer or shorter sentence."""

import pytest
import torch

import tiny
from thisness.attention import (
    CaptureMaps,
    Context,
    InjectKeysValues,
    Intervention,
    MaskAttention,
    RecordKeysValues,
    Row,
    Rows,
    SwapKeysValues,
    Where,
    attached,
    rows_of,
    sites_of,
)
from thisness.conditioning import encode
from thisness.errors import ConfigurationError, ThisnessError
from thisness.sampling import SamplingOptions, sample

CROSS = Where(kinds=("cross",))


@pytest.fixture(scope="module")
def unet():
    return tiny.unet()


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def call(unet, latents, text):
    return unet(latents, 500, encoder_hidden_states=text, return_dict=False)[0]


def close(one, other):
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5)


# --- rows ---


def test_rows_are_found_by_role_and_sample():
    context = Context(rows=rows_of(("uncond", "cond"), 3))
    assert context.rows[4] == Row("cond", 1)
    assert Rows().find(context, 6) == [0, 1, 2, 3, 4, 5]
    assert Rows("cond").find(context, 6) == [3, 4, 5]
    assert Rows(sample=2).find(context, 6) == [2, 5]
    assert Rows("cond", 1).find(context, 6) == [4]
    with pytest.raises(ThisnessError, match="2 rows but the roles of 6"):
        Rows("cond").find(context, 2)


def test_the_sampler_says_which_row_is_what():
    base = tiny.base()
    seen = []

    class Watch(Intervention):
        def qkv(self, site, attn, q, k, v, context):
            seen.append((context.step, context.steps, context.timestep, context.rows, len(q)))
            return q, k, v

    for guidance, roles in ((3.0, ("uncond", "cond")), (1.0, ("cond",))):
        seen.clear()
        options = SamplingOptions(steps=2, guidance=guidance)
        sample(base, encode(base, "a dog"), None, (0, 1), options, interventions=[Watch()])
        times = [501.0, 1.0]
        expected = [(step, 2, times[step], rows_of(roles, 2), 2 * len(roles)) for step in range(2) for _ in range(8)]
        assert seen == expected


# --- capture ---


def test_captured_maps_are_the_softmax_of_queries_and_keys(unet):
    """Computed again, head by head, from what the projections of each site put out."""
    latents, text = noise(2, 4, 8, 8), noise(2, 6, 16, seed=1)
    projected, hooks = {}, []
    for name in sites_of(unet):
        attention = unet.get_submodule(name)
        for part in ("to_q", "to_k"):

            def keep(module, arguments, output, key=(name, part)):
                projected[key] = output

            hooks.append(getattr(attention, part).register_forward_hook(keep))
    maps = CaptureMaps(Where(), rows=Rows())
    with attached(unet, maps):
        call(unet, latents, text)
    for hook in hooks:
        hook.remove()
    assert {name for _, name in maps.maps} == set(sites_of(unet))
    for (step, name), found in maps.maps.items():
        heads = unet.get_submodule(name).heads
        q, k = projected[name, "to_q"], projected[name, "to_k"]
        assert step == 0 and found.shape == (2, q.shape[1], k.shape[1])
        width = q.shape[-1] // heads
        expected = torch.zeros_like(found)
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = torch.einsum("bqd,bkd->bqk", q[..., part], k[..., part]) / width**0.5
            weights = torch.exp(scores - scores.amax(-1, keepdim=True))
            expected += weights / weights.sum(-1, keepdim=True) / heads
        assert torch.allclose(found, expected, atol=1e-6)
        assert torch.allclose(found.sum(-1), torch.ones(found.shape[:-1]), atol=1e-5)
        assert found.std(-1).max() > 0.01  # not the uniform map that anything would pass with


def test_looking_changes_no_bit_of_the_pictures():
    base = tiny.base()
    options, conditioning = SamplingOptions(steps=3, guidance=3.0), encode(base, "a dog on the beach")
    maps = CaptureMaps(Where())
    watched = sample(base, conditioning, None, (0, 1), options, interventions=[maps])
    assert torch.equal(watched, sample(base, conditioning, None, (0, 1), options))
    assert {step for step, _ in maps.maps} == {0, 1, 2} and len(maps.maps) == 3 * 8
    assert all(len(each) == 2 for each in maps.maps.values())  # the rows of the sentence, not of the negative


def test_the_average_is_over_steps_and_sites_of_one_grid(unet):
    maps = CaptureMaps(rows=Rows())
    with attached(unet, maps) as context:
        for context.step in range(2):
            call(unet, noise(1, 4, 8, 8, seed=context.step), noise(1, 6, 16, seed=1))
    fine = [each for each in maps.maps.values() if each.shape[1] == 64]
    coarse = [each for each in maps.maps.values() if each.shape[1] == 16]
    assert len(fine) == 6 and len(coarse) == 2
    maps.maps = {(0, str(index)): each for index, each in enumerate(fine)}
    assert torch.allclose(maps.average(), torch.stack(fine).mean(0))
    maps.maps |= {(1, str(index)): each for index, each in enumerate(coarse)}
    average = maps.average()
    assert average.shape == (1, 64, 6)
    assert torch.allclose(average.sum(-1), torch.ones(1, 64), atol=1e-5)
    pooled = maps.average(side=4)
    grid = average.reshape(8, 8, 6).reshape(4, 2, 4, 2, 6).mean((1, 3)).reshape(16, 6)
    assert pooled.shape == (1, 16, 6) and torch.corrcoef(torch.stack([pooled.flatten(), grid.flatten()]))[0, 1] > 0.9


def test_finer_grids_than_the_cap_are_passed_over(unet):
    maps = CaptureMaps(Where(), rows=Rows(), max_resolution=4)
    with attached(unet, maps):
        call(unet, noise(1, 4, 8, 8), noise(1, 6, 16))
    assert {name.split(".")[0] for _, name in maps.maps} == {"mid_block"}


def test_an_average_of_nothing_is_refused():
    with pytest.raises(ThisnessError, match="no attention map was recorded"):
        CaptureMaps().average()


# --- swap ---


def test_swapped_keys_and_values_are_the_other_rows_sentence(unet):
    """Cross-attention to another row's text is a run with that text, as a UNet reads it nowhere else."""
    latents, text = noise(2, 4, 8, 8), noise(2, 6, 16, seed=1)
    with attached(unet, SwapKeysValues(Rows(sample=1), Rows(sample=0), CROSS)) as context:
        context.rows = rows_of(("cond",), 2)
        swapped = call(unet, latents, text)
    assert close(swapped[0:1], call(unet, latents[0:1], text[1:2]))
    assert close(swapped[1:2], call(unet, latents[1:2], text[1:2]))  # the source is as it was
    assert not close(swapped[0:1], call(unet, latents[0:1], text[0:1]))


def test_several_targets_take_one_source_or_one_each(unet):
    latents, text = noise(3, 4, 8, 8), noise(3, 6, 16, seed=1)

    def swapped(source, target):
        with attached(unet, SwapKeysValues(source, target, CROSS)) as context:
            context.rows = (Row("a", 0), Row("b", 0), Row("b", 1))
            return call(unet, latents, text)

    assert close(swapped(Rows("a"), Rows("b")), call(unet, latents, text[[0, 0, 0]]))
    assert close(swapped(Rows(sample=0), Rows("b")), call(unet, latents, text[[0, 0, 1]]))
    with pytest.raises(ThisnessError, match="cannot swap rows"):
        swapped(Rows("b"), Rows("a"))
    with pytest.raises(ThisnessError, match="cannot swap rows"):
        swapped(Rows("nobody"), Rows("a"))


def test_swapped_self_attention_at_one_site(unet):
    """softmax(q of the target, k of the source) v of the source, computed by hand."""
    name = "mid_block.attentions.0.transformer_blocks.0.attn1"
    attention = unet.get_submodule(name)
    inputs, outputs = [], []
    before = attention.to_q.register_forward_hook(lambda module, arguments, output: inputs.append(arguments[0]))
    after = attention.register_forward_hook(lambda module, arguments, output: outputs.append(output))
    for keys, values in ((True, True), (True, False), (False, True)):
        inputs.clear(), outputs.clear()
        swap = SwapKeysValues(Rows(sample=1), Rows(sample=0), Where(names=(name,)), keys=keys, values=values)
        with attached(unet, swap) as context:
            context.rows = rows_of(("cond",), 2)
            call(unet, noise(2, 4, 8, 8), noise(2, 6, 16, seed=1))
        (hidden,), (found,) = inputs, outputs

        def split(tensor):
            return tensor.unflatten(-1, (attention.heads, -1)).transpose(0, 1)

        q = split(attention.to_q(hidden[0]))
        k = split(attention.to_k(hidden[1 if keys else 0]))
        v = split(attention.to_v(hidden[1 if values else 0]))
        weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1)
        expected = attention.to_out[0]((weights @ v).transpose(0, 1).flatten(1))
        assert torch.allclose(found[0], expected, atol=1e-5), (keys, values)
    before.remove(), after.remove()


def test_swapping_acts_in_its_steps_only():
    base = tiny.base()
    options, conditioning = SamplingOptions(steps=4, guidance=1.0), encode(base, "a dog on the beach")
    latents = {}

    def run(*interventions):
        steps = []
        sample(base, conditioning, None, (0, 1), options, interventions=interventions, on_step=steps.append)
        return [step.latents for step in steps]

    latents = run()
    late = run(SwapKeysValues(Rows("cond", 1), Rows("cond", 0), Where(kinds=("self",), steps=range(2, 4))))
    assert [torch.equal(a, b) for a, b in zip(latents, late, strict=True)] == [True, True, False, False]
    assert torch.equal(latents[3][1], late[3][1])  # the source


def test_a_swap_of_nothing_is_refused():
    with pytest.raises(ConfigurationError, match="changes nothing"):
        SwapKeysValues(Rows(), Rows(), keys=False, values=False)


# --- inject ---


def injected(unet, latents, text, more, rows=None, context_rows=None):
    """Keys and values of more text, at every cross-attention."""
    cache = {}
    for name, site in sites_of(unet).items():
        if site.kind == "cross":
            attention = unet.get_submodule(name)
            with torch.no_grad():
                cache[0, name] = (attention.to_k(more), attention.to_v(more))
    with attached(unet, InjectKeysValues(cache, rows=rows or Rows())) as context:
        context.rows = context_rows or rows_of(("cond",), len(latents))
        return call(unet, latents, text)


def test_injected_keys_and_values_are_a_longer_sentence(unet):
    latents, text, more = noise(2, 4, 8, 8), noise(2, 6, 16, seed=1), noise(2, 3, 16, seed=2)
    found = injected(unet, latents, text, more)
    assert close(found, call(unet, latents, torch.cat([text, more], 1)))
    assert not close(found, call(unet, latents, text))
    one_for_all = injected(unet, latents, text, more[:1])
    assert close(one_for_all, call(unet, latents, torch.cat([text, more[[0, 0]]], 1)))


def test_rows_that_are_not_meant_do_not_see_what_is_injected(unet):
    latents, text, more = noise(3, 4, 8, 8), noise(3, 6, 16, seed=1), noise(2, 3, 16, seed=2)
    rows = (Row("cond", 0), Row("uncond", 0), Row("cond", 1))
    found = injected(unet, latents, text, more, Rows("cond"), rows)
    assert close(found[1:2], call(unet, latents[1:2], text[1:2]))
    for row, index in ((0, 0), (2, 1)):
        longer = torch.cat([text[row : row + 1], more[index : index + 1]], 1)
        assert close(found[row : row + 1], call(unet, latents[row : row + 1], longer))
    with pytest.raises(ThisnessError, match="2 rows were recorded"):
        injected(unet, latents, text, more, Rows("uncond"), rows)


def test_several_injections_for_other_rows(unet):
    """Each hides its own keys and no others."""
    latents, text = noise(2, 4, 8, 8), noise(2, 6, 16, seed=1)
    more = [noise(1, 3, 16, seed=2), noise(1, 2, 16, seed=3)]
    caches = []
    for each in more:
        caches.append({})
        for name, site in sites_of(unet).items():
            if site.kind == "cross":
                attention = unet.get_submodule(name)
                with torch.no_grad():
                    caches[-1][0, name] = (attention.to_k(each), attention.to_v(each))
    injections = [InjectKeysValues(cache, rows=Rows(sample=row)) for row, cache in enumerate(caches)]
    with attached(unet, *injections) as context:
        context.rows = rows_of(("cond",), 2)
        found = call(unet, latents, text)
    for row in range(2):
        longer = torch.cat([text[row : row + 1], more[row]], 1)
        assert close(found[row : row + 1], call(unet, latents[row : row + 1], longer))


def test_recorded_keys_and_values_inject_the_reference_itself():
    """Keys and values that are there twice change nothing: softmax over doubled keys averages the same values."""
    base = tiny.base()
    options, conditioning = SamplingOptions(steps=3, guidance=3.0), encode(base, "a dog on the beach")
    record = RecordKeysValues()
    plain = sample(base, conditioning, None, (0,), options, interventions=[record])
    assert torch.equal(plain, sample(base, conditioning, None, (0,), options))
    assert len(record.cache) == 3 * 4
    same = sample(base, conditioning, None, (0,), options, interventions=[InjectKeysValues(record.cache)])
    assert torch.allclose(same, plain, atol=1e-4)
    other = sample(base, conditioning, None, (1,), options)
    with_reference = sample(base, conditioning, None, (1,), options, interventions=[InjectKeysValues(record.cache)])
    assert (with_reference - other).abs().max() > 1e-3
    first = {key: value for key, value in record.cache.items() if key[0] == 0}
    at_first = []
    sample(
        base, conditioning, None, (1,), options, interventions=[InjectKeysValues(first)],
        on_step=lambda step: at_first.append(step.latents),
    )  # fmt: skip
    assert not torch.equal(at_first[0], other)


def test_an_empty_cache_is_refused():
    with pytest.raises(ConfigurationError, match="empty cache"):
        InjectKeysValues({})


# --- mask ---


def test_hidden_tokens_are_as_if_they_were_not_there(unet):
    latents, text = noise(2, 4, 8, 8), noise(2, 6, 16, seed=1)
    with attached(unet, MaskAttention.hide([1, 4])):
        found = call(unet, latents, text)
    assert close(found, call(unet, latents, text[:, [0, 2, 3, 5]]))
    assert not close(found, call(unet, latents, text))
    with attached(unet, MaskAttention.hide([1, 4], rows=Rows(sample=1))) as context:
        context.rows = rows_of(("cond",), 2)
        found = call(unet, latents, text)
    assert close(found[:1], call(unet, latents[:1], text[:1]))
    assert close(found[1:], call(unet, latents[1:], text[1:, [0, 2, 3, 5]]))


def test_a_bias_multiplies_the_weight_of_a_key(unet):
    """log 3 on a token is that token said three times."""
    latents, text = noise(1, 4, 8, 8), noise(1, 4, 16, seed=1)
    bias = torch.tensor([0.0, 0.0, 3.0, 0.0]).clamp(min=1).log()
    with attached(unet, MaskAttention(bias)):
        found = call(unet, latents, text)
    assert close(found, call(unet, latents, text[:, [0, 1, 2, 2, 2, 3]]))


def test_a_bias_for_each_row_and_position(unet):
    latents, text = noise(2, 4, 8, 8), noise(2, 4, 16, seed=1)
    token = torch.tensor([0, 3])

    def bias(site, queries, keys):
        made = torch.zeros(2, 1, queries, keys)
        made[0, ..., token[0]] = made[1, ..., token[1]] = float("-inf")
        return made

    with attached(unet, MaskAttention(bias)):
        found = call(unet, latents, text)
    for row, kept in ((0, [1, 2, 3]), (1, [0, 1, 2])):
        assert close(found[row : row + 1], call(unet, latents[row : row + 1], text[row : row + 1, kept]))


def test_hiding_everything_is_refused(unet):
    for tokens in ([0, 1, 2, 3], [9]):
        with pytest.raises(ThisnessError, match="cannot hide tokens"), attached(unet, MaskAttention.hide(tokens)):
            call(unet, noise(1, 4, 8, 8), noise(1, 4, 16))


# --- probabilities, inputs, schedule ---


def test_edited_probabilities_are_used(unet):
    """Attention to the first token alone is a sentence of that token alone."""

    class First(Intervention):
        where = CROSS
        edits_probs = True

        def probs(self, site, probs, context):
            assert torch.allclose(probs.sum(-1), torch.ones(probs.shape[:-1]), atol=1e-5)
            return torch.nn.functional.one_hot(torch.zeros(probs.shape[:-1], dtype=torch.long), probs.shape[-1]).float()

    latents, text = noise(2, 4, 8, 8), noise(2, 6, 16, seed=1)
    with attached(unet, First()):
        found = call(unet, latents, text)
    assert close(found, call(unet, latents, text[:, :1]))


def test_another_text_for_one_layer(unet):
    """Layer-wise text: with the other text at every layer it is a run with that text."""
    latents, text, other = noise(1, 4, 8, 8), noise(1, 6, 16, seed=1), noise(1, 6, 16, seed=2)

    class Other(Intervention):
        def __init__(self, layers):
            self.where = Where(kinds=("cross",), layers=layers)

        def inputs(self, site, hidden, encoded, context):
            return hidden, other

    with attached(unet, Other(range(4))):
        assert close(call(unet, latents, text), call(tiny.unet(), latents, other))
    with attached(unet, Other([1])):
        partly = call(unet, latents, text)
    assert not close(partly, call(unet, latents, text)) and not close(partly, call(unet, latents, other))


def test_extra_attention_adds_to_the_output(unet):
    """A second attention to the same keys, mixed half and half, changes nothing; added in full it does."""

    class Same(Intervention):
        where = CROSS

        def __init__(self, own, weight):
            self.own, self.weight = own, weight

        def qkv(self, site, attn, q, k, v, context):
            self.kv = [each.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for each in (k, v)]
            return q, k, v

        def extra(self, site, attn, q, out, context):
            return self.own * out + self.weight * torch.nn.functional.scaled_dot_product_attention(q, *self.kv)

    latents, text = noise(1, 4, 8, 8), noise(1, 6, 16, seed=1)
    plain = call(unet, latents, text)
    with attached(unet, Same(0.5, 0.5)):
        assert close(call(unet, latents, text), plain)
    with attached(unet, Same(1.0, 0.5)):
        assert not close(call(unet, latents, text), plain)


def test_predictions_and_latents_can_be_changed_between_steps():
    base = tiny.base()
    options, conditioning = SamplingOptions(steps=3, guidance=3.0), encode(base, "a dog")

    class Frozen(Intervention):
        """Puts the latents back to what they were before the step."""

        where = Where(steps=[1])

        def prediction(self, latents, prediction, context):
            self.before = latents
            return prediction

        def latents(self, latents, context):
            return self.before

    class Zero(Intervention):
        def prediction(self, latents, prediction, context):
            return prediction * 0

    seen = []
    sample(base, conditioning, None, (0,), options, interventions=[Frozen()], on_step=seen.append)
    assert torch.equal(seen[0].latents, seen[1].latents) and not torch.equal(seen[1].latents, seen[2].latents)
    found = sample(base, conditioning, None, (0,), options, interventions=[Zero()])
    alphas = base.scheduler.alphas_cumprod
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    final = base.scheduler.final_alpha_cumprod
    times = [667, 334, 1]
    assert len(alphas) == 1000
    assert torch.allclose(found, start * (final / alphas[times[0]]).sqrt(), rtol=1e-3)  # DDIM with no noise predicted
