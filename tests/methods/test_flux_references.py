"""References among the tokens of a FLUX transformer. Oracles: the plain model, the plain model on the whole sequence,
one mode against the other under a mask, a pass over the reference alone."""

from __future__ import annotations

import pytest
import tiny_flux
import torch

from thisness.attention import Intervention, MaskAttention, RecordKeysValues, Rows, Where, attached
from thisness.bases.flux import position_ids
from thisness.errors import ArtefactError, ConfigurationError
from thisness.methods.flux_references import (
    Reference,
    References,
    RowLora,
    attention_mask,
    fresh_lora,
    keys_and_values,
    overlapping,
    reference_ids,
    reference_modulation,
    truncated,
)
from thisness.methods.ominicontrol import shift_in_tokens, shifted_ids

JOINT = Where(kinds=("dual", "single"))
TEXT, SIDE = 6, 4
NOISY = SIDE * SIDE
FIRST = "transformer_blocks.0.attn"


@pytest.fixture(scope="module")
def model():
    return tiny_flux.transformer()


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lora_of(model, preset="full", seed=3, size=0.3):
    tensors = {k: p.detach() for k, p in fresh_lora(model, preset, rank=4, seed=seed).items()}
    drawn = torch.Generator().manual_seed(seed)
    return {k: torch.randn(p.shape, generator=drawn) * size if "lora_B" in k else p for k, p in tensors.items()}


def reference(seed=7, rows=2, columns=4, shift=None):
    return Reference(noise(rows * columns, 64, seed=seed), reference_ids(rows, columns, shift or (0, -columns)))


def call(model, tokens=None, text=None, pooled=None, time=0.5, ids=None, **more):
    tokens = noise(1, NOISY, 64) if tokens is None else tokens
    text = noise(1, TEXT, 32, seed=1) if text is None else text
    pooled = noise(1, 16, seed=2).expand(len(tokens), -1) if pooled is None else pooled
    return model(
        hidden_states=tokens,
        encoder_hidden_states=text.expand(len(tokens), -1, -1),
        pooled_projections=pooled,
        timestep=torch.full((len(tokens),), time),
        guidance=torch.full((len(tokens),), 3.5),
        txt_ids=torch.zeros(text.shape[1], 3),
        img_ids=position_ids(SIDE, SIDE) if ids is None else ids,
        return_dict=False,
        **more,
    )[0]


@torch.no_grad()
def run(model, references, *more, **kwargs):
    with references.installed(model), attached(model, references, *more):
        return call(model, **kwargs)


def close(one, other, atol=2e-6):
    return torch.allclose(one, other, rtol=1e-5, atol=atol * max(float(other.abs().max()), 1.0))


# --- positions (oracle 17) ---


@pytest.mark.parametrize("height, width, side", [(32, 32, 32), (64, 32, 32), (32, 64, 32), (48, 32, 32), (32, 48, 20)])
def test_a_shift_of_minus_its_width_is_free_of_overlap_for_any_picture(height, width, side):
    noisy = position_ids(height, width)
    assert not overlapping(noisy, reference_ids(side, side, shift_in_tokens("-w", side, side)))


def test_a_shift_of_plus_its_width_overlaps_wider_pictures(model):
    shift = shift_in_tokens("+w", 32, 32)
    assert not overlapping(position_ids(32, 32), reference_ids(32, 32, shift))
    assert overlapping(position_ids(64, 64), reference_ids(32, 32, shift))
    wrong = References([reference(columns=2, shift=(0, 2))], RowLora({}))
    with pytest.raises(ConfigurationError, match="stands at positions of the picture itself, 4 by 4 tokens"):
        run(model, wrong)


def test_a_shift_of_the_index_leaves_places_as_they_are_and_never_overlaps():
    noisy, ids = position_ids(8, 8), shifted_ids("index", 8, 8)
    assert torch.equal(ids[:, 1:], noisy[:, 1:]) and not overlapping(noisy, ids)
    assert not overlapping(position_ids(32, 64), shifted_ids("index", 16, 16, compact=2))
    assert torch.equal(shifted_ids("-w", 4, 6), reference_ids(4, 6, (0, -6)))
    with pytest.raises(ConfigurationError, match="expected -w, .w, -h, .h, index, or two numbers"):
        shifted_ids("indices", 4, 4)


