"""TEA's arithmetic. The numbers in the names are those of the oracles in the specification."""

import math
import warnings

import pytest
import torch

import tiny
from thisness.errors import ConfigurationError, ThisnessError
from thisness.methods.tea import (
    adjust,
    adjust_sequence,
    aligned,
    aligned_ids,
    anchor_row,
    angle,
    positional,
    rotate,
    rotate_together,
)
from thisness.prompt import Prompt, SlotWord

D = 768


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def pairs():
    """Gaussian, and nearly parallel."""
    v, c = drawn(6, D), 0.4 * drawn(6, D, seed=1)
    return [(v, c), (v, 0.3 * v + 1e-3 * c)]


def at(theta, size=2.0, dtype=torch.float64):
    """Two vectors of that angle: norms `size` and 1."""
    v, c = torch.zeros(D, dtype=torch.float64), torch.zeros(D, dtype=torch.float64)
    v[0], c[0], c[1] = size, math.cos(theta), math.sin(theta)
    return v.to(dtype), c.to(dtype)


def angles(one, other):
    one, other = one.double(), other.double()
    return angle(one / one.norm(dim=-1, keepdim=True), other / other.norm(dim=-1, keepdim=True))


def off(found, expected):
    """Relative error."""
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


RULES = [{}, {"gamma": 0.2}, {"beta": 1.5}, {"norm": "keep"}, {"norm": "anchor"}]


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 0.0)])
def test_1_alpha_0_that_keeps_the_norm_is_the_identity(dtype, most):
    for v, c in pairs():
        v, c = v.to(dtype), c.to(dtype)
        assert off(adjust(v, c, 0.0, gamma=0.0), v) <= most
        assert off(adjust(v, c, 0.0, norm="keep"), v) <= most
        beta = float(v[0].double().norm() / c[0].double().norm())
        assert off(adjust(v[0], c[0], 0.0, beta=beta), v[0]) <= (most or 2**-8)


def test_2_alpha_1_takes_the_direction_of_the_anchor():
    for v, c in pairs():
        for rule in RULES:
            made = adjust(v, c, 1.0, **rule)
            assert off(made / made.norm(dim=-1, keepdim=True), c / c.norm(dim=-1, keepdim=True)) <= 1e-12
        assert off(adjust(v, c, 1.0, gamma=1.0), c) <= 1e-12
        assert off(adjust(v, c, 1.0, beta=1.0), c) <= 1e-12


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-12), (torch.float32, 5e-7), (torch.bfloat16, 4e-3)])
def test_3_norm_is_that_of_the_rule_whatever_alpha(dtype, most):
    for v, c in pairs():
        v, c = v.to(dtype), c.to(dtype)
        norms = v.double().norm(dim=-1), c.double().norm(dim=-1)
        for alpha in (0.0, 0.1, 0.5, 0.77, 1.0):
            assert off(adjust(v, c, alpha).double().norm(dim=-1), 0.5 * norms[0] + 0.5 * norms[1]) <= most
            assert off(adjust(v, c, alpha, gamma=0.2).double().norm(dim=-1), 0.8 * norms[0] + 0.2 * norms[1]) <= most
            assert off(adjust(v, c, alpha, beta=1.5).double().norm(dim=-1), 1.5 * norms[1]) <= most
            assert off(adjust(v, c, alpha, norm="keep").double().norm(dim=-1), norms[0]) <= most
            assert off(adjust(v, c, alpha, norm="anchor").double().norm(dim=-1), norms[1]) <= most


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_4_and_5_it_rotates_by_alpha_times_the_angle_in_the_plane(dtype, most):
    for v, c in pairs():
        v, c = v.to(dtype), c.to(dtype)
        theta = angles(v, c)
        assert torch.allclose(rotate(v, c, 0.3).angle.double(), theta, atol=most)
        for alpha in (0.0, 0.2, 0.35, 0.9, 1.0):
            made = adjust(v, c, alpha)
            assert (angles(v, made) - alpha * theta).abs().max() <= most
            assert (angles(made, c) - (1 - alpha) * theta).abs().max() <= most
            for one, other, result in zip(v.double(), c.double(), made.double(), strict=True):
                plane = torch.stack([one / one.norm(), other / other.norm()], 1)
                fitted = plane @ torch.linalg.lstsq(plane, result[:, None]).solution
                assert off(fitted[:, 0], result) <= most


