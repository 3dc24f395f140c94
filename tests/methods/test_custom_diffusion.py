"""Custom Diffusion. Oracles: hashes before and after, least squares by numpy, gradients with the hook off."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import tiny
from thisness.adapters import REPLACED, replaced_weights
from thisness.adapters.replaced import by_name, keys_and_values, trainable_copies
from thisness.conditioning import encode
from thisness.errors import ArtefactError, ConfigurationError
from thisness.generation import generate
from thisness.methods import learn, method_named
from thisness.methods.custom_diffusion import merge, merged_weight
from thisness.methods.registry import settings_for
from thisness.prompt import Prompt
from thisness.sampling import SamplingOptions
from thisness.subject import Subject

SETTINGS = {
    "steps": 3, "lr": 0.05, "precision": "fp32", "captions": "plain", "preset": "default", "prior_pictures": 2,
    "prior_steps": 2, "start": "sks", "batch_size": 2, "prior_batch": 1,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THISNESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def base():
    return tiny.base()


def subject(name: str, noun: str, seed: int) -> Subject:
    draws = np.random.default_rng(seed)
    return Subject(name, noun, tuple(Image.fromarray(draws.integers(0, 255, (16, 16, 3), np.uint8)) for _ in range(2)))


@pytest.fixture(scope="module")
def concepts(base):
    """Two, learned apart: a dog and a cat."""
    return [
        learn("custom-diffusion", subject(name, noun, seed), base, progress=False, **SETTINGS)
        for name, noun, seed in (("rex", "dog", 0), ("mimi", "cat", 1))
    ]


@pytest.fixture
def drawn():
    """Tensors of one seed."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def hashes(base) -> dict[str, str]:
    return {
        f"{part}.{name}": hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
        for part, module in base.modules.items()
        for name, tensor in module.state_dict().items()
    }


def test_exactly_keys_values_and_the_word_are_trained(base):
    before = hashes(base)
    concept = learn("custom-diffusion", subject("rex", "dog", 0), base, progress=False, **SETTINGS)
    assert hashes(base) == before
    changed = {}
    with concept.attach(base):
        after = hashes(base)
        changed = {name for name in before if after.get(name) != before[name]}
    wanted = {f"unet.{site}.attn2.{end}.weight" for site in
              {name.partition(".attn2")[0] for name in dict(base.denoiser.named_modules()) if ".attn2" in name}
              for end in ("to_k", "to_v")}  # fmt: skip
    vocabulary = "text_encoder.embeddings.token_embedding.weight"  # under another name, the same to the bit
    assert len(wanted) == 8 and changed - {vocabulary} == wanted
    assert after["text_encoder.embeddings.token_embedding.original.weight"] == before[vocabulary]


