"""The self-attention swap. Oracles: runs without it, runs of the second branch alone, the layer's own attention."""

import numpy as np
import pytest
import torch

import tiny
from thisness.adapters import EMBEDDINGS
from thisness.attention.capture import CaptureMaps
from thisness.concept import Concept
from thisness.conditioning import Sentence, encode
from thisness.errors import ConfigurationError
from thisness.generation import generate, replay
from thisness.methods.harmonizing import assigned, attention_swap
from thisness.methods.harmonizing_swap import AttentionSwap, mask_layers, swap_layers
from thisness.methods.harmonizing_trajectory import SubjectTrajectory
from thisness.prompt import Prompt
from thisness.sampling import SamplingOptions, sample
from thisness.sampling.companion import Companion

OPTIONS = SamplingOptions(steps=4, guidance=3.0)
TEXT = "a {subject} sleeping on the beach"
FULL = {"start": 0.0, "stop": 1.0}


@pytest.fixture(scope="module")
def base():
    return tiny.base("zero-snr")


@pytest.fixture(scope="module")
def rex(base):
    return word(base)


def word(base):
    """A learned word."""
    rows = {"text_encoder": 0.06 * torch.randn(1, 16, generator=torch.Generator().manual_seed(5))}
    return Concept.create(
        "textual-inversion", tiny.toy(), base, word="<rex>", tokens=["<rex>"], tensors={EMBEDDINGS: rows}
    )


def rare(base):
    """A rare word and its noun, with weights of the denoiser."""
    tensors = {"replaced.safetensors": {"unet.conv_in.weight": 1.1 * base.denoiser.conv_in.weight.detach()}}
    return Concept.create("dreambooth", tiny.toy(name="bo"), base, word="sks dog", tensors=tensors)


def run(base, concept, *attachments, text=TEXT, seeds=(0, 1), options=OPTIONS, latents=None, keep=None):
    """Latents of a sentence, with what was bound."""
    filled = Prompt(text).fill({"subject": concept.word})
    with concept.attach(base), torch.no_grad():
        sentence = Sentence(base, filled, {"subject": concept}, (), None)
        bound = [each.bound(sentence) for each in attachments]
        if keep is not None:
            keep += bound
        conditioning = encode(base, filled)
        return sample(base, conditioning, None, seeds, options, interventions=bound, latents=latents)


def alone(base, concept, text="a <rex>", seeds=(0, 1), options=OPTIONS):
    with concept.attach(base), torch.no_grad():
        return sample(base, encode(base, text), None, seeds, options)


def close(one, other, tolerance=1e-4):
    return torch.allclose(one, other, rtol=0, atol=tolerance)


def test_8_no_mask_and_no_window_are_off(base, rex):
    plain = run(base, rex)
    kept = []
    assert torch.equal(run(base, rex, AttentionSwap(start=0.5, stop=0.5), keep=kept), plain)
    assert "no step" in kept[0].report["says"]
    for cfg in ("both", "cond"):
        assert close(run(base, rex, AttentionSwap(threshold=1.0, cfg=cfg, **FULL)), plain)
    assert not close(run(base, rex, AttentionSwap(**FULL)), plain, 1e-2)


def test_9_a_branch_that_is_the_run_itself_changes_nothing(base, rex):
    plain = run(base, rex, text="a {subject}")
    swapped = run(base, rex, AttentionSwap(mask="everywhere", layers="all", **FULL), text="a {subject}")
    assert close(swapped, plain)
    noise = AttentionSwap(mask="everywhere", noise="independent", **FULL)
    assert not close(run(base, rex, noise, text="a {subject}"), plain, 1e-2)


@pytest.mark.parametrize("scheduler", [None, "pndm", "dpm++", "unipc", "euler-a", "heun"])
def test_10_and_13_branches_keep_their_own_history(base, rex, scheduler, monkeypatch):
    """The second branch is a run of its own; after it ended, the first goes on as one that never had it."""
    from thisness.sampling import companion

    source = tiny.base("epsilon") if scheduler in ("pndm", "heun") else base
    options = SamplingOptions(steps=5, guidance=3.0, scheduler=scheduler)
    processes = []
    real = companion._Process.__init__

    def remembered(self, *arguments):
        real(self, *arguments)
        processes.append(self)

    monkeypatch.setattr(companion._Process, "__init__", remembered)
    concept = word(source)
    plain = run(source, concept, options=options)
    run(source, concept, AttentionSwap(**FULL), options=options)
    assert close(processes[0].latents, alone(source, concept, options=options))
    off = run(source, concept, AttentionSwap(start=0.0, stop=0.6, threshold=1.0), options=options)
    assert close(off, plain)  # the window ends and the batch shrinks, in the middle of the history