def test_6_monotone_in_alpha():
    v, c = drawn(4, D), drawn(4, D, seed=1)
    made = [adjust(v, c, alpha) for alpha in torch.linspace(0, 1, 21).tolist()]
    to_c = torch.stack([torch.cosine_similarity(each, c, dim=-1) for each in made])
    to_v = torch.stack([torch.cosine_similarity(each, v, dim=-1) for each in made])
    assert (to_c.diff(dim=0) >= -1e-12).all() and (to_v.diff(dim=0) <= 1e-12).all()


def test_7_composition_toward_the_same_anchor():
    v, c = drawn(D), drawn(D, seed=1)
    twice = adjust(adjust(v, c, 0.2, norm="keep"), c, 0.5, norm="keep")
    assert off(twice, adjust(v, c, 0.2 + 0.5 - 0.1, norm="keep")) <= 1e-12
    once = adjust(v, c, 0.0, beta=1.5)
    assert off(adjust(once, c, 0.3, beta=1.5).norm(), once.norm()) <= 1e-12
    blended = adjust(adjust(v, c, 0.2, gamma=0.3), c, 0.5, gamma=0.4)
    assert off(blended, adjust(v, c, 0.6, gamma=0.3 + 0.4 - 0.12)) <= 1e-12


def test_8_equivariance():
    v, c = drawn(64), drawn(64, seed=1)
    q = torch.linalg.qr(drawn(64, 64, seed=2)).Q
    for rule in RULES:
        assert off(adjust(q @ v, q @ c, 0.3, **rule), q @ adjust(v, c, 0.3, **rule)) <= 1e-12
        assert off(adjust(7 * v, 7 * c, 0.3, **rule), 7 * adjust(v, c, 0.3, **rule)) <= 1e-12
    assert off(adjust(5 * v, c, 0.3, beta=1.5), adjust(v, c, 0.3, beta=1.5)) <= 1e-12


def test_9_swap():
    v, c = drawn(5, D), 3 * drawn(5, D, seed=1)
    assert off(adjust(v, c, 0.3), adjust(c, v, 0.7)) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("theta", [0.0, 1e-9, 1e-5, 1e-3, math.pi - 1e-9, math.pi])
def test_10_hard_angles(theta, dtype):
    v, c = at(theta, dtype=dtype)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        made = adjust(v, c, 0.5)
    assert made.isfinite().all() and made.norm().item() == pytest.approx(1.5, rel=1e-6)
    assert bool(said) == (theta > 3)
    if theta > 3:
        assert torch.allclose(made / 1.5, v / 2, atol=1e-6)  # it keeps its direction