def test_compact_references_stand_in_the_middle_of_what_they_stand_for():
    ids = reference_ids(2, 2, (0, 0), compact=4)
    assert ids[:, 1].tolist() == [1.5, 1.5, 5.5, 5.5] and ids[:, 2].tolist() == [1.5, 5.5, 1.5, 5.5]
    whole = position_ids(8, 8)[:, 1:]
    for row in range(2):
        for column in range(2):
            inside = whole[(whole[:, 0] // 4 == row) & (whole[:, 1] // 4 == column)]
            assert torch.equal(inside.mean(0), ids[2 * row + column, 1:])
    assert shift_in_tokens("-w", 16, 16, 2) == (0, -32) and shift_in_tokens("0,-32", 4, 4) == (0, -32)
    with pytest.raises(ConfigurationError, match="shift 'left': expected"):
        shift_in_tokens("left", 4, 4)


# --- the mask ---


def test_the_mask_is_the_papers_table():
    mask = attention_mask(4, 2, [1, 1], "joint", concepts=[[1], [2]])
    yes, no = True, False
    assert mask.tolist() == [
        # text: irrelevant, of a, of b, irrelevant; noisy; reference a, reference b
        [yes, yes, yes, yes, yes, yes, no, no],
        [yes, yes, yes, yes, yes, yes, yes, no],
        [yes, yes, yes, yes, yes, yes, no, yes],
        [yes, yes, yes, yes, yes, yes, no, no],
        [yes, yes, yes, yes, yes, yes, yes, yes],
        [yes, yes, yes, yes, yes, yes, yes, yes],
        [yes, yes, yes, yes, yes, yes, yes, no],
        [yes, yes, yes, yes, yes, yes, no, yes],
    ]
    alone = attention_mask(4, 2, [1, 1], "independent")
    assert alone[:6].all() and alone[6].tolist() == [no] * 6 + [yes, no] and alone[7].tolist() == [no] * 7 + [yes]
    assert attention_mask(4, 2, [3], "joint") is None


# --- oracles 1, 3 ---


@pytest.mark.parametrize("mode", ["independent", "joint"])
def test_the_model_is_what_it_was_and_without_a_reference_nothing_changes(model, mode):
    with torch.no_grad():
        plain = call(model)
    before = {name: (id(each), "forward" in each.__dict__) for name, each in model.named_modules()}
    lora = RowLora(lora_of(model))
    with lora.attached(model), torch.no_grad():
        assert torch.equal(call(model), plain)  # adapters that act on no row
    references = References([reference()], lora, mode)
    assert not close(run(model, references), plain, 1e-3)
    with pytest.raises(RuntimeError), references.installed(model):
        raise RuntimeError
    assert {name: (id(each), "forward" in each.__dict__) for name, each in model.named_modules()} == before
    assert not model._forward_hooks and not model._forward_pre_hooks and lora.first is None
    with torch.no_grad():
        assert torch.equal(call(model), plain)


@torch.no_grad()
def test_rows_modulated_as_the_picture_are_the_stock_model_on_the_whole_sequence(model, monkeypatch):
    one = reference()
    pooled = noise(1, 16, seed=2)
    temb = model.time_text_embed(torch.tensor([500.0]), torch.tensor([3500.0]), pooled)
    monkeypatch.setattr("thisness.methods.flux_references.reference_modulation", lambda *_: temb)
    ours = run(model, References([one], RowLora({}), "joint"))
    whole = torch.cat([noise(1, NOISY, 64), one.tokens[None]], 1)
    stock = call(model, whole, ids=torch.cat([position_ids(SIDE, SIDE), one.ids]))
    assert torch.equal(ours, stock[:, :NOISY])


@torch.no_grad()
def test_modulation_is_that_of_a_clean_picture_under_guidance_1():
    for guided in (True, False):
        model = tiny_flux.transformer(guidance_embeds=guided)
        seen = []
        hook = model.time_text_embed.register_forward_hook(lambda _, args, out, seen=seen: seen.append(out))
        pooled = noise(1, 16, seed=2)
        model(
            hidden_states=noise(1, NOISY, 64), encoder_hidden_states=noise(1, TEXT, 32), pooled_projections=pooled,
            timestep=torch.zeros(1), guidance=torch.ones(1) if guided else None, txt_ids=torch.zeros(TEXT, 3),
            img_ids=position_ids(SIDE, SIDE),
        )  # fmt: skip
        hook.remove()
        assert torch.equal(reference_modulation(model, pooled), seen[0])


# --- oracles 5, 7: the cache ---


def test_kept_keys_and_values_give_the_same_bits(model):
    lora = RowLora(lora_of(model))
    kept = References([reference()], lora, cache=True)
    anew = References([reference()], lora, cache=False)
    for step, time in enumerate((0.9, 0.5, 0.1)):
        tokens = noise(2, NOISY, 64, seed=20 + step)
        assert torch.equal(run(model, kept, tokens=tokens, time=time), run(model, anew, tokens=tokens, time=time))
    assert (kept.computed, anew.computed) == (1, 3)
    run(model, kept, pooled=noise(1, 16, seed=5))  # another sentence
    assert kept.computed == 2
    run(model, kept)
    assert kept.computed == 2
    null = References([reference()], lora, null_pooled=True)
    for seed in (5, 6):
        run(model, null, pooled=noise(1, 16, seed=seed))
    assert null.computed == 1


def test_independent_is_joint_under_the_mask(model):
    """Plan I against plan J: both modulate and adapt alike, one reads keys of its own pass, the other masks."""
    lora = RowLora(lora_of(model))
    items = [reference(), reference(8, 1, 3)]
    passed = run(model, References(items, lora, "independent"))
    masked = MaskAttention(
        torch.zeros(1)
        .new_zeros(TEXT + NOISY + 11, TEXT + NOISY + 11)
        .masked_fill(~attention_mask(TEXT, NOISY, [8, 3], "independent"), float("-inf"))
    )
    joint = run(model, References(items, lora, "joint"), masked)
    assert close(joint, passed)
    assert not close(run(model, References(items, lora, "joint")), passed, 1e-3)


class Watch(Intervention):
    """Keeps keys and values of the rows behind text and picture."""

    where = JOINT

    def __init__(self):
        self.kept = {}

    def qkv(self, site, attn, q, k, v, context):
        self.kept[site.name] = k[:, TEXT + NOISY :].clone(), v[:, TEXT + NOISY :].clone()
        return q, k, v


@pytest.mark.parametrize("mode, same", [("independent", True), ("joint", False)])
def test_keys_of_a_reference_depend_on_nothing_else_only_where_it_is_independent(model, mode, same):
    found = []
    for more in ({}, {"text": noise(1, TEXT, 32, seed=30)}, {"tokens": noise(1, NOISY, 64, seed=31)}, {"time": 0.1}):
        watch = Watch()
        run(model, References([reference()], RowLora(lora_of(model)), mode, cache=False), watch, **more)
        found.append(watch.kept)
    last = "single_transformer_blocks.1.attn"
    for other in found[1:]:
        assert torch.equal(other[FIRST][0], found[0][FIRST][0])
        assert torch.equal(other[last][0], found[0][last][0]) == same


@torch.no_grad()
def test_keys_of_the_joint_pass_in_the_first_layer_are_those_of_a_pass_alone(model):
    one, lora, watch = reference(), RowLora(lora_of(model)), Watch()
    run(model, References([one], lora, "joint"), watch)
    with lora.attached(model):
        modulation = reference_modulation(model, noise(1, 16, seed=2))
        alone = keys_and_values(model, one.tokens[None], one.ids, modulation, lora)
    for part in range(2):
        assert close(watch.kept[FIRST][part], alone[FIRST][part])


def test_rows_of_a_batch_with_other_sentences_read_what_they_would_alone(model):
    pooled = noise(2, 16, seed=40)
    tokens = noise(2, NOISY, 64)
    both = run(model, References([reference()], RowLora(lora_of(model))), tokens=tokens, pooled=pooled)
    for row in range(2):
        own = References([reference()], RowLora(lora_of(model)))
        alone = run(model, own, tokens=tokens[row : row + 1], pooled=pooled[row : row + 1])
        assert close(both[row : row + 1], alone, 1e-5)


# --- oracle 8: rows of low-rank weights ---


@pytest.mark.parametrize("mode", ["independent", "joint"])
def test_low_rank_weights_touch_rows_of_references_alone(model, mode):
    tensors = lora_of(model)
    zero = {key: torch.zeros_like(each) if "lora_B" in key else each for key, each in tensors.items()}
    found = {}
    for name, weights in (("none", {}), ("zero", zero), ("own", tensors)):
        recorded = RecordKeysValues(Where(names=[FIRST]), rows=Rows())
        seen = []
        block = model.transformer_blocks[0]
        hooks = [
            part.register_forward_hook(lambda _, args, out, seen=seen: seen.append(out[0].clone()))
            for part in (block.norm1.linear, block.norm1_context.linear)
        ]
        out = run(model, References([reference()], RowLora(weights), mode), recorded)
        for hook in hooks:
            hook.remove()
        found[name] = (*recorded.cache[0, FIRST], out, seen)
    main = TEXT + NOISY
    for at in range(2):
        assert torch.equal(found["own"][at][:, :main], found["none"][at][:, :main])
        assert torch.equal(found["zero"][at], found["none"][at])
        if mode == "joint":
            assert not close(found["own"][at][:, main:], found["none"][at][:, main:], 1e-3)
    assert torch.equal(found["zero"][2], found["none"][2]) and not close(found["own"][2], found["none"][2], 1e-3)
    of_main = 0 if mode == "joint" else 1  # independent: first the reference's own pass
    assert torch.equal(found["own"][3][of_main], found["none"][3][of_main])


def test_presets_name_the_layers_of_the_official_code():
    full = {key.rsplit(".lora", 1)[0] for key in fresh_lora(tiny_flux.transformer(), "full", 4)}
    assert {name for name in full if not name.startswith("single")} == {
        "x_embedder",
        *(
            f"transformer_blocks.{at}.{end}"
            for at in range(2)
            for end in ("norm1.linear", "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "ff.net.2")
        ),
    }
    last = {name.split("1.", 1)[1] for name in full if name.startswith("single_transformer_blocks.1.")}
    assert last == {"norm.linear", "attn.to_k", "attn.to_v"}  # the others would get no gradient
    few = {key.rsplit(".lora", 1)[0] for key in fresh_lora(tiny_flux.transformer(), "qk", 4)}
    assert {name.split("0.", 1)[1] for name in few if ".0." in name} == {
        "norm1.linear", "attn.to_q", "attn.to_k", "norm.linear",
    }  # fmt: skip


def test_the_published_number_of_parameters():
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        whole = FluxTransformer2DModel(guidance_embeds=True)
    left_out = 16 * ((3072 + 3072) + (3072 + 12288) + (15360 + 3072))  # of the last block: no gradient reaches them
    made = fresh_lora_sizes(whole)
    assert round((made + left_out) / 1e6, 2) == 57.95


def fresh_lora_sizes(whole):
    from thisness.methods.flux_references import TARGETS

    dual, single, _ = TARGETS["full"]
    last = len(whole.single_transformer_blocks) - 1
    names = ["x_embedder"]
    names += [f"transformer_blocks.{at}.{end}" for at in range(19) for end in dual]
    skipped = ("attn.to_q", "proj_mlp", "proj_out")
    names += [
        f"single_transformer_blocks.{at}.{end}" for at in range(38) for end in single if at < last or end not in skipped
    ]
    layers = [whole.get_submodule(name) for name in names]
    return sum(16 * (each.in_features + each.out_features) for each in layers)


# --- oracles 15, 16: several ---


@pytest.mark.parametrize("mode", ["independent", "joint"])
def test_the_order_of_references_does_not_matter(model, mode):
    lora = RowLora(lora_of(model))
    one, other = reference(), reference(8)
    first, second = (run(model, References(items, lora, mode)) for items in ([one, other], [other, one]))
    assert close(first, second, 1e-5)
    assert not close(first, run(model, References([one], lora, mode)), 1e-3)


def test_a_second_reference_changes_nothing_of_the_first(model):
    lora = RowLora(lora_of(model))
    kept = {}
    for mode in ("independent", "joint"):
        for count, items in (("one", [reference()]), ("two", [reference(), reference(8)])):
            watch = Watch()
            run(model, References(items, lora, mode), watch)
            kept[mode, count] = {name: k[:, :8] for name, (k, _) in watch.kept.items()}
    for name in kept["independent", "one"]:
        assert torch.equal(kept["independent", "one"][name], kept["independent", "two"][name])
    assert close(kept["joint", "one"][FIRST], kept["joint", "two"][FIRST])


# --- strength ---


@pytest.mark.parametrize("mode", ["independent", "joint"])
def test_strength_goes_from_no_reference_to_the_trained_one(model, mode):
    with torch.no_grad():
        plain = call(model)
    lora = RowLora(lora_of(model))
    found = {s: run(model, References([reference()], lora, mode, strength=s)) for s in (0.0, 0.5, 1.0)}
    assert close(found[0.0], plain, 1e-5)
    assert close(found[1.0], run(model, References([reference()], lora, mode)))
    assert not close(found[0.5], found[1.0], 1e-3) and not close(found[0.5], plain, 1e-3)


# --- oracle 18: gradients ---


@pytest.mark.parametrize("mode", ["independent", "joint"])
def test_gradients_reach_the_low_rank_weights_alone_and_checkpointing_gives_the_same(mode):
    found = []
    for checkpointing in (False, True):
        model = tiny_flux.transformer().requires_grad_(False)
        weights = fresh_lora(model, "full", 4)
        last = "single_transformer_blocks.1"
        extra = {f"{last}.{end}": model.get_submodule(f"{last}.{end}") for end in ("attn.to_q", "proj_mlp", "proj_out")}
        for name, layer in extra.items():
            weights[f"{name}.lora_A.weight"] = torch.nn.Parameter(noise(4, layer.in_features, seed=50))
            weights[f"{name}.lora_B.weight"] = torch.nn.Parameter(torch.zeros(layer.out_features, 4))
        with torch.no_grad():
            for key, each in weights.items():
                if "lora_B" in key:
                    each.copy_(noise(*each.shape, seed=51) * 0.1)
        if checkpointing:
            model.train().enable_gradient_checkpointing()
        references = References([reference()], RowLora(weights), mode)
        with references.installed(model), attached(model, references):
            tokens = noise(1, NOISY, 64).requires_grad_(checkpointing)  # reentrant checkpoints want an input with one
            call(model, tokens).square().mean().backward()
        assert all(each.grad is None for each in model.parameters())
        found.append({key: None if each.grad is None else each.grad.clone() for key, each in weights.items()})
    for key, grad in found[0].items():
        dead = any(key.startswith(f"{last}.{end}") for end in ("attn.to_q", "proj_mlp", "proj_out"))
        assert (grad is None or not grad.any()) == dead, key
        if not dead:
            assert torch.allclose(grad, found[1][key], rtol=1e-4, atol=1e-7), key


# --- refusals ---


def test_weights_of_other_models_and_kinds_are_refused(model):
    good = lora_of(model)
    text = {f"transformer_blocks.0.attn.add_q_proj.{end}": noise(4, 4) for end in ("lora_A.weight", "lora_B.weight")}
    with pytest.raises(ArtefactError, match="rows of references never pass"):
        RowLora({**good, **text})

    def attach(weights, other):
        with RowLora(weights).attached(other):
            pass

    with pytest.raises(ArtefactError, match="for another model: .*no layer transformer_blocks.1."):
        attach(good, tiny_flux.transformer(num_layers=1))
    with pytest.raises(ArtefactError, match=r"x_embedder is \(4, 64\) and \(48, 4\): expected \(rank, 64\) and \(24"):
        attach(good, tiny_flux.transformer(attention_head_dim=6, axes_dims_rope=(2, 2, 2)))


@pytest.mark.parametrize("kind", ["merged", "dora"])
def test_adapters_that_cannot_be_split_by_rows_are_refused(kind):
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    model = tiny_flux.transformer()
    inject_adapter_in_model(LoraConfig(target_modules=["x_embedder"], use_dora=kind == "dora"), model, "style")
    layer = model.x_embedder
    assert isinstance(layer, LoraLayer)
    if kind == "merged":
        layer.merge()
    lora = RowLora(lora_of(tiny_flux.transformer()))
    said = "merged into it" if kind == "merged" else "DoRA type"
    with pytest.raises(ConfigurationError, match=said), lora.attached(model):
        pass


def test_references_are_there_once(model):
    one, other = (References([reference()], RowLora({})) for _ in range(2))
    with one.installed(model), pytest.raises(ConfigurationError, match="already"), other.installed(model):
        pass


# --- oracle 6: the selective mask blocks the first hop alone ---


@pytest.mark.parametrize("mode", ["independent", "joint"])
def test_irrelevant_words_hear_of_a_reference_from_the_second_block_on(model, mode):
    lora, concept = RowLora(lora_of(model)), [2, 3]
    found = []
    for seed in (7, 8):
        references = References([reference(seed)], lora, mode)
        references.concepts = [concept]
        kept = []
        hooks = [
            block.register_forward_hook(lambda _, args, out, kept=kept: kept.append(out[0].clone()))
            for block in model.transformer_blocks
        ]
        run(model, references)
        for hook in hooks:
            hook.remove()
        found.append(kept[-2:])  # independent: after those of the pass over the reference alone
    others = [at for at in range(TEXT) if at not in concept]
    (one, two), (other_one, other_two) = found
    assert torch.equal(one[:, others], other_one[:, others]) and not close(one[:, concept], other_one[:, concept], 1e-3)
    assert not close(two[:, others], other_two[:, others], 1e-4)


def test_a_smaller_rank_keeps_what_is_nearest():
    torch.manual_seed(0)
    a, b = torch.randn(8, 12), torch.randn(20, 8)
    given = {"x.lora_A.weight": a, "x.lora_B.weight": b}
    made = truncated(given, 3)
    assert made["x.lora_A.weight"].shape == (3, 12) and made["x.lora_B.weight"].shape == (20, 3)
    values = torch.linalg.svdvals(b @ a)
    left = b @ a - made["x.lora_B.weight"] @ made["x.lora_A.weight"]
    assert float(left.norm()) == pytest.approx(float(values[3:].square().sum().sqrt()), rel=1e-4)
    assert truncated(given, 8) == given