def test_11_gather_is_dense_and_the_layer_elsewhere(base, rex):
    one, other = (run(base, rex, AttentionSwap(compute=each, **FULL)) for each in ("gather", "dense"))
    assert close(one, other, 1e-5)
    draw = torch.Generator().manual_seed(0)
    own, q, k, v = (torch.randn(2, 3, 8, 4, generator=draw) for _ in range(4))
    mask = torch.tensor([[True] * 3 + [False] * 5, [False] * 8])
    for gather in (True, False):
        result = attention_swap(own, q, k, v, mask, gather=gather)
        assert torch.equal(result[0, :, 3:], own[0, :, 3:]) and torch.equal(result[1], own[1])
        probs = ((q[0] @ k[0].transpose(-1, -2)) / 2).softmax(-1)
        assert torch.allclose(result[0, :, :3], (probs @ v[0])[:, :3], atol=1e-6)


def test_12_a_batch_is_its_pictures_one_by_one(base, rex):
    both = run(base, rex, AttentionSwap(**FULL), seeds=(3, 4))
    singles = torch.cat([run(base, rex, AttentionSwap(**FULL), seeds=(seed,)) for seed in (3, 4)])
    assert close(both, singles)


def test_sequential_equals_batched(base, rex):
    batched = run(base, rex, AttentionSwap(**FULL))
    assert close(run(base, rex, AttentionSwap(sequential=True, **FULL)), batched)


def test_15_same_seed_same_picture_and_replay(base, rex, tmp_path):
    keywords = {"concept": rex, "seeds": (0, 1), "options": OPTIONS, "interventions": ["attention-swap"]}
    one, two = (generate(base, TEXT, adjust="orchestrate", **keywords) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one.images, two.images, strict=True))
    assert [each["name"] for each in one.record["adjusted"]] == ["orchestrate", "attention-swap"]
    again = replay(one.save(tmp_path)[1], base, rex)
    assert np.array_equal(again.images[0], one.images[1]) and not again.differences
    before = dict(base.denoiser.attn_processors)

    def fails(step):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        generate(base, TEXT, **keywords, on_step=fails)
    assert base.denoiser.attn_processors == before


@pytest.mark.parametrize(("settings", "expected"), [
    ({}, [8, 8, 8, 4]),
    ({"aux_cfg": False}, [6, 6, 6, 4]),
    ({"sequential": True}, [4, 4] * 3 + [4]),
])  # fmt: skip
def test_16_rows_of_the_denoiser(base, rex, settings, expected):
    seen = []
    hook = base.denoiser.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    try:
        run(base, rex, AttentionSwap(start=0.0, stop=0.75, **settings))
    finally:
        hook.remove()
    assert seen == expected


def test_17_the_mask_is_the_layers_own_attention(base, rex):
    """Captured beside it, by the intervention that only looks; a lag of a step where layers come later."""
    from thisness.attention import CaptureMaps, Where

    kept, name = [], "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    filled = Prompt(TEXT).fill({"subject": rex.word})
    with rex.attach(base), torch.no_grad():
        swap = AttentionSwap(mask_layers=name, threshold=0.3, **FULL)
        bound = swap.bound(Sentence(base, filled, {"subject": rex}, (), None))
        maps, masks = CaptureMaps(Where(names=[name])), []
        real = bound.subject
        bound.subject = lambda positions, context: masks.append(real(positions, context)) or masks[-1]
        sample(base, encode(base, filled), None, (0, 1), OPTIONS, interventions=[bound, maps])
    for step in range(4):
        values = maps.maps[step, name][:, :, 2].float()
        low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
        expected = (values - low) / (high - low) > 0.3
        assert torch.equal(masks[2 * step], expected) and torch.equal(masks[2 * step + 1], expected)
    late = AttentionSwap(mask_layers="up_blocks.1*", **FULL)
    run(base, rex, late, keep=kept)
    assert kept[0].lag and len(kept[0].areas) == 3 and not bound.lag  # nothing in the first step
    assert 0 < kept[0].report["mask_area"][1] < 1


