"""Oracles: the base and its own sampler, bit for bit; fifteen lines of attention; what the block computes by hand."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_ezigen import random_adapter, read, write_weights

import tiny
from thisness.attention import attached, rows_of
from thisness.concept import Concept
from thisness.conditioning import encode, encode_negative
from thisness.errors import ArtefactError, ConfigurationError
from thisness.files import save_tensors
from thisness.generation import generate
from thisness.methods.ezigen import (
    FEATURES,
    EZIGenSettings,
    covered,
    keys_values,
    prepared,
    reading,
    subject_features,
)
from thisness.methods.ezigen_adapter import (
    KeysValues,
    SubjectAttention,
    appearance_steps,
    first_step,
)
from thisness.methods.ezigen_import import read_released, released_names
from thisness.sampling import SamplingOptions, sample
from thisness.subject import Subject

OPTIONS = SamplingOptions(steps=5, guidance=3.0)


@pytest.fixture(scope="module")
def base():
    return tiny.base("v_prediction")


@pytest.fixture(scope="module")
def subject():
    pixels = np.random.default_rng(0).integers(0, 255, (2, 20, 16, 3), np.uint8)
    mask = np.zeros((20, 16), np.float32)
    mask[5:15, 4:12] = 1
    return Subject("rex", "dog", tuple(map(Image.fromarray, pixels)), (mask, mask[:, ::-1].copy()))


@pytest.fixture(scope="module")
def one(subject):
    return Subject("rex", "dog", subject.images[:1], subject.masks[:1])


@pytest.fixture(scope="module")
def weights(base, tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / "w", base, random_adapter(base))


def features_of(base, subject, masks=None):
    both = [prepared(i, m, 16) for i, m in zip(subject.images, subject.masks, strict=True)]
    return subject_features(base, [image for image, _ in both], encode(base, "a photo of a dog")), both


def draw(base, concept, seeds=(3,), **more):
    return generate(base, "a {subject} on the beach", concept=concept, seeds=seeds, options=OPTIONS, **more)


def pixels(generation):
    return [np.asarray(image) for image in generation.images]


@pytest.mark.parametrize("residual", ["plain", "official"])
def test_a_site_is_the_papers_attention(base, residual):
    """Oracle 11, with the projection of the concatenation."""
    site = random_adapter(base, residual).sites[0]
    draws = torch.Generator().manual_seed(1)
    width = site.norm.normalized_shape[0]
    hidden, features = torch.randn(2, 6, width, generator=draws), torch.randn(1, 9, width, generator=draws)
    ours = site(hidden, site.project(features), 0.8)
    u = torch.nn.functional.layer_norm(hidden, (width,), site.norm.weight, site.norm.bias)
    both = torch.cat([u, site.feature_scale * features.expand(2, -1, -1)], 1)
    q, k, v = u @ site.to_q.weight.T, both @ site.to_k.weight.T, both @ site.to_v.weight.T
    heads = []
    for h in range(site.heads):
        d = width // site.heads
        part = slice(h * d, (h + 1) * d)
        logits = torch.einsum("bqd,bkd->bqk", q[..., part], k[..., part]) / d**0.5
        heads.append(torch.einsum("bqk,bkd->bqd", logits.softmax(-1), v[..., part]))
    a = torch.cat(heads, -1) @ site.to_out.weight.T + site.to_out.bias
    wanted = hidden + 0.8 * (a + u) if residual == "official" else hidden + 0.8 * 0.7 * a
    assert torch.allclose(ours, wanted, atol=1e-5)
    absent = site(hidden, None)
    assert torch.allclose(absent, site(hidden, site.project(torch.zeros(1, 0, width))), atol=1e-6)
    assert not torch.allclose(absent, site(hidden, site.project(torch.zeros_like(features))), atol=1e-3)


def test_zero_features_dilute_the_softmax(base):
    """Oracle 17: M L_n zero keys count in the sum below, and add nothing above."""
    site = random_adapter(base).sites[0]
    width = site.norm.normalized_shape[0]
    hidden = torch.randn(1, 5, width, generator=torch.Generator().manual_seed(1))
    ours = site(hidden, site.project(torch.zeros(1, 7, width)))
    u = site.norm(hidden)
    q, k, v = (each(u).unflatten(-1, (site.heads, -1)) for each in (site.to_q, site.to_k, site.to_v))
    weights = torch.einsum("bqhd,bkhd->bhqk", q, k).div(q.shape[-1] ** 0.5).exp()
    a = torch.einsum("bhqk,bkhd->bqhd", weights / (weights.sum(-1, keepdim=True) + 7), v).flatten(2)
    assert torch.allclose(ours, hidden + 0.7 * site.to_out(a), atol=1e-5)


def test_duplicates_with_log_m_taken_off_change_nothing_and_order_does_not_matter(base):
    """Oracles 14 and 15."""
    site = random_adapter(base).sites[0]
    width = site.norm.normalized_shape[0]
    draws = torch.Generator().manual_seed(1)
    hidden, features = torch.randn(2, 5, width, generator=draws), torch.randn(1, 6, width, generator=draws)
    once = site(hidden, site.project(features))
    less = torch.full((18,), -math.log(3))
    assert torch.allclose(site(hidden, site.project(features.repeat(1, 3, 1), less)), once, atol=1e-5)
    assert not torch.allclose(site(hidden, site.project(features.repeat(1, 3, 1))), once, atol=1e-3)
    order = torch.randperm(6, generator=draws)
    assert torch.allclose(site(hidden, site.project(features[:, order])), once, atol=1e-5)


@pytest.mark.parametrize("residual", ["plain", "official"])
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_scale_zero_is_the_base_and_nothing_stays(base, residual, family, subject):
    """Oracles 1, 2, 3, on both architectures."""
    base = base if family == "sd" else tiny.base_xl()
    adapter = random_adapter(base, residual)
    features, _ = features_of(base, subject)
    subject_keys = adapter.project([each.flatten(0, 1)[None] for each in features])
    latents = torch.randn(2, *base.latent_shape(16, 16), generator=torch.Generator().manual_seed(0))
    words = encode(base, ["a dog", "a cat"])

    @torch.no_grad()
    def run():
        return base.predict(latents, torch.tensor(300), words)

    plain, keys = run(), list(base.denoiser.state_dict())
    acting = SubjectAttention(adapter, subject_keys, scale=0.0)
    with attached(base.denoiser, acting) as context:
        assert torch.equal(run(), plain) and list(base.denoiser.state_dict()) == keys
        acting.scale = 1.0
        assert (run() - plain).abs().max() > 1e-2
        context.rows = rows_of(["someone-else"], 2)
        assert torch.equal(run(), plain)
        context.rows = rows_of(["uncond", "cond"], 1)
        whole = run()
        context.step, context.steps, acting.share = 0, 5, 0.4
        assert torch.equal(run(), plain)
    assert torch.equal(run(), plain)
    if residual == "plain":
        closed = random_adapter(base, gate=0.0)
        with attached(base.denoiser, SubjectAttention(closed, closed.project([f[:1] for f in features]))):
            assert torch.equal(run(), plain)
    acting.share = 1.0
    apart = []
    with attached(base.denoiser, acting) as context, torch.no_grad():  # oracle 13: the rows do not see each other
        for row, role in enumerate(("uncond", "cond")):
            context.rows = rows_of([role], 1)
            apart.append(base.predict(latents[row : row + 1], torch.tensor(300), words.rows([row])))
    assert torch.allclose(torch.cat(apart), whole, atol=1e-4)


def test_features_are_the_norms_output_in_order_of_running(base, subject):
    """Oracles 7 and 16."""
    features, both = features_of(base, subject)
    state = torch.get_rng_state()
    again, _ = features_of(base, subject)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(features, again, strict=True))
    assert not any(m._forward_pre_hooks for m in base.denoiser.modules())
    by_hand, hooks = [], []
    for module in base.denoiser.modules():
        if type(module).__name__ == "BasicTransformerBlock":
            hooks.append(module.register_forward_pre_hook(lambda m, a: by_hand.append(m.norm1(a[0]))))
    try:
        features_of(base, subject)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(by_hand) == len(features) == 4
    assert all(torch.equal(a, b) for a, b in zip(features, by_hand, strict=True))
    with reading(base.denoiser) as found, torch.no_grad():
        base.predict(torch.zeros(1, *base.latent_shape(16, 16)), torch.tensor(1), encode(base, ""))
    assert [name.split("_")[0] for name in found] == ["down", "mid", "up", "up"]


def test_no_loops_and_no_share_is_the_base_itself(base, one, weights):
    """Oracles 1 and 6: r = 0; and r = 1 is the adapter in every step."""
    plain = pixels(generate(base, "a dog on the beach", seeds=(3, 4), options=OPTIONS))
    none = read(one, base, weights, share=0.0)
    assert all(np.array_equal(a, b) for a, b in zip(pixels(draw(base, none, (3, 4))), plain, strict=True))
    concept = read(one, base, weights, share=1.0, min_loops=0, max_loops=0)
    with concept.attach(base) as brought:
        acting = brought.interventions[0]
        words, empty = encode(base, "a dog on the beach"), encode_negative(base)
        ours = brought.sample(base, words, empty, [3], OPTIONS, interventions=[acting])
        every = sample(base, words, empty, [3], OPTIONS, interventions=[acting])
        assert torch.equal(ours, every) and acting.active(type("C", (), {"step": 0, "steps": 5}))
    assert not np.array_equal(pixels(draw(base, concept))[0], plain[0])


def test_the_layout_is_the_text_only_run(base, one, weights):
    """Oracle 5: the first S - n_app steps, latent by latent."""
    told, plain = [], []
    draw(base, read(one, base, weights, min_loops=0, max_loops=0), on_step=lambda s: told.append(s.latents))
    generate(base, "a dog on the beach", seeds=(3,), options=OPTIONS, on_step=lambda s: plain.append(s.latents))
    assert [torch.equal(a, b) for a, b in zip(told, plain, strict=True)] == [True, True, True, False, False]


def test_calls_of_the_denoiser(base, one, weights):
    """50 + 20 a loop at the default setting; one more to read the subject."""
    calls = []
    handle = base.denoiser.register_forward_hook(lambda *_: calls.append(1))
    try:
        concept = read(one, base, weights)
        assert len(calls) == 1
        for loops in (0, 3):
            calls.clear()
            given = {**concept.settings, "min_loops": loops, "max_loops": loops}
            made = Concept({**concept.manifest, "settings": given}, concept.tensors)
            steps = []
            options = SamplingOptions(steps=50, guidance=7.5)
            result = generate(base, "a {subject}", concept=made, options=options, on_step=steps.append)
            assert len(calls) == 50 + 20 * loops
            assert [s.number for s in steps] == list(range(1, 51 + 20 * loops)) and steps[0].count == 50 + 20 * loops
            assert len(result.stages[0]) == 1 + loops
            assert np.array_equal(np.asarray(result.stages[0][-1]), pixels(result)[0])
    finally:
        handle.remove()


@pytest.mark.parametrize("more", [{}, {"fresh": 0.0}, {"lock_background": True, "lock_statistics": True, "fresh": 0.3}])
def test_loops_are_the_same_twice_alone_and_in_a_batch(base, one, weights, more):
    concept = read(one, base, weights, **more)
    together, again = draw(base, concept, (3, 4)), draw(base, concept, (3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(pixels(together), pixels(again), strict=True))
    alone = np.abs(pixels(together)[1].astype(int) - pixels(draw(base, concept, (4,)))[0])
    assert alone.max() <= 1
    loops = [np.asarray(image, float) for image in together.stages[0]]
    assert all(np.abs(a - b).max() > 1 for a, b in itertools.pairwise(loops))


def test_the_concept_comes_back_from_its_folder_with_the_same_picture(base, one, weights, tmp_path):
    """Oracle 4: what was read once serves other prompts and seeds as if it were read anew."""
    concept = read(one, base, weights)
    first = pixels(draw(base, concept))[0]
    concept.save(tmp_path / "rex")
    loaded = Concept.load(tmp_path / "rex", base)
    generate(base, "a {subject} in the snow", concept=loaded, seeds=(9,), options=OPTIONS)
    assert np.array_equal(pixels(draw(base, loaded))[0], first)
    assert np.array_equal(pixels(draw(base, read(one, base, weights)))[0], first)


def test_subject_guidance(base, one, weights):
    """e(0,0) + w_t [e(t,0) - e(0,0)] + w_s [e(t,s) - e(t,0)], each by a call of its own."""
    concept = read(one, base, weights, share=1.0, subject_guidance=2.0, max_loops=0, min_loops=0)
    words, empty = encode(base, "a dog on the beach"), encode_negative(base)
    latents = torch.randn(1, *base.latent_shape(16, 16), generator=torch.Generator().manual_seed(0))
    kept = []

    class Keeps(SubjectAttention):
        def prediction(self, latents, prediction, context):
            kept.append(prediction)
            return prediction

    with concept.attach(base) as brought:
        acting = brought.interventions[0]
        keeps = Keeps(acting.adapter, acting.subject, 1.0, 1.0, 2.0)
        sample(base, words, empty, [0], SamplingOptions(steps=1, guidance=3.0), interventions=[keeps], latents=latents)
        t = base.scheduler
        t.set_timesteps(1)
        predicted = {}
        for name, (read_words, given) in {
            "00": (empty, None), "t0": (words, None), "ts": (words, acting.subject),
        }.items():  # fmt: skip
            absent = [KeysValues(s.keys[:, :0], s.values[:, :0]) for s in acting.subject]
            each = SubjectAttention(acting.adapter, given or absent)
            with attached(base.denoiser, each), torch.no_grad():
                predicted[name] = base.predict(latents, t.timesteps[0], read_words)
    wanted = predicted["00"] + 3 * (predicted["t0"] - predicted["00"]) + 2 * (predicted["ts"] - predicted["t0"])
    assert torch.allclose(kept[0], wanted, atol=1e-4)


def test_steps_are_counted_once():
    """Oracle 20 and D12."""
    for steps in (20, 25, 28, 30, 50):
        for hundredths in range(101):
            n = appearance_steps(steps, hundredths / 100)
            assert n == (2 * steps * hundredths + 100) // 200 and first_step(steps, hundredths / 100) == steps - n
    assert appearance_steps(50, 0.58) == 29  # int(50 * 0.58) is 28


def test_several_pictures_count_as_one(base, subject, weights):
    adapter = random_adapter(base)
    concept = read(subject, base, weights)
    features = list(concept.tensors[FEATURES].values())
    assert all(len(each) == 2 for each in features)
    twice = [each[:1].expand(2, -1, -1) for each in features]
    masks = concept.tensors["pictures.safetensors"]["masks"]
    once_read = keys_values(adapter, [each[:1] for each in features], masks[:1], EZIGenSettings())
    twice_read = keys_values(adapter, twice, masks[:1].expand(2, -1, -1), EZIGenSettings())
    hidden = torch.randn(1, 64, features[0].shape[-1], generator=torch.Generator().manual_seed(0))
    sites = adapter.sites
    assert torch.allclose(sites[0](hidden, once_read[0]), sites[0](hidden, twice_read[0]), atol=1e-5)
    assert once_read[0].bias is None and once_read[0].keys.shape[1] == 64
    fewer = keys_values(adapter, [each[:1] for each in features], masks[:1], EZIGenSettings(drop_background=True))
    assert fewer[0].keys.shape[1] == int(covered(masks[:1], 64).sum()) < 64
    permuted = Subject("rex", "dog", subject.images[::-1], subject.masks[::-1])
    difference = np.abs(
        pixels(draw(base, concept))[0].astype(int) - pixels(draw(base, read(permuted, base, weights)))[0]
    )
    assert difference.max() <= 1  # oracle 15


def test_the_subject_is_alone_before_white():
    image = Image.new("RGB", (30, 20), "blue")
    mask = np.zeros((20, 30), np.float32)
    mask[5:15, 20:30] = 1  # at the edge: the square goes beyond the picture
    out, kept = prepared(image, mask, 24, margin=1.2)
    array = np.asarray(out)
    assert (array[12, 12] == (0, 0, 255)).all() and (array[0] == 255).all() and (array[:, -1] == 255).all()
    assert abs(kept.mean() - (10 / 12) ** 2) < 0.05 and kept[12, 12] == 1 and kept[0, 0] == 0
    square = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 24, 3), np.uint8))
    assert np.array_equal(np.asarray(prepared(square, None, 24)[0]), np.asarray(square))  # passes through
    wide, whole = prepared(image, None, 30)
    assert (np.asarray(wide)[0] == 255).all() and (np.asarray(wide)[15] == (0, 0, 255)).all() and whole[0, 0] == 0


def test_bad_input_is_said(base, one, weights, tmp_path):
    plain = Subject("rex", "dog", one.images)
    with pytest.warns(UserWarning, match="neither a mask nor transparency"):
        read(plain, base, weights)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(one, base, weights)
    with pytest.raises(
        ConfigurationError, match=r"share 2\.0 is not in 0 \.\.\. 1.*min_loops 4 is more than max_loops 2"
    ):
        read(one, base, weights, share=2.0, min_loops=4)
    other = tiny.base("epsilon")
    with pytest.raises(ArtefactError, match="trained on tiny with the signature"):
        read(one, other, weights)
    narrow = write_weights(tmp_path / "n", base, random_adapter(tiny.base_xl()))
    with pytest.raises(ArtefactError, match="another denoiser"):
        read(one, base, narrow)
    with pytest.raises(ConfigurationError, match="cannot begin in the middle"):
        generate(
            base, "a {subject}", concept=read(one, base, weights), options=SamplingOptions(steps=5, scheduler="pndm")
        )


def test_the_released_checkpoint(base, one, tmp_path):
    """Oracle 10; leftover keys are reported."""
    adapter = random_adapter(base, "official")
    released = {**base.denoiser.state_dict(), **released_names(adapter)}
    made, leftover = read_released(released, base)
    assert leftover == [] and made.residual == "official"
    assert all(torch.equal(tensor, made.state_dict()[name]) for name, tensor in adapter.state_dict().items())
    changed = {**released, "conv_in.weight": released["conv_in.weight"] + 1, "extra.weight": torch.zeros(2)}
    assert read_released(changed, base)[1] == [
        "conv_in.weight differs from the base",
        "extra.weight is not in the base",
    ]
    save_tensors(tmp_path / "checkpoint.safetensors", {n: t.contiguous() for n, t in changed.items()})
    with pytest.warns(UserWarning, match="2 weights were left over"):
        imported = read(one, base, str(tmp_path / "checkpoint.safetensors"), compat=True)
    ours = write_weights(tmp_path / "w", base, adapter, prompt="a photo of a {noun}.")
    same = read(one, base, ours, compat=True)
    assert np.array_equal(pixels(draw(base, imported))[0], pixels(draw(base, same))[0])
    del released["learnable_weights"]
    with pytest.raises(ArtefactError, match=r"missing learnable_weights \(4 numbers, found none\)"):
        read_released(released, base)


@pytest.mark.parametrize("keep", ["last", "best"])
def test_the_loop_stops_when_pictures_are_alike(base, one, weights, keep, monkeypatch):
    """A stub encoder says how alike; each picture is asked of once."""
    asked = []

    class Stub:
        def images(self, pictures):
            asked.extend(pictures)
            return torch.stack([torch.tensor([np.asarray(p, float).mean(), 50.0, 1.0]) for p in pictures]).float()

        def text(self, sentences):
            return torch.tensor([[100.0, 50.0, 0.0]])

    monkeypatch.setattr("thisness.evaluation.encoders.open_encoder", lambda name: Stub())
    concept = read(one, base, weights, min_loops=2, max_loops=6, threshold=0.5, keep=keep, similarity="stub")
    made = draw(base, concept, (3, 4))
    assert [len(stages) for stages in made.stages] == [3, 3]  # the threshold is passed at once: the least of loops
    if keep == "last":
        assert len(asked) == 6
    report = made.record["adjusted"][-1]
    assert report["loops"] == [2, 2] and all(s > 0.5 for each in report["similarities"] for s in each)
    for row, picture in enumerate(pixels(made)):
        assert np.array_equal(picture, np.asarray(made.stages[row][report["kept"][row]]))
    never = draw(base, read(one, base, weights, min_loops=1, max_loops=3, threshold=2.0, similarity="stub"))
    assert len(never.stages[0]) == 4


@pytest.mark.slow
def test_a_compiled_denoiser_draws_the_same_whoever_came_before(subject, tmp_path):
    """In its place, with subjects and without in turns: nothing of one run stays in the graph of the next."""
    base = tiny.base("v_prediction")
    weights = write_weights(tmp_path / "weights", base, random_adapter(base))
    green = Subject("ivy", "dog", (Image.new("RGB", (16, 16), (0, 200, 90)),), (np.ones((16, 16), np.float32),))

    def drawn(who=None):
        concept = read(who, base, weights) if who is not None else None
        text = "a {subject} on the beach" if who is not None else "a dog on the beach"
        return np.asarray(generate(base, text, concept=concept, seeds=(0,), options=OPTIONS).images[0])

    turns = [None, subject, None, green, subject, None]
    plain = [drawn(who) for who in turns]
    assert not np.array_equal(plain[1], plain[3]), "two subjects give two pictures"
    base.denoiser.compile(backend="eager")
    assert all(np.array_equal(drawn(who), wanted) for who, wanted in zip(turns, plain, strict=True))