def test_no_gradient_through_the_first_token(base):
    """Forward values stay; the weight's gradient lacks just the first position's outer products."""
    names = keys_and_values(base.denoiser)
    name = names[0]
    inputs = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(1))
    grads, values = [], []
    for keep in (True, False):
        weights = trainable_copies(base.denoiser, names)
        with replaced_weights(base.denoiser, by_name(weights), owner="x", train=True, keep_start=keep):
            out = base.denoiser.get_submodule(name.removesuffix(".weight"))(inputs)
            out.square().sum().backward()
        values.append(out.detach())
        grads.append(by_name(weights)[name].grad)
    assert torch.equal(*values)
    first = (2 * values[0][:, 0]).T @ inputs[:, 0]
    assert first.abs().max() > 0.1
    torch.testing.assert_close(grads[0], grads[1] - first, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_trained_is_float32_on_a_base_of_any_format(dtype):
    base = tiny.base().to(dtype=dtype)
    method = method_named("custom-diffusion")
    given = {key: value for key, value in SETTINGS.items() if key != "preset"} | {"prior_pictures": 0}
    with ExitStack() as stack:
        settings = settings_for(method, base, given, "default")
        task = stack.enter_context(method().task(subject("rex", "dog", 0), base, settings, False))
        task.on_start(torch.device("cpu"))
        task.loss(0, torch.Generator().manual_seed(0))["loss"].backward()
        trained = [p for module in task.modules().values() for p in module.parameters()]
        assert {p.dtype for p in trained} == {p.grad.dtype for p in trained} == {torch.float32}
        assert all(p.grad.abs().sum() > 0 for p in trained)


def test_weights_that_do_not_fit_and_two_that_were_not_merged_are_refused(base, concepts):
    weights = {name: torch.zeros(3, 3) for name in keys_and_values(base.denoiser)[:1]}
    with pytest.raises(ArtefactError, match="other shapes"), replaced_weights(base.denoiser, weights, owner="x"):
        pass
    with (
        pytest.raises(ArtefactError, match=r"has no weights nowhere\.weight"),
        replaced_weights(base.denoiser, {"nowhere.weight": torch.zeros(1)}, owner="x"),
    ):
        pass
    with (
        concepts[0].attach(base),
        pytest.raises(ConfigurationError, match="'rex' and 'mimi' both replace"),
        concepts[1].attach(base),
    ):
        pass


def test_low_rank_weights_lie_over_replaced_ones(base, concepts):
    """Oracle: either order of attaching gives the same picture."""
    lora = learn(
        "dreambooth-lora", subject("spot", "dog", 2), base, progress=False, preset="default", steps=2, lr=0.05,
        identifier="new", prior_pictures=0, precision="fp32",
    )  # fmt: skip
    made = []
    for first, second in ((concepts[0], lora), (lora, concepts[0])):
        with first.attach(base), second.attach(base):
            made.append(generate(base, "a photo of a <rex> dog", options=SamplingOptions(steps=2)).images[0])
    assert made[0].tobytes() == made[1].tobytes()
    with concepts[0].attach(base):
        alone = generate(base, "a photo of a <rex> dog", options=SamplingOptions(steps=2)).images[0]
    assert alone.tobytes() != made[0].tobytes()


# --- merging ---


def test_merged_weights_meet_the_constraints_and_move_least(drawn):
    """Oracles: the constraints themselves; any other solution is worse for the ordinary sentences."""
    w, c, r = drawn(5, 8), drawn(3, 8), drawn(40, 8)
    v = drawn(5, 3)
    found = merged_weight(w, v, c, r, ridge=0.0)
    torch.testing.assert_close(found @ c.T, v)
    moved = ((found - w) @ r.T).norm()
    null = torch.eye(8, dtype=torch.float64) - torch.linalg.pinv(c) @ c
    for _ in range(5):
        other = found + 0.1 * drawn(5, 8) @ null
        torch.testing.assert_close(other @ c.T, v)
        assert ((other - w) @ r.T).norm() > moved


def test_merging_reduces_to_least_squares(drawn):
    """With ordinary features of unit covariance it is the smallest change; wanting what is there changes nothing."""
    w, c = drawn(5, 8), drawn(3, 8)
    r = torch.linalg.qr(drawn(40, 8))[0]
    v = drawn(5, 3)
    change = merged_weight(w, v, c, r, ridge=0.0) - w
    expected = np.linalg.lstsq(c.numpy(), (v - w @ c.T).T.numpy(), rcond=None)[0].T
    np.testing.assert_allclose(change.numpy(), expected, atol=1e-9)
    torch.testing.assert_close(merged_weight(w, w @ c.T, c, r), w)
    twice = torch.cat([c, c[:1]])  # the same target twice: nothing new is asked
    torch.testing.assert_close(merged_weight(w, torch.cat([v, v[:, :1]], 1), twice, r), w + change, rtol=0, atol=1e-6)


def test_merged_concepts_are_used_together_and_answer_as_each_did(base, concepts):
    merged = merge(concepts, base)
    assert [each.name for each in merged] == ["rex", "mimi"] and merged[0].settings["merged_with"] == ["mimi"]
    site = keys_and_values(base.denoiser)[0]
    key = f"unet.{site}"
    for before, after in zip(concepts, merged, strict=True):
        with before.attach(base):
            encoded = encode(base, Prompt("photo of a {subject}").fill({"subject": before.word}))
        (spans,) = encoded.spans
        features = encoded.embeds[0, min(spans.of("subject")) : spans.end + 1]
        wanted, got = (features @ each.tensors[REPLACED][key].T for each in (before, after))
        ordinary = features @ base.denoiser.get_parameter(site).T
        assert (got - wanted).norm() < 0.05 * (ordinary - wanted).norm()
    both = generate(
        base, "a {rex} on a {mimi}", concept=dict(zip(("rex", "mimi"), merged, strict=True)),
        options=SamplingOptions(steps=2),
    )  # fmt: skip
    assert both.record["sentence"] == "a <rex> dog on a <mimi> cat"


def test_merging_refuses_what_it_cannot_merge(base, concepts):
    with pytest.raises(ConfigurationError, match="at least two concepts, each once"):
        merge([concepts[0], concepts[0]], base)
    words = learn(
        "textual-inversion", subject("spot", "dog", 2), base, progress=False, preset="default", steps=1, lr=0.05
    )
    with pytest.raises(ConfigurationError, match="must replace the same keys and values"):
        merge([concepts[0], words], base)


# --- what others read ---


def test_the_examples_format_loads_in_diffusers_with_the_pipeline_only(base, concepts, tmp_path):
    """The negative control is diffusers' own trap: without `_pipeline` nothing changes, and nothing is said."""
    concepts[0].export(tmp_path / "out")
    name, pipe = "pytorch_custom_diffusion_weights.safetensors", tiny.pipeline()
    latents, text = torch.ones(1, 4, 8, 8), torch.ones(1, 6, 16)

    @torch.no_grad()
    def answer():
        return pipe.unet(latents, 10, text).sample

    plain = answer()
    pipe.unet.load_attn_procs(tmp_path / "out", weight_name=name)
    assert torch.equal(answer(), plain)
    pipe.unet.load_attn_procs(tmp_path / "out", weight_name=name, _pipeline=pipe)
    found = answer()
    twin = tiny.pipeline()
    twin.unet.load_state_dict(load_file(tmp_path / "out" / "unet_kv.safetensors"), strict=False)
    with torch.no_grad():
        expected = twin.unet(latents, 10, text).sample
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (found - plain).abs().max() > 1e-2
    assert "_pipeline=pipe" in (tmp_path / "out" / "usage.txt").read_text()


def test_settings_that_cannot_be_are_one_line(base):
    for wrong, said in (
        ({"word_lr": 0.0}, "word_lr 0.0 must be above 0"),
        ({"prior_batch": 0}, "prior_batch at least"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            learn("custom-diffusion", subject("rex", "dog", 0), base, preset="default", **wrong)