def test_two_subjects_have_masks_apart_and_share_a_trajectory(base, rex):
    """Masks by the maps that are recorded beside; swapping the slots swaps them."""
    bo = Concept({**rare(base).manifest, "files": rex.manifest["files"], "tokens": ["<bo>"], "word": "<bo> cat",
                  "method": "textual-inversion", "noun": "cat"},
                 {EMBEDDINGS: {"text_encoder": rex.tensors[EMBEDDINGS]["text_encoder"].flip(1)}})  # fmt: skip
    text = "a {one} on a {two}"

    def both(attachments, text=text, one=rex, two=bo, watch=()):
        concepts = {"one": one, "two": two}
        filled = Prompt(text).fill({slot: each.word for slot, each in concepts.items()})
        with rex.attach(base), bo.attach(base), torch.no_grad():
            sentence = Sentence(base, filled, concepts, (), None)
            bound = [each.bound(sentence) for each in attachments]
            latents = sample(base, encode(base, filled), None, (0, 1), OPTIONS, interventions=[*watch, *bound])
            return latents, bound, base.tokenize(filled)[0]

    swaps = [AttentionSwap(slot=slot, **FULL) for slot in ("one", "two")]
    capture = CaptureMaps()
    latents, (first, second), spans = both(swaps, watch=(capture,))
    (at,) = {key for key in first.masks if key in second.masks and key[1] == 64}
    seen = torch.stack([capture.maps[at[0], name] for name in first.mask_sites])
    maps = torch.stack([seen[..., list(spans.of(slot))].sum(-1).mean(0) for slot in ("one", "two")])
    maps = maps.unflatten(-1, (8, 8))
    wanted = assigned(maps, (8, 8)).flatten(2)
    assert torch.equal(torch.stack([first.masks[at], second.masks[at]]), wanted) and not wanted.all(0).any()
    assert wanted[0].any() and wanted[1].any()
    assert close(latents, both(swaps[::-1])[0])
    assert close(
        latents, both([AttentionSwap(slot=s, **FULL) for s in ("two", "one")], "a {two} on a {one}", bo, rex)[0]
    )
    trajectory = SubjectTrajectory()
    shared = [each.sharing(trajectory) for each in swaps]
    assert torch.equal(both(shared)[0], latents) and len(trajectory) == 4
    other = "a {one} in the snow on a {two}"
    found = both(shared, other)[0]
    assert trajectory.found == 4 and close(found, both(swaps, other)[0])