def test_10_a_vector_without_direction_is_returned_and_counted():
    v, c = drawn(3, D), drawn(3, D, seed=1)
    v[1], c[2] = 0, 0
    done = rotate(v, c, 0.5)
    assert done.zero.tolist() == [False, True, True]
    assert torch.equal(done.vectors[1:], v[1:]) and not torch.equal(done.vectors[0], v[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_11_a_batch_is_its_vectors_and_nothing_is_changed_in_place(dtype):
    v, c = drawn(2, 5, D).to(dtype), drawn(D, seed=1).to(dtype)
    before = v.clone(), c.clone()
    made = adjust(v, c, 0.3)
    assert made.dtype == dtype and made.shape == v.shape and made.isfinite().all()
    assert torch.equal(made[1], adjust(v[1], c, 0.3)) and torch.equal(made[1, 3], adjust(v[1, 3], c, 0.3))
    assert torch.equal(v, before[0]) and torch.equal(c, before[1])


def test_12_by_hand():
    v, c = torch.tensor([2.0, 0.0], dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert adjust(v, c, 0.5).tolist() == pytest.approx([1.5 / math.sqrt(2)] * 2, rel=1e-12)
    expected = [1.5 * math.cos(math.pi / 6), 1.5 * math.sin(math.pi / 6)]
    assert adjust(v, c, 1 / 3).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("theta", [0.2, 0.8, 1.57, 2.4, 2.9])
def test_13_parity_with_a_plain_transcription(theta):
    v, c = at(theta, size=2.3, dtype=torch.float32)
    for alpha in (0.1, 0.2, 0.7):
        r = 0.5 * 2.3 + 0.5
        first, second = (math.sin(x * theta) / math.sin(theta) * r for x in (1 - alpha, alpha))
        expected = [first * a / 2.3 + second * b for a, b in zip(v.tolist(), c.tolist(), strict=True)]
        assert off(adjust(v, c, alpha), torch.tensor(expected)) <= 1e-6


def test_no_op_positions_are_the_same_bits():
    v = drawn(4, D, dtype=torch.float32)
    c = v.clone()
    c[2] += 0.1
    made = adjust(v, c, 0.37)
    assert torch.equal(made[[0, 1, 3]], v[[0, 1, 3]]) and not torch.equal(made[2], v[2])


def test_what_is_refused():
    v, c = drawn(4), drawn(4, seed=1)
    for alpha in (-0.1, 1.2, float("nan")):
        with pytest.raises(ConfigurationError, match=r"alpha .* is not in 0 \.\.\. 1"):
            adjust(v, c, alpha)
    with pytest.raises(ConfigurationError, match="beta"):
        adjust(v, c, 0.2, beta=0.0)
    with pytest.raises(ConfigurationError, match="gamma"):
        adjust(v, 0.1 * v, 0.2, gamma=3.0)


def test_extrapolation_goes_away_from_the_anchor():
    v, c = drawn(D), drawn(D, seed=1)
    made = adjust(v, c, -0.2, extrapolate=True)
    assert angles(made, c).item() == pytest.approx(1.2 * angles(v, c).item(), abs=1e-12)
    assert made.norm().item() == pytest.approx((v.norm() / 2 + c.norm() / 2).item(), rel=1e-12)


def test_weights_equal_ones_are_plain_tea_and_those_of_0_stay():
    v, c = drawn(3, D), drawn(3, D, seed=1)
    for equal in (torch.ones(D), 7 * torch.ones(D), torch.ones(3, D)):
        assert torch.equal(adjust(v, c, 0.3, weights=equal), adjust(v, c, 0.3))
    half = torch.cat([torch.ones(D // 2), torch.zeros(D // 2)])
    made = adjust(v, c, 0.3, weights=half)
    ratio = made[:, D // 2 :] / v[:, D // 2 :]
    assert (ratio.std(dim=-1) <= 1e-12).all()  # as v, but for the norm
    assert torch.allclose(made.norm(dim=-1), adjust(v, c, 0.3).norm(dim=-1), rtol=1e-12)
    stronger = adjust(v, c, 0.6)  # mean 1: the others go twice as far
    first = torch.cosine_similarity(made[:, : D // 2], stronger[:, : D // 2], dim=-1)
    assert (first >= 1 - 1e-12).all()
    with pytest.raises(ConfigurationError, match="weights"):
        adjust(v, c, 0.3, weights=-half)


def test_20_several_vectors_as_one_body():
    v, c = drawn(4, D) + 2 * drawn(D, seed=3), drawn(D, seed=1)
    done = rotate_together(v, c, 0.4)
    unit, made = v / v.norm(dim=-1, keepdim=True), done.vectors / done.vectors.norm(dim=-1, keepdim=True)
    assert torch.allclose(unit @ unit.T, made @ made.T, atol=1e-12)
    assert torch.allclose(done.vectors.norm(dim=-1), 0.5 * v.norm(dim=-1) + 0.5 * c.norm(), rtol=1e-12)
    kept = rotate_together(v, c, 0.4, norm="keep").vectors.mean(0)
    assert angles(kept, v.mean(0)).item() == pytest.approx(0.4 * angles(v.mean(0), c).item(), abs=1e-12)
    assert off(rotate_together(v[:1], c, 0.4).vectors, adjust(v[:1], c, 0.4)) <= 1e-12
    with_zero = torch.cat([v[:2], torch.zeros(1, D, dtype=v.dtype)])
    assert torch.equal(rotate_together(with_zero, c, 0.4).vectors[2], with_zero[2])


def test_anchor_of_several_tokens():
    rows = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    assert anchor_row(rows).tolist() == pytest.approx([math.sqrt(2), math.sqrt(2)])  # 45 degrees; norm (3 + 1) / 2
    assert torch.equal(anchor_row(rows, "first"), rows[0]) and torch.equal(anchor_row(rows, "last"), rows[1])
    assert torch.equal(anchor_row(rows[:1]), rows[0])
    with pytest.raises(ConfigurationError, match="name another noun"):
        anchor_row(torch.zeros(1, 2))


# --- alignment ---


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer(length=77)


def partners(tokenizer, template, words, nouns):
    """Of a template filled with learned words, and with nouns."""
    filled = [
        Prompt(template).fill({slot: SlotWord(text, "") for slot, text in each.items()}) for each in (words, nouns)
    ]
    places = [
        ((a.char_start, a.char_end), (b.char_start, b.char_end))
        for a, b in zip(*(f.slots for f in filled), strict=True)
    ]
    source, target = (each.tokenize(tokenizer) for each in filled)
    return aligned(source, target, places), source, target


def test_17_the_example_of_the_specification(tokenizer):
    found, source, target = partners(tokenizer, "a photo of a {x} sleeping red", {"x": "sks dog"}, {"x": "dog"})
    assert found == (0, 1, 2, 3, 4, 5, 5, 6, 7, 8, *range(9, 76))
    assert source.end == 9 and target.end == 8


def test_17_equal_lengths_are_positional(tokenizer):
    found, *_ = partners(tokenizer, "a {x} in the snow", {"x": "sks"}, {"x": "dog"})
    assert found == positional(77, 77) == tuple(range(77))


def test_17_target_of_more_tokens(tokenizer):
    found, source, target = partners(tokenizer, "a {x} on snow", {"x": "sks"}, {"x": "red dog"})
    assert found[:7] == (0, 1, 3, 4, 5, 6, 7) and (source.end, target.end) == (5, 6)
    assert found[-1] == 76 and found[-2] == 76  # the target's padding ends earlier


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{x} in snow", (0, 1, 1, 2, 3, 4)),  # first
        ("a photo of {x}", (0, 1, 2, 3, 4, 4, 5)),  # last
        ("{x} on {x}", (0, 1, 1, 2, 3, 3, 4)),  # twice
        ("{x} with {y}", (0, 1, 1, 2, 4, 5)),  # two; "hat" meets the last token of "red cat"
    ],
)
def test_17_places(tokenizer, template, expected):
    words, nouns = {"x": "sks dog", "y": "hat"}, {"x": "dog", "y": "red cat"}
    slots = Prompt(template).slots
    found, *_ = partners(tokenizer, template, {s: words[s] for s in slots}, {s: nouns[s] for s in slots})
    assert found[: len(expected)] == expected


def test_17_an_empty_place_stays(tokenizer):
    source = Prompt("a {x} dog").fill({"x": SlotWord("sks")}).tokenize(tokenizer)
    target = Prompt("a dog").fill({}).tokenize(tokenizer)
    found = aligned(source, target, [((2, 5), (2, 2))])
    assert found[:5] == (0, 1, -1, 2, 3)
    vectors = drawn(77, 8)
    assert torch.equal(adjust_sequence(vectors, drawn(77, 8, seed=1), found, 0.5).vectors[2], vectors[2])


def test_sentences_that_differ_elsewhere_are_matched_by_their_ids(tokenizer):
    source = Prompt("a {x} sleeping").fill({"x": SlotWord("sks")}).tokenize(tokenizer)
    target = Prompt("an {x} sleeping").fill({"x": SlotWord("hat")}).tokenize(tokenizer)
    assert aligned(source, target, [((2, 5), (3, 6))])[:5] == (0, 1, 2, 3, 4)


def test_ids_alone_for_other_tokenizers():
    """As of T5: no mark at the beginning, pieces of their own."""
    source, target = (5, 90, 91, 7, 8, 1, 0, 0), (5, 60, 7, 8, 1, 0, 0, 0)
    assert aligned_ids(source, target, 5, 4) == (0, 1, 1, 2, 3, 4, 5, 6)
    assert aligned_ids(target, source, 4, 5) == (0, 2, 3, 4, 5, 6, 7, 7)
    assert aligned_ids((5, 90, 7, 1), (5, 7, 1, 0), 3, 2) == (0, -1, 1, 2)


def test_19_blocks_are_turned_by_themselves_and_the_padding_stays():
    """SDXL: 768 and 1280; SD3: the same, then zeros."""
    source, target = drawn(3, 26), drawn(3, 26, seed=1)
    source[:, 20:] = 0
    target[:, 20:] = 0
    source[:, 8:20] *= 50
    made = adjust_sequence(source, target, (0, 1, 2), 0.3, widths=(8, 12)).vectors
    assert torch.equal(made[:, :8], adjust(source[:, :8], target[:, :8], 0.3))
    assert torch.equal(made[:, 8:20], adjust(source[:, 8:20], target[:, 8:20], 0.3))
    assert torch.equal(made[:, 20:], source[:, 20:])
    changed = source.clone()
    changed[:, :8] += 1
    assert torch.equal(adjust_sequence(changed, target, (0, 1, 2), 0.3, widths=(8, 12)).vectors[:, 8:], made[:, 8:])
    nothing = adjust_sequence(torch.zeros(3, 20), torch.zeros(3, 20), (0, 1, 2), 0.3, widths=(8, 12))
    assert torch.equal(nothing.vectors, torch.zeros(3, 20)) and nothing.zero.all()
    with pytest.raises(ThisnessError, match="blocks"):
        adjust_sequence(source, target, (0, 1, 2), 0.3, widths=(20, 12))
    with pytest.raises(ThisnessError, match="partners"):
        adjust_sequence(source, target, (0, 1), 0.3)
