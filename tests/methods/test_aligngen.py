"""AlignGen as a method. Oracles: the base before, OminiControl, the stock pipeline driving the same references, one way
of attending against the other, a step that is linear in its prediction, a count of operations on paper."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tiny_flux
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import tiny
from thisness import cli
from thisness.attention import MaskAttention, attached
from thisness.bases import Base, instead
from thisness.bases.flux import pack
from thisness.concept import Concept
from thisness.conditioning import Sentence, encode, encode_adjusted
from thisness.errors import ArtefactError, ConfigurationError, ImageError, PromptError, UserError
from thisness.evaluation.learning import way_of
from thisness.evaluation.recipes import parse_recipe
from thisness.generation import generate, replay
from thisness.methods.aligngen import FIRST, on_base
from thisness.methods.aligngen_references import SelectiveReferences
from thisness.methods.aligngen_training import Trainables, TrainingConfig, save_weights
from thisness.methods.flux_references import Reference, RowLora, installed_on, reference_ids
from thisness.methods.ominicontrol import FILE, black_latents
from thisness.methods.redux import open_redux
from thisness.methods.tea_adjustment import Tea
from thisness.methods.zero_shot import read_subject
from thisness.prompt import FilledPrompt, Prompt
from thisness.sampling import SamplingOptions, sample
from thisness.subject import Subject

OPTIONS = SamplingOptions(steps=2, guidance=2.0)
SENTENCE = "a photo of a {subject} on the beach"
MODES = ("joint", "independent")


@pytest.fixture(scope="module")
def pipe():
    return tiny_flux.pipeline()


@pytest.fixture(scope="module")
def base(pipe):
    return Base.from_pipeline(pipe, name="tiny-flux")


@pytest.fixture(scope="module")
def redux(tmp_path_factory):
    return tiny_flux.redux_folder(tmp_path_factory.mktemp("redux"))


def trained(base):
    made = Trainables.fresh(base, rank=4, dem={"inner": 32, "heads": 4, "hidden": 64})
    drawn = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=drawn) * 0.4)
        made.star.delta.copy_(torch.randn(32, generator=drawn))
    return made


@pytest.fixture(scope="module")
def weights(base, redux, tmp_path_factory):
    """A folder as a recipe writes it."""
    folder = tmp_path_factory.mktemp("weights") / "align"
    more = {"redux": str(redux), "redux_signature": open_redux(str(redux)).signature}
    save_weights(folder, base, trained(base), TrainingConfig(), **more)
    return folder


def picture(seed=0, side=(32, 32)):
    """Large patches, which a small encoder can tell apart."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)).resize(side, 0)


def robot(seed=0, name="rob", noun="robot", **more):
    return Subject(name, noun, (picture(seed),), **more)


@pytest.fixture(scope="module")
def subject():
    return robot()


def read(subject, base, weights, **settings):
    return read_subject("aligngen", subject, base, settings={"weights": str(weights), **settings})


def pixels(made):
    return np.asarray(made.images[0], np.float32)


def latents(base, concept, text=None, seeds=(0,), options=OPTIONS, more=()):
    """What the loop makes of a sentence that holds the concept."""
    with concept.attach(base) as brought:
        read_by = encode(base, Prompt(text or SENTENCE).fill({"subject": concept.word}))
        return sample(base, read_by, None, seeds, options, interventions=(*brought.interventions, *more))


def close(one, other, atol=2e-5):
    return torch.allclose(one, other, rtol=1e-4, atol=atol)


# --- the whole way ---