def test_a_trajectory_is_the_branch_computed_anew(base, rex):
    trajectory = SubjectTrajectory()
    shared = AttentionSwap(**FULL).sharing(trajectory)
    first = run(base, rex, shared)
    assert torch.equal(first, run(base, rex, AttentionSwap(**FULL)))
    assert (trajectory.computed, trajectory.found, len(trajectory)) == (2, 0, 2)
    other = "a {subject} in the snow"
    seen = []
    hook = base.denoiser.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    found = run(base, rex, shared, text=other)
    hook.remove()
    assert seen == [4] * 4 and trajectory.found == 2
    assert close(found, run(base, rex, AttentionSwap(**FULL), text=other))
    assert close(run(base, rex, shared, text=other, seeds=(1,)), found[1:])
    for change in (
        {"seeds": (5,)},
        {"seeds": (1,), "options": SamplingOptions(steps=4, guidance=2.0)},
        {"seeds": (1,), "options": SamplingOptions(steps=5, guidance=3.0)},
    ):
        before = trajectory.computed
        run(base, rex, shared, **change)
        assert trajectory.computed == before + 1
    size = trajectory.bytes
    assert size > 0
    with pytest.raises(ConfigurationError, match="raise max_bytes"):
        run(base, rex, AttentionSwap(**FULL).sharing(SubjectTrajectory(max_bytes=1000)))
    small = SubjectTrajectory(max_bytes=size // len(trajectory) * 3 // 2)
    run(base, rex, AttentionSwap(**FULL).sharing(small), seeds=(0, 1))
    assert len(small) == 1


@pytest.mark.parametrize("settings", [
    {"visual": "drop"}, {"visual": "zeros"}, {"cfg": "cond"}, {"noise": "independent"}, {"threshold": "otsu"},
    {"resize": "bilinear"}, {"layers": 4}, {"mask_layers": "4"}, {"preset": "robust"}, {"mask_words": "word"},
])  # fmt: skip
def test_each_knob_does_something_and_replays(base, settings):
    bo = rare(base)
    start = {} if "preset" in settings else FULL
    knob = {"layers": "all"} if "layers" not in settings else {}
    usual = run(base, bo, AttentionSwap(**FULL, **knob), seeds=(0,))
    changed = run(base, bo, AttentionSwap(**{**start, **knob, **settings}), seeds=(0,))
    assert changed.isfinite().all() and not close(changed, usual)
    assert torch.equal(changed, run(base, bo, AttentionSwap(**{**start, **knob, **settings}), seeds=(0,)))


def test_a_dropped_row_hides_all_but_the_words(base, rex):
    """As a run whose attention sees these keys alone."""
    from thisness.attention import MaskAttention, Rows

    sentence = Sentence(base, Prompt(TEXT).fill({"subject": rex.word}), {"subject": rex}, (), None)
    with rex.attach(base), torch.no_grad():
        bound = AttentionSwap(visual="drop", mask="everywhere", layers="all", **FULL).bound(sentence)
        hidden = [at for at in range(24) if at not in (0, 2)]
        only = MaskAttention.hide(hidden, rows=Rows("cond"))
        alone = sample(base, encode(base, "a <rex>"), None, (0,), OPTIONS, interventions=[only])
        both = sample(base, encode(base, "a <rex>"), None, (0,), OPTIONS, interventions=[only, bound])
    assert close(both, alone)


def test_layers_by_default_are_those_of_the_spec():
    """SD 1.x: MasaCtrl's layers 10 to 15; the mask from five layers of 16x16, all before."""
    from accelerate import init_empty_weights
    from diffusers import UNet2DConditionModel

    from thisness.attention import sites_of

    with init_empty_weights():
        sites = sites_of(UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8))
    found = swap_layers(list(sites.values()), "decoder", 64)
    assert [sites[name].layer for name in found] == list(range(10, 16))
    assert all(name.startswith(("up_blocks.2", "up_blocks.3")) for name in found)
    masks = mask_layers(list(sites.values()), "auto", 64, found)
    assert [name[:13] for name in masks] == ["down_blocks.2"] * 2 + ["up_blocks.1.a"] * 3
    assert len(swap_layers(list(sites.values()), "all", 64)) == 16


def test_refusals(base, rex, monkeypatch):
    with pytest.raises(ConfigurationError, match="chooses no layer: known are decoder"):
        run(base, rex, AttentionSwap(layers="5"))
    with pytest.raises(ConfigurationError, match="without its noun"):
        run(base, rex, AttentionSwap(mask_words="noun"))
    with pytest.raises(ValueError, match="start not after stop"):
        AttentionSwap(start=0.5, stop=0.2)
    with pytest.raises(ConfigurationError, match="give a concept"):
        generate(base, "a dog", interventions=["attention-swap"], options=OPTIONS)
    monkeypatch.setattr(base.denoiser, "_compiled_call_impl", object(), raising=False)
    with pytest.raises(ConfigurationError, match=r"torch\.compile"):
        AttentionSwap().bound(Sentence(base, Prompt(TEXT).fill({"subject": rex.word}), {"subject": rex}, (), None))


def test_roles_of_branches_must_differ(base, rex):
    from thisness.attention import Intervention
    from thisness.errors import ThisnessError

    class Asks(Intervention):
        def companion(self, run):
            return Companion("cond", encode(base, "a dog"), 1)

    with pytest.raises(ThisnessError, match="roles of their own"):
        sample(base, encode(base, "a cat"), None, (0,), OPTIONS, interventions=[Asks()])
