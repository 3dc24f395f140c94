"""Several subjects in one picture. Oracles: the run of one subject, the adapter's own site, maps recorded beside."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_ezigen import random_adapter, read, write_weights

import tiny
from thisness.attention import Context, Row, Site
from thisness.attention.capture import CaptureMaps
from thisness.bases import load_base
from thisness.cli import run as cli
from thisness.concept import Concept
from thisness.errors import ConfigurationError
from thisness.generation import generate, replay
from thisness.images import save_png
from thisness.methods.ezigen_adapter import SubjectAttention
from thisness.methods.ezigen_regions import RegionAttention, Regions
from thisness.methods.harmonizing import assigned, subject_mask
from thisness.sampling import SamplingOptions
from thisness.subject import Subject

OPTIONS = SamplingOptions(steps=5, guidance=3.0)
TEXT = "a {one} on a {two}"


@pytest.fixture(scope="module")
def base():
    return tiny.base("v_prediction")


@pytest.fixture(scope="module")
def weights(base, tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / "w", base, random_adapter(base))


def subject(name, noun, seed):
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 255, (16, 16, 3), np.uint8))
    return Subject(name, noun, (image,), (np.ones((16, 16), np.float32),))


@pytest.fixture(scope="module")
def rex(base, weights):
    return read(subject("rex", "dog", 0), base, weights)


@pytest.fixture(scope="module")
def mimi(base, weights):
    return read(subject("mimi", "cat", 1), base, weights)


def draw(base, one, two, *regions, text=TEXT, seeds=(3,), **more):
    concepts = {slot: each for slot, each in (("one", one), ("two", two)) if each is not None}
    return generate(base, text, concept=concepts, interventions=regions, seeds=seeds, options=OPTIONS, **more)


def pixels(generation):
    return np.stack([np.asarray(image) for image in generation.images])


def joint(base, **subjects):
    adapter = random_adapter(base)
    draws = torch.Generator().manual_seed(7)
    members = {}
    for slot in subjects or ("one", "two"):
        features = [torch.randn(1, 9, width, generator=draws) for width in adapter.widths]
        members[slot] = SubjectAttention(adapter, adapter.project(features), share=0.4)
    return RegionAttention(members, base.denoiser), members


def test_a_site_is_each_subjects_own_inside_its_region_and_none_outside(base):
    acting, members = joint(base)
    left, right = torch.zeros(4, 4), torch.zeros(4, 4)
    left[:, :1], right[1:3, 2:] = 1, 1
    acting.regions.begin((4, 4))
    acting.regions.given |= {"one": left, "two": right}
    site = next(s for s in map(_place, acting.adapter.names) if acting.match(s))
    hidden = torch.randn(4, 16, acting.adapter.widths[0], generator=torch.Generator().manual_seed(1))
    rows = (Row("uncond", 0), Row("uncond", 1), Row("cond", 0), Row("cond", 1))
    context = Context(rows=rows, step=4, steps=5)
    out = acting.between(site, hidden, context)
    apart = {slot: each.between(site, hidden, context) for slot, each in members.items()}
    none = acting.adapter.sites[0](hidden, None, 1.0)
    for slot, region in (("one", left), ("two", right)):
        inside = region.flatten() > 0
        assert torch.equal(out[:, inside], apart[slot][:, inside])
        assert not torch.allclose(out[:, inside], none[:, inside], atol=1e-3)
    outside = (left + right).flatten() == 0
    assert torch.equal(out[:, outside], none[:, outside])
    acting.regions.begin((4, 4))
    acting.regions.given |= {"one": right, "two": left}
    swapped = acting.between(site, hidden, context)
    inside = left.flatten() > 0
    assert torch.equal(swapped[:, inside], apart["two"][:, inside])
    assert torch.equal(swapped[:, right.flatten() > 0], apart["one"][:, right.flatten() > 0])
    other = [i for i, row in enumerate(rows) if row.role == "cond"]
    acting.masses = []
    acting.between(site, hidden, context)
    parts = [acting.adapter.sites[0].mass(hidden[other], each.subject[0]) for each in members.values()]
    assert torch.allclose(acting.masses[0], parts[0] * right.flatten() + parts[1] * left.flatten(), atol=1e-6)


def _place(name):
    return Site(name, "cross", 0, 4, "down")


@pytest.mark.parametrize("more", [{}, {"lock_background": True}, {"subject_guidance": 2.0}])
def test_with_nothing_left_for_the_second_it_is_one_subject(base, weights, more):
    one, two = (read(subject(*each), base, weights, **more) for each in (("rex", "dog", 0), ("mimi", "cat", 1)))
    alone = pixels(draw(base, one, None, text="a {one} on a cat", seeds=(3, 4)))
    assert np.array_equal(pixels(draw(base, one, two, "region:slot=one", seeds=(3, 4))), alone)
    halves = ("region:slot=one,right=0.5", "region:slot=two,left=0.5")
    assert not np.array_equal(pixels(draw(base, one, two, *halves, seeds=(3, 4))), alone)


def test_swapping_places_and_words_is_the_same_picture(base, weights):
    """The same noun twice, so that nothing but the regions says who is where."""
    rex, bo = (read(subject(name, "dog", seed), base, weights) for name, seed in (("rex", 0), ("bo", 1)))
    left, right = "right=0.5", "left=0.5"
    first = pixels(draw(base, rex, bo, f"region:slot=one,{left}", f"region:slot=two,{right}"))
    assert np.array_equal(first, pixels(draw(base, bo, rex, f"region:slot=one,{right}", f"region:slot=two,{left}")))
    assert not np.array_equal(first, pixels(draw(base, rex, bo, f"region:slot=one,{right}", f"region:slot=two,{left}")))


def test_regions_are_the_words_attention_in_the_layout(base, rex, mimi, monkeypatch):
    found = []
    plain = Regions.weights
    monkeypatch.setattr(Regions, "weights", lambda self, positions: found.append(plain(self, positions)) or found[-1])
    capture = CaptureMaps()
    made = draw(base, rex, mimi, capture, seeds=(3, 4))
    alone = draw(base, rex, mimi, seeds=(3, 4))
    assert np.array_equal(pixels(made), pixels(alone))  # looking changes nothing
    sites = {name for _, name in capture.maps}
    side = 8
    names = [n for n in sites if round(capture.maps[0, n].shape[1] ** 0.5) == side]
    spans = base.tokenize(_filled(rex, mimi))[0]
    mean = {}
    for slot in ("one", "two"):
        maps = [capture.maps[step, n][:, :, list(spans.of(slot))].sum(-1) for step in range(3) for n in names]
        mean[slot] = torch.stack(maps).mean(0).unflatten(1, (side, side))
    wanted = assigned(torch.stack(list(mean.values())), (side, side), "otsu").flatten(2).float()
    weights = next(each for each in found if each.shape[-1] == side * side)
    assert torch.equal(weights[:2], wanted) and torch.equal(weights[2], 1 - wanted.sum(0))
    assert 0 < wanted[0].mean() < 1 and 0 < wanted[1].mean() < 1
    report = next(each for each in made.record["adjusted"] if each.get("name") == "regions")
    assert report["areas"]["one"] == pytest.approx(float(wanted[0].mean()), abs=1e-3)
    batch = pixels(alone)[1].astype(int)
    assert np.abs(batch - pixels(draw(base, rex, mimi, seeds=(4,)))[0]).max() <= 1


def _filled(one, two):
    from thisness.prompt import Prompt

    return Prompt(TEXT).fill({"one": one.word, "two": two.word})


def test_assignment_by_argmax():
    """One subject: its mask. Disjoint; permuting subjects permutes masks; a subject keeps what is only its own."""
    maps = torch.rand(3, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    for how in ({}, {"threshold": 0.3}, {"resize": "bilinear"}):
        masks = assigned(maps, (12, 12), **how)
        assert torch.equal(assigned(maps[:1], (12, 12), **how)[0], subject_mask(maps[0], (12, 12), **how))
        assert (masks.sum(0) <= 1).all()
        assert torch.equal(assigned(maps[[2, 0, 1]], (12, 12), **how), masks[[2, 0, 1]])
        union = torch.stack([subject_mask(each, (12, 12), **how) for each in maps]).any(0)
        assert torch.equal(masks.any(0) & union, masks.any(0)) and (masks.any(0) ^ union).float().mean() < 0.5
    two = torch.zeros(2, 1, 4, 4)
    two[0, 0, :, :2], two[1, 0, :, 1:] = 2.0, 1.0
    two[1, 0, :, 1] = 0.6
    masks = assigned(two, (4, 4), threshold=0.3)
    assert masks[0, 0, 0].tolist() == [True, True, False, False]
    assert masks[1, 0, 0].tolist() == [False, False, True, True]
    flat = assigned(torch.stack([two[0], torch.full((1, 4, 4), 0.5)]), (4, 4))
    assert not flat[1].any() and flat[0].any()


def test_a_mask_is_its_box_and_replays(base, rex, mimi, tmp_path):
    mask = np.zeros((256, 256), np.uint8)
    mask[:, :128] = 255
    save_png(Image.fromarray(mask), tmp_path / "left.png")
    byfile = draw(base, rex, mimi, f"region:slot=one,mask={tmp_path / 'left.png'}", "region:slot=two,left=0.5")
    bybox = draw(base, rex, mimi, "region:slot=one,right=0.5", "region:slot=two,left=0.5")
    assert np.array_equal(pixels(byfile), pixels(bybox))
    byfile.save(tmp_path / "made")
    again = replay(next((tmp_path / "made").glob("0*.png")), base, {"one": rex, "two": mimi})
    assert not again.differences and np.array_equal(pixels(again), pixels(byfile))


def test_the_command_line(base_folder, tmp_path):
    """Read apart, drawn together; the same pictures as in Python."""
    loaded = load_base(str(base_folder))
    weights = write_weights(tmp_path / "w", loaded, random_adapter(loaded))
    settings = [f"--set={key}" for key in (f"weights={weights}", "min_loops=0", "max_loops=0", "share=0.5")]
    concepts = {}
    for slot, noun, seed in (("one", "dog", 0), ("two", "cat", 1)):
        save_png(subject(slot, noun, seed).images[0], tmp_path / f"{slot}.png")
        words = ["learn", "ezigen", tmp_path / f"{slot}.png", "--noun", noun, "--base", base_folder, *settings]
        assert cli([str(word) for word in [*words, "--out", tmp_path / slot]]) == 0
        concepts[slot] = Concept.load(tmp_path / slot, loaded)
    words = ["generate", TEXT, "--base", base_folder, "--seeds", "0", "--steps", "4", "--out", tmp_path / "made"]
    words += [each for slot in concepts for each in ("--concept", f"{slot}={tmp_path / slot}")]
    assert cli([str(word) for word in [*words, "--attach", "region:slot=two,left=0.5"]]) == 0
    made = generate(
        loaded, TEXT, concept=concepts, interventions=["region:slot=two,left=0.5"],
        options=SamplingOptions(steps=4),
    )  # fmt: skip
    (file,) = (tmp_path / "made").glob("0*.png")
    assert np.array_equal(np.asarray(Image.open(file)), pixels(made)[0])


def test_refusals(base, rex, mimi, weights, tmp_path):
    loud = read(subject("bo", "cat", 1), base, weights, scale=0.5, share=0.6)
    with pytest.raises(ConfigurationError, match=r"one, two differ in share \(0\.4, 0\.6\), scale \(1\.0, 0\.5\)"):
        draw(base, rex, loud)
    other = write_weights(tmp_path / "w", base, random_adapter(base, gate=0.3))
    with pytest.raises(ConfigurationError, match="other weights"):
        draw(base, rex, read(subject("bo", "cat", 1), base, other))
    both = [read(subject(*each), base, weights, share=1.0) for each in (("rex", "dog", 0), ("bo", "cat", 1))]
    with pytest.raises(ConfigurationError, match=r"no step without the subjects.*region:slot=one"):
        draw(base, *both)
    draw(base, *both, "region:slot=one,right=0.5", "region:slot=two,left=0.5")
    with pytest.raises(ConfigurationError, match="one subject"):
        draw(base, rex, None, "region:slot=one", text="a {one}")
    with pytest.raises(ConfigurationError, match=r"slot=tow: no such placeholder \(did you mean 'two'\?\)"):
        draw(base, rex, mimi, "region:slot=tow")
    with pytest.raises(ConfigurationError, match="left 0.6 and right 0.4"):
        draw(base, rex, mimi, "region:slot=one,left=0.6,right=0.4")


def test_the_same_concept_twice_needs_no_binding(base, rex):
    twice = draw(base, rex, rex)
    once = draw(base, rex, None, text="a {one} on a dog")
    assert np.array_equal(pixels(twice), pixels(once))