@pytest.mark.parametrize("mode", MODES)
def test_reads_saves_replays_and_leaves_the_base_alone(mode, base, subject, weights, tmp_path):
    plain = pixels(generate(base, SENTENCE, subject=subject, options=OPTIONS))
    concept = read(subject, base, weights, mode=mode)
    made = generate(base, SENTENCE, concept=concept, seeds=(0, 3), options=OPTIONS)
    assert np.abs(pixels(made) - plain).max() > 2  # of 255
    assert installed_on(base.denoiser) is None and on_base(base) is None and "tokenize" not in vars(base)
    assert np.array_equal(pixels(generate(base, SENTENCE, subject=subject, options=OPTIONS)), plain)
    concept.save(tmp_path / "rob")
    loaded = Concept.load(tmp_path / "rob", base=base)
    again = replay(made.save(tmp_path)[0], base, loaded)
    assert np.array_equal(again.images[0], made.images[0]) and not again.differences
    typed = generate(base, "a photo of a <rob> robot on the beach", concept=concept, seeds=(0, 3), options=OPTIONS)
    assert np.array_equal(typed.images[0], made.images[0])
    other = read(robot(1), base, weights, mode=mode)
    assert np.abs(pixels(generate(base, SENTENCE, concept=other, options=OPTIONS)) - pixels(made)).max() > 2


def test_what_stood_in_the_bases_place_before_comes_back(base, subject, weights):
    """The runner of benchmarks remembers encodings in just this way."""
    asked = []

    def outer(tokens):
        asked.append(tokens)
        return type(base).encode_tokens(base, tokens)

    concept = read(subject, base, weights)
    plain = latents(base, concept)
    for _ in range(2):
        with instead(base, encode_tokens=outer):
            assert torch.equal(latents(base, concept), plain)
            assert base.encode_tokens is outer
            encode(base, ["a robot"])
    assert asked and not {"encode_tokens", "tokenize"} & set(base.__dict__)


@pytest.mark.parametrize("mode", MODES)
def test_ways_of_attending_and_keeping_give_the_same(mode, base, subject, weights):
    def made_by(backend, **more):
        return latents(base, read(subject, base, weights, mode=mode, backend=backend), **more)

    made = {backend: made_by(backend, seeds=(0, 1)) for backend in ("split", "dense")}
    assert close(made["split"], made["dense"])
    once = SamplingOptions(steps=1, guidance=2.0)
    assert close(made_by("flex", options=once), made_by("dense", options=once))
    off = latents(base, read(subject, base, weights, mode=mode, selective=False), seeds=(0, 1))
    assert not close(off, made["dense"], 1e-3)
    again = latents(base, read(subject, base, weights, mode=mode, cache=False), seeds=(0, 1))
    assert torch.equal(again, made["split"])
    alone = latents(base, read(subject, base, weights, mode=mode), seeds=(1,))
    assert close(alone, made["split"][1:])


@pytest.mark.parametrize("backend", ["split", "dense"])
def test_others_may_hide_words_beside_the_mask(base, subject, weights, backend):
    hide = MaskAttention.hide([1])
    found = [latents(base, read(subject, base, weights, backend=b), more=(hide,)) for b in (backend, "dense")]
    assert close(*found) and not close(found[0], latents(base, read(subject, base, weights)), 1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_without_its_three_parts_it_is_ominicontrol(mode, base, subject, weights, tmp_path):
    low_rank = {k: e for k, e in load_file(weights / "model.safetensors").items() if k.startswith("transformer.")}
    (tmp_path / "omini").mkdir()
    save_file(low_rank, tmp_path / "omini" / "model.safetensors")
    config = {"method": "ominicontrol", "base": base.signature, "shift": "-w", "alpha": 4}
    (tmp_path / "omini" / "config.json").write_text(json.dumps(config))
    settings = {"weights": str(tmp_path / "omini"), "mode": mode}
    plain = read_subject("ominicontrol", subject, base, settings=settings)
    off = read(subject, base, weights, mode=mode, star=False, dem=False, selective=False)
    assert close(latents(base, off), latents(base, plain), 1e-5)
    for part in ("star", "dem", "selective"):
        one = {key: key == part for key in ("star", "dem", "selective")}
        assert not close(latents(base, read(subject, base, weights, mode=mode, **one)), latents(base, plain), 1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_the_stock_pipeline_can_drive_it(mode, pipe, base, subject, weights):
    concept = read(subject, base, weights, mode=mode)
    with concept.attach(base) as brought, attached(base.denoiser, *brought.interventions):
        read_by = encode(base, Prompt(SENTENCE).fill({"subject": concept.word}))
        (references,) = brought.interventions
        references.rows = [[rows for _, rows in read_by.spans[0].concepts]]
        stock = pipe(
            prompt_embeds=read_by.embeds, pooled_prompt_embeds=read_by.pooled, num_inference_steps=2,
            guidance_scale=2.0, height=32, width=32, generator=torch.Generator().manual_seed(0), output_type="latent",
        ).images  # fmt: skip
    assert torch.equal(pack(latents(base, concept)), stock)


# --- words ---


def test_t5_reads_the_names_own_tokens_and_clip_nothing_new(base, subject, weights):
    concept = read(subject, base, weights, name="red robot")
    (plain, clip), filled = base.tokenize(FilledPrompt.plain("in the snow, a red robot.")), None
    with concept.attach(base):
        filled = Prompt("in the snow, a {subject}.").fill({"subject": concept.word})
        spans, other = base.tokenize(filled)
        read_by = encode(base, filled)
        assert torch.equal(
            encode(base, "in the snow, a red robot.").embeds, encode(base, "in the snow, a red robot.").embeds
        )
    assert filled.text == "in the snow, a <rob> red robot." and other.ids == clip.ids
    ((number, rows),) = spans.concepts
    star = rows[0]
    assert number == 0 and spans.ids[star] == FIRST and spans.piece(star) == "<rob>"
    assert [*spans.ids[:star], *spans.ids[star + 1 :]] == list(plain.ids[:-1])
    assert [spans.piece(at) for at in range(len(spans.ids)) if at != star] == [plain.piece(a) for a in range(23)]
    assert "".join(spans.piece(at) for at in rows[1:]) == "redrobot"
    with concept.attach(base):
        twice = base.tokenize(Prompt("a {subject} and a {subject}").fill({"subject": concept.word}))[0]
    assert twice.concepts == ((0, (1, 2, 3)),) and [each.word for each in twice.slots] == [(1, 2), (7,)]
    assert spans.slots[0].all == rows and [spans.roles[at] for at in spans.slots[0].noun] == ["noun"]
    assert torch.equal(read_by.pooled, encode(base, "in the snow, a red robot.").pooled)


@torch.no_grad()
def test_only_s_star_is_changed_and_it_alone_knows_the_picture(base, weights):
    """Oracles 9 and 10, with two subjects."""
    filled = Prompt("a {rob} and a {rex}")

    def states(seeds=(0, 1), **settings):
        one, two = robot(seeds[0]), robot(seeds[1], "rex", "dog")
        concepts = [read(each, base, weights, **settings) for each in (one, two)]
        with concepts[0].attach(base), concepts[1].attach(base):
            found = encode(base, filled.fill({"rob": concepts[0].word, "rex": concepts[1].word}))
        return found.embeds[0], [rows for _, rows in found.spans[0].concepts]

    (before, rows), (after, _) = states(dem=False), states()
    changed = (before != after).any(-1).nonzero().flatten().tolist()
    assert changed == sorted(each[0] for each in rows)
    assert torch.equal(states((7, 8), dem=False)[0], before)
    other, _ = states((0, 8))
    assert (other != after).any(-1).nonzero().flatten().tolist() == [rows[1][0]]
    whole, _ = states(replace_all=True)
    assert (whole != before).any(-1).nonzero().flatten().tolist() == sorted([*rows[0], *rows[1]])


def test_tea_turns_s_star_back_to_the_plain_noun(base, subject, weights):
    concept = read(subject, base, weights)
    with concept.attach(base) as brought:
        filled = Prompt(SENTENCE).fill({"subject": concept.word})
        sentence = Sentence(base, filled, {"subject": concept}, (), lambda *_: [], {"subject": brought})
        found = encode_adjusted(sentence, [Tea(alpha=1.0, gamma=1.0)]).conditioning
        spans = found.spans[0]
        with pytest.raises(ConfigurationError, match="no learned word"):
            encode_adjusted(sentence, [Tea(level="token")])
    noun = encode(base, "a photo of a robot on the beach")
    star = spans.concepts[0][1][0]
    name = star + 1
    assert close(found.embeds[0, name], noun.embeds[0, star], 1e-4)
    assert close(found.embeds[0, :star], noun.embeds[0, :star], 1e-4)
    assert close(found.embeds[0, name + 1 : spans.end + 1], noun.embeds[0, name : spans.end], 1e-4)


# --- several ---


@torch.no_grad()
def both(base, weights, seeds=(0, 5), order=("rob", "rex"), **settings):
    made = {
        name: read(robot(seed, name, "dog"), base, weights, **settings) for name, seed in zip(order, seeds, strict=True)
    }
    first, second = made.values()
    with first.attach(base) as brought, second.attach(base):
        read_by = encode(base, Prompt("a {rob} and a {rex}").fill({name: each.word for name, each in made.items()}))
        return sample(base, read_by, None, (0,), OPTIONS, interventions=brought.interventions)


@pytest.mark.parametrize("mode", MODES)
def test_each_subject_reads_its_own_picture(mode, base, weights):
    """Oracle 15: their order does not matter, who has which does."""
    plain = both(base, weights, mode=mode)
    order = float((plain - both(base, weights, (5, 0), ("rex", "rob"), mode=mode)).abs().max())
    swapped = float((plain - both(base, weights, (5, 0), mode=mode)).abs().max())
    unbound = float((plain - both(base, weights, mode=mode, bind=False)).abs().max())
    assert order < 2e-5 and min(swapped, unbound) > 20 * order
    one, two = (read(robot(seed, name, "dog"), base, weights, mode=mode) for name, seed in (("rob", 0), ("rex", 5)))
    pictures = generate(base, "a {rob} and a {rex}", concept={"rob": one, "rex": two}, options=OPTIONS)
    assert "a <rob> dog and a <rex> dog" in str(pictures.record)


def test_subjects_of_other_settings_or_of_one_name_are_refused(base, subject, weights):
    one, unlike = read(subject, base, weights), read(robot(5, "rex"), base, weights, selective=False)
    twin = read(robot(5), base, weights)
    for other, said in ((unlike, "give all the same"), (twin, "two concepts of this sentence are called <rob>")):
        with pytest.raises(ConfigurationError, match=said):
            generate(base, "a {one} and a {two}", concept={"one": one, "two": other}, options=OPTIONS)
        assert installed_on(base.denoiser) is None and on_base(base) is None


@torch.no_grad()
def test_a_second_of_the_same_picture_changes_nothing_of_the_first_concept_in_block_1(base, weights):
    """Oracle 15, last sentence."""
    model, low_rank = base.denoiser, RowLora({k: e.detach() for k, e in trained(base).low_rank.items()})
    reference = Reference(torch.randn(16, 64, generator=torch.Generator().manual_seed(1)), reference_ids(4, 4, (0, -4)))
    twice = replace(reference, name="twin")
    found = []
    for items, rows in (([reference], [[[2, 3]]]), ([reference, twice], [[[2, 3], [5]]])):
        references = SelectiveReferences(items, low_rank, "joint")
        references.rows = rows
        kept = []
        hook = model.transformer_blocks[0].register_forward_hook(lambda _, args, out, kept=kept: kept.append(out[0]))
        with references.installed(model), attached(model, references):
            base.predict(torch.ones(1, 16, 16, 16), 500, encode(base, "a photo of a dog"))
        hook.remove()
        found.append(kept[0][0])
    assert close(found[0][[2, 3]], found[1][[2, 3]], 1e-6) and torch.equal(found[0][[0, 1]], found[1][[0, 1]])
    assert not close(found[0][5], found[1][5], 1e-3)


@torch.no_grad()
@pytest.mark.parametrize("backend", ["split", "dense"])
@pytest.mark.parametrize("mode", MODES)
def test_without_references_it_is_the_base_and_with_all_words_concepts_ominicontrol(mode, backend, base):
    """Oracles 1 and 2."""
    low_rank = RowLora({k: e.detach() for k, e in trained(base).low_rank.items()})
    item = Reference(torch.randn(16, 64, generator=torch.Generator().manual_seed(1)), reference_ids(4, 4, (0, -4)))

    def predicted(items, **more):
        references = SelectiveReferences(items, low_rank, mode, backend=backend, **more)
        references.rows = [[range(24)] * len(items)]
        with references.installed(base.denoiser), attached(base.denoiser, references):
            return base.predict(torch.ones(2, 16, 16, 16), 500, encode(base, ["a dog", "a red dog"]))

    assert torch.equal(
        predicted([]), base.predict(torch.ones(2, 16, 16, 16), 500, encode(base, ["a dog", "a red dog"]))
    )
    assert close(predicted([item]), predicted([item], selective=False), 2e-6)
    assert not close(predicted([item]), predicted([]), 1e-2)


# --- black ---


@pytest.mark.parametrize("mode", MODES)
def test_a_black_reference_is_the_same_for_all_and_s_star_still_knows(mode, base, subject, weights):
    """Oracles 13 and 14."""
    dark = read(subject, base, weights, mode=mode, black=True)
    plain = read(subject, base, weights, mode=mode)
    tensors = plain.tensors[FILE]
    same = plain.with_tensors({FILE: {**tensors, "latents": black_latents(base, 32)}})
    assert torch.equal(latents(base, dark), latents(base, same))
    unseen = {"mode": mode, "black": True, "dem": False}
    found = [latents(base, read(robot(seed), base, weights, **unseen)) for seed in (0, 1)]
    assert torch.equal(*found)
    assert not close(latents(base, dark), latents(base, read(robot(1), base, weights, mode=mode, black=True)), 1e-3)
    assert not close(latents(base, dark), latents(base, plain), 1e-3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dev", [True, False])
def test_image_guidance_goes_from_black_through_the_picture(dev, mode, redux, weights, tmp_path):
    """One step is linear in its prediction; at 1 no second branch is computed."""
    base = Base.from_pipeline(tiny_flux.pipeline(dev=dev), name="tiny-flux")
    save_weights(tmp_path / "w", base, trained(base), TrainingConfig(mode), redux=str(redux))
    options, counts = SamplingOptions(steps=1, guidance=2.0), []
    hook = base.denoiser.register_forward_pre_hook(
        lambda _, args, kwargs: counts.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    found = {
        key: latents(base, read(robot(), base, tmp_path / "w", **settings), options=options, seeds=(0, 1))
        for key, settings in {1: {}, 2.5: {"strength": 2.5}, 0: {"strength": 0.0}, "black": {"black": True}}.items()
    }
    hook.remove()
    own = 2 if dev else 4
    assert counts == [own, own + 2, own + 2, own]
    if dev:
        assert close(found[0], found["black"], 1e-4)
        assert close(found[2.5], found["black"] + 2.5 * (found[1] - found["black"]), 1e-3)
    else:  # the unguided rows keep their picture, so only differences are linear
        assert close(found[2.5] - found[0], 2.5 * (found[1] - found[0]), 1e-3)
    assert not close(found[1], found[0], 1e-2)


# --- masks ---


def masked(seed=0):
    mask = np.zeros((32, 32), np.float32)
    mask[:16, :16] = 1
    return Subject("rob", "robot", (picture(seed),), (mask,))


def test_what_the_mask_leaves_out_is_not_read(base, subject, weights):
    concept = read(masked(), base, weights, foreground=True)
    tensors = concept.tensors[FILE]
    kept = tensors["kept"].bool()
    assert 0 < int(kept.sum()) < 64
    image = np.asarray(picture()).copy()
    with concept.attach(base) as brought:
        assert brought.interventions[0].lengths == [int(kept.sum())]
    plain = read(masked(), base, weights)
    assert not close(latents(base, concept), latents(base, plain), 1e-3)
    image[20:] = 0
    white = read(masked(), base, weights, background="white")
    assert not torch.equal(white.tensors[FILE]["redux"], plain.tensors[FILE]["redux"])
    for settings in ({"foreground": True}, {"background": "white"}):
        with pytest.raises(ImageError, match="has no mask"):
            read(subject, base, weights, **settings)


@pytest.mark.parametrize("kind", ["L", "P", "1", "LA", "I;16"])
def test_files_of_any_mode_and_side_are_read(kind, base, weights, tmp_path):
    image = picture(0, (31, 45)).convert("L" if kind == "I;16" else kind).convert(kind)
    image.save(tmp_path / "odd.png")
    image.convert("L").convert("RGB").save(tmp_path / "plain.png")
    odd, plain = (Subject.from_folder(tmp_path / name, noun="robot") for name in ("odd.png", "plain.png"))
    one, other = (read(each, base, weights).tensors[FILE] for each in (odd, plain))
    if kind in ("L", "1", "LA"):
        assert all(torch.equal(one[name], other[name]) for name in ("latents", "redux"))
    assert all(bool(each.isfinite().all()) for each in one.values())


# --- operations (oracle 21) ---


def test_operations_are_those_of_the_paper_count(base, subject, weights):
    """As for OminiControl: the selective mask by "split" costs the concept's few rows once more."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    d, blocks, channels, text, noisy, length = 48, 4, 64, 24, 64, 64
    main = text + noisy

    def paper(queries, pairs):
        return blocks * (24 * d * d * queries + 4 * d * pairs)

    def counted(mode, steps):
        concept = read(subject, base, weights, mode=mode)
        options = SamplingOptions(steps=steps, guidance=2.0)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            latents(base, concept, options=options)
        return counter.get_total_flops()

    step = {mode: counted(mode, 2) - counted(mode, 1) for mode in MODES}
    embedding = 2 * length * channels * d
    adapters = sum(2 * (1 if "norm" in key else length) * each.numel() for key, each in trained(base).low_rank.items())
    pairs = text * main + noisy * (main + length) + 2 * (main + length)  # the name "robot" is one token
    assert step["independent"] == pytest.approx(paper(main, pairs) + 2 * embedding, rel=0.05)
    pairs += length * (main + length)
    assert step["joint"] == pytest.approx(paper(main + length, pairs) + adapters + 3 * embedding, rel=0.05)


# --- refusals ---


def test_what_cannot_be_read_is_refused_in_one_line(base, subject, weights, redux, tmp_path):
    def changed(tensors=None, **config):
        folder = shutil.copytree(weights, tmp_path / f"w{len(list(tmp_path.iterdir()))}")
        said = json.loads((folder / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps({k: v for k, v in said.items() if v is not None}))
        if tensors is not None:
            save_file(tensors, folder / "model.safetensors")
        return folder

    good = load_file(weights / "model.safetensors")
    no_lora = {key: each for key, each in good.items() if ".lora_" not in key}
    wide = {k: torch.zeros(4, 3072) if k.endswith("x_embedder.lora_A.weight") else e for k, e in good.items()}
    cases = [
        (changed(base="else", base_name="sd15"), "were trained on sd15"),
        (changed(shift=None), "does not say where references stand"),
        (changed(shift="up"), "shift 'up': expected"),
        (changed(method="ominicontrol"), "not for 'aligngen'"),
        (changed(redux_signature="0" * 64), "trained with another Redux"),
        (changed(dem={"width": 32, "inner": 16, "heads": 4, "hidden": 64}), "do not fit each other"),
        (changed(no_lora | {"x_embedder.weight": torch.ones(48, 64)}), "merged into a model act on every row"),
        (changed(good | {"transformer.x_embedder.lora_magnitude_vector": torch.ones(48)}), "of the DoRA type"),
        (changed(wide), "for another model: "),
    ]
    for folder, said in cases:
        with pytest.raises(UserError, match=said) as caught:
            read(subject, base, folder)
        assert "\n" not in str(caught.value)
    narrow = tiny_flux.redux_folder(tmp_path / "narrow", width=16)
    with pytest.raises(ConfigurationError, match="tokens of width 16, and the base's text is 32 wide"):
        read(subject, base, changed(redux_signature=None), redux=str(narrow))
    with pytest.raises(ConfigurationError, match="of the family sd: use --base flux-dev"):
        read(subject, tiny.base(), weights)
    with pytest.raises(ConfigurationError, match="strength 30.*black=true|black=true"):
        read(subject, base, weights, strength=30.0, black=True)
    with pytest.raises(ConfigurationError, match="height 30 must be a multiple of 4"):
        read(subject, base, weights, size=30)
    with pytest.raises(ConfigurationError, match="there is no format"):
        read(subject, base, weights).export("nowhere")
    moved = changed(shift="0,-6")
    concept = read(subject, base, moved)
    said = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(said | {"shift": "-w"}))
    from thisness.methods import zero_shot

    zero_shot._open.cache_clear()
    with pytest.raises(ArtefactError, match="read with a shift of 0,-6, and .* now says -w"), concept.attach(base):
        pass
    overlap = read(subject, base, changed(shift="+w"))
    with pytest.raises(ConfigurationError, match="stands at positions of the picture"):
        generate(base, SENTENCE, concept=overlap, options=SamplingOptions(steps=1, width=64))


def test_sentences_that_do_not_fit_are_refused_in_one_line(base, subject, weights):
    concept = read(subject, base, weights)
    for sentence, said in (
        ("a photo of a <rob> cat", "'robot' is not in ' cat'"),
        ("on the beach " * 7 + "a {subject}", "with its S\\*, but the encoder takes 24: shorten it by 1"),
        ("on the beach " * 9 + "a {subject}", "would be cut"),
        ("on the beach", "no placeholder: write {subject}"),
    ):
        with pytest.raises(PromptError, match=said):
            generate(base, sentence, concept=concept, options=OPTIONS)
        assert on_base(base) is None


def test_a_back_end_that_leaves_masks_out_is_refused_where_there_is_one(base, subject, weights, monkeypatch):
    from diffusers.models.attention_dispatch import AttentionBackendName

    dense, split = (read(subject, base, weights, backend=each) for each in ("dense", "split"))
    found = latents(base, split)
    for processor in base.denoiser.attn_processors.values():
        monkeypatch.setattr(processor, "_attention_backend", AttentionBackendName.SAGE)
    with pytest.raises(ConfigurationError, match="'sage' leaves masks out"):
        latents(base, dense)
    assert torch.equal(latents(base, split), found)


def test_a_merged_adapter_on_the_same_layers_is_refused(base, subject, weights):
    from peft import LoraConfig, inject_adapter_in_model

    other = Base.from_pipeline(tiny_flux.pipeline(), name="tiny-flux")
    concept = read(subject, other, weights)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["x_embedder"], init_lora_weights=False), other.denoiser)
    plain = latents(other, concept)
    assert not close(plain, latents(base, read(subject, base, weights)), 1e-4)
    other.denoiser.x_embedder.merge()
    with pytest.raises(ConfigurationError, match="merged into it"):
        latents(other, concept)


# --- commands ---


def test_a_recipe_of_a_benchmark(base, subject, weights, redux, tmp_path):
    way = way_of(parse_recipe(f'aligngen:weights="{weights}",mode=independent'))
    assert way.settings(base)["weights_hash"] and way.settings(base)["mode"] == "independent"
    way.prepare(subject, base, tmp_path / "c", None)
    assert Concept.load(tmp_path / "c", base=base).method == "aligngen"


def test_the_command_line(pipe, weights, tmp_path, capsys):
    pipe.save_pretrained(tmp_path / "base")
    picture().save(tmp_path / "robot.png")
    words = ["generate", "a {subject} on the beach", "--subject", tmp_path / "robot.png", "--noun", "robot"]
    words += ["--method", f"aligngen:weights={weights},strength=1.5", "--base", tmp_path / "base"]
    words += ["--steps", "2", "--out", tmp_path / "out", "--offload", "--dtype", "bfloat16", "--device", "cpu"]
    assert cli.run([str(word) for word in words]) == 0, capsys.readouterr().err
    assert any((tmp_path / "out").rglob("*.png"))
