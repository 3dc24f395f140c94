"""Orchestration. Oracles: Gram-Schmidt in float64 and what a projection must obey (spec, oracles 1 to 7)."""

import pytest
import torch

import tiny
from thisness.adapters import EMBEDDINGS
from thisness.concept import Concept
from thisness.conditioning import Sentence, encode, encode_adjusted
from thisness.errors import ConfigurationError
from thisness.generation.parts import combined
from thisness.methods.harmonizing import (
    gains,
    grid_of,
    orthogonal,
    otsu,
    random_span,
    restored,
    retained,
    shrunk,
    span_of,
    subject_mask,
    window,
)
from thisness.methods.harmonizing_orchestrate import Orchestrate
from thisness.methods.harmonizing_words import (
    basis_positions,
    class_positions,
    clauses,
    visual_only,
    visual_positions,
)
from thisness.prompt import Prompt, SlotWord
from thisness.recipe import Spec

WIDTH = 64


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def perp(v, t, strength=1.0, reduce="sum", ridge=0.0, **more):
    span = span_of(t, **more)
    return orthogonal(v, span, gains(span, strength, reduce, ridge))


def cosines(v, t):
    v, t = v.double(), t.double()
    return (v @ t.transpose(1, 2) / (v.norm(dim=-1)[..., None] * t.norm(dim=-1)[:, None])).abs()


def gram_schmidt(v, t):
    basis = []
    for row in t:
        for b in basis:
            row = row - (b @ row) * b
        basis.append(row / row.norm())
    return v - sum((v @ b)[:, None] * b for b in basis)


# --- projection ---


@pytest.mark.parametrize("eps", [1e-1, 1e-3, 1e-5])
def test_1_nothing_of_the_text_is_left_however_alike_its_rows(eps):
    common = drawn(1, 1, WIDTH, seed=1)
    t, v = common + eps * drawn(1, 8, WIDTH, seed=2), drawn(1, 3, WIDTH, seed=3)
    result = perp(v, t)
    assert cosines(result, t).max() <= max(1e-6, 1e-3 * 8**0.5)
    assert retained(v, result).max() <= 1
    assert cosines(perp(v.half(), t.half()), t.half()).max() <= max(2e-3, 1e-3 * 8**0.5)


def test_2_it_is_a_projection():
    v, t = drawn(2, 3, WIDTH), drawn(2, 5, WIDTH, seed=1)
    once = perp(v, t)
    assert torch.allclose(perp(once, t), once, atol=1e-6)
    assert (once.norm(dim=-1) <= v.norm(dim=-1)).all()
    energy = once.square().sum(-1) + (v - once).square().sum(-1)
    assert torch.allclose(energy, v.square().sum(-1), rtol=1e-5)
    other = drawn(2, 3, WIDTH, seed=4)
    assert torch.allclose((once * other).sum(-1), (v * perp(other, t)).sum(-1), atol=1e-4)
    assert torch.allclose(retained(v, once), once.square().sum(-1).double() / v.square().sum(-1).double(), atol=1e-6)


def test_3_what_must_not_matter():
    v, t = drawn(1, 3, WIDTH), drawn(1, 5, WIDTH, seed=1)
    expected = perp(v, t)
    mixing = torch.linalg.qr(drawn(5, 5, seed=2)).Q @ torch.diag(torch.tensor([1.0, 2.0, 0.5, 1.5, 3.0]))
    same = {
        "order": t[:, [3, 0, 4, 2, 1]],
        "scale": t * torch.tensor([1e-3, -2.0, 5.0, 1e3, 1.0])[None, :, None],
        "copies": torch.cat([t, t[:, :2]], 1),
        "zeros": torch.cat([t, torch.zeros(1, 4, WIDTH)], 1),
        "mixing": mixing @ t,
    }
    for what, other in same.items():
        assert torch.allclose(perp(v, other), expected, atol=1e-4), what
    assert torch.allclose(perp(v, torch.cat([t, drawn(1, 2, WIDTH)], 1), chosen=torch.arange(7)[None] < 5), expected)
    rotation = torch.linalg.qr(drawn(WIDTH, WIDTH, seed=7)).Q
    assert torch.allclose(perp(v @ rotation, t @ rotation), expected @ rotation, atol=1e-4)
    assert not torch.allclose(expected, v, atol=0.1)


def test_4_gram_schmidt_in_float64():
    v, t = drawn(3, WIDTH, dtype=torch.float64), drawn(6, WIDTH, seed=1, dtype=torch.float64)
    assert torch.allclose(perp(v[None], t[None])[0], gram_schmidt(v, t), atol=1e-10)
    twice = perp(v[None], torch.cat([t, t])[None])[0]
    assert twice.isfinite().all() and torch.allclose(twice, gram_schmidt(v, t), atol=1e-10)


def test_5_the_ends():
    t = drawn(1, 5, WIDTH, seed=1)
    inside = drawn(1, 2, 5) @ t
    assert perp(inside, t).abs().max() < 1e-5
    outside = perp(drawn(1, 2, WIDTH), t)
    assert torch.allclose(perp(outside, t), outside, atol=1e-6)
    v = drawn(1, 2, WIDTH)
    assert torch.equal(perp(v, t[:, :0]), v) and torch.equal(perp(v, torch.zeros_like(t)), v)
    full = drawn(1, 40, 32, seed=2)
    narrow = drawn(1, 2, 32)
    assert perp(narrow, full, max_rank=32).abs().max() < 1e-6
    assert int(span_of(full).rank) == 8 and retained(narrow, perp(narrow, full)).min() > 0.2  # a quarter of the width


def test_6_strength_mean_and_ridge():
    v, t = drawn(1, 3, WIDTH), drawn(1, 5, WIDTH, seed=1)
    assert torch.equal(perp(v, t, strength=0.0), v)
    assert torch.allclose(perp(v, t, strength=0.4), v + 0.4 * (perp(v, t) - v), atol=1e-6)
    assert torch.allclose(perp(v, t, reduce="mean"), v + (perp(v, t) - v) / 5, atol=1e-6)
    assert torch.equal(perp(v, t[:, :1], reduce="mean"), perp(v, t[:, :1]))
    assert torch.allclose(perp(v, t, ridge=1e-9), perp(v, t), atol=1e-5)
    assert torch.allclose(perp(v, t, ridge=1e9), v, atol=1e-5)
    weights = torch.tensor([[1.0, 0.05, 1.0, 1.0, 1.0]])
    assert torch.allclose(perp(v, t, weights=weights), perp(v, t), atol=1e-5)  # hard projections ignore lengths
    soft = perp(v, t, weights=weights, ridge=0.1)
    assert cosines(soft, t)[..., 1].mean() > 3 * cosines(perp(v, t, ridge=0.1), t)[..., 1].mean()
    without = perp(v, t[:, [0, 2, 3, 4]])
    assert torch.allclose(perp(v, t, weights=weights * (weights == 1)), without, atol=1e-5)


def test_controls_and_renorm():
    v, t = drawn(1, 3, WIDTH), drawn(1, 5, WIDTH, seed=1)
    span, result = span_of(t), perp(v, t)
    other = random_span(span)
    assert int(other.rank) == int(span.rank) == 5
    assert torch.allclose(other.directions @ other.directions.transpose(1, 2), torch.eye(5).double(), atol=1e-10)
    assert torch.allclose(shrunk(v, result).norm(dim=-1), result.norm(dim=-1), atol=1e-5)
    assert torch.allclose(restored(v, result).norm(dim=-1), v.norm(dim=-1), atol=1e-5)


# --- mask and window ---


def test_14_a_planted_map_is_its_mask_at_every_grid():
    maps = torch.zeros(2, 4, 6)
    maps[0, 1:3, 2:5], maps[1, 0, 0] = 0.01, 50.0
    for size in ((4, 6), (8, 12), (2, 3)):
        mask = subject_mask(maps, size)
        if size == (8, 12):
            assert torch.equal(mask[0].nonzero().amin(0), torch.tensor([2, 4])) and int(mask[0].sum()) == 24
        if size == (4, 6):
            assert torch.equal(mask, maps > 0)
    assert not subject_mask(torch.full((1, 4, 4), 0.3), (8, 8)).any()
    assert not subject_mask(maps, (4, 6), threshold=1.0).any()
    assert torch.equal(subject_mask(maps[1:], (4, 6)), subject_mask(maps, (4, 6))[1:])  # each by itself
    two = torch.cat([drawn(40) * 0.1, 5 + drawn(20) * 0.1])
    assert int((two > otsu(two)).sum()) == 20
    assert [grid_of((5, 9), n) for n in (45, 15, 6)] == [(5, 9), (3, 5), (2, 3)]
    with pytest.raises(ValueError, match="no level"):
        grid_of((8, 8), 60)


@pytest.mark.parametrize("side", [2, 4, 8])
def test_otsu_finds_a_planted_subject_that_a_fixed_threshold_spreads(side):
    """A subject of 1.5 %, 6 % and 25 % of the picture, before a background that draws attention, too."""
    maps = 0.4 + 0.03 * drawn(3, 16, 16, seed=side)
    maps[:, 3 : 3 + side, 5 : 5 + side] += 0.5
    maps[:, 15, 15] = 0.0  # one dark corner stretches the background up
    planted = torch.zeros(3, 16, 16, dtype=torch.bool)
    planted[:, 3 : 3 + side, 5 : 5 + side] = True
    assert torch.equal(subject_mask(maps, (16, 16), threshold="otsu"), planted)
    assert subject_mask(maps, (16, 16)).float().mean() > 0.95
    assert torch.equal(subject_mask(1e-4 * maps, (16, 16), threshold="otsu"), planted)  # whatever the scale


def test_windows_are_fractions_of_the_calls():
    assert window(0.1, 0.7, 30) == range(3, 21) and window(0.1, 0.7, 51) == range(5, 36)
    assert not window(0.4, 0.4, 30)


# --- roles ---


@pytest.fixture(scope="module")
def base():
    return tiny.base("zero-snr")


def word(base, text="<rex>", noun="dog", name="rex"):
    rows = {"text_encoder": 0.06 * drawn(1, 16, seed=5)}
    return Concept.create(
        "textual-inversion", tiny.toy(noun, name), base, word=text, tokens=["<rex>"], tensors={EMBEDDINGS: rows}
    )


def rare(base, noun="dog"):
    tensors = {"replaced.safetensors": {"unet.conv_in.weight": base.denoiser.conv_in.weight.detach().clone()}}
    return Concept.create("dreambooth", tiny.toy(noun, "bo"), base, word=f"sks {noun}", tensors=tensors)


def pieces(spans, positions):
    return [spans.piece(at) for at in positions]


def test_roles(base):
    bo = rare(base, "big cat")
    spans = Prompt("The {subject}, in a red hat on the snow").fill({"subject": bo.word}).tokenize(base.tokenizer)
    concepts = {"subject": bo}
    assert pieces(spans, visual_positions(spans, concepts)) == ["sks"]
    assert "".join(pieces(spans, class_positions(spans, {"big cat"}))) == "bigcat"  # every piece of it
    assert pieces(spans, basis_positions(spans, concepts)) == ["in", "red", "hat", "on", "snow"]
    assert pieces(spans, basis_positions(spans, concepts, stop=["in", "ON"])) == ["red", "hat", "snow"]
    assert "," in pieces(spans, basis_positions(spans, concepts, punctuation=True))
    assert spans.end in basis_positions(spans, concepts, eos=True)
    spans = Prompt("a {subject}, an dog hat, a red dog hat").fill({"subject": SlotWord("sks dog", "dog")})
    spans = spans.tokenize(base.tokenizer)
    concepts = {"subject": rare(base)}
    assert pieces(spans, basis_positions(spans, concepts)) == ["hat", "red", "hat"]  # the noun is out wherever it is
    assert pieces(spans, basis_positions(spans, concepts, scope="first")) == ["hat", "red"]
    text_only = Prompt("a dog sleeping").fill({}).tokenize(base.tokenizer)
    assert pieces(text_only, basis_positions(text_only, concepts)) == ["sleeping"]


def said(spans, groups):
    """The tiny tokenizer spells "and"."""
    return [" ".join(pieces(spans, each)).replace("a n d", "and") for each in groups]


def test_clauses(base):
    rex = word(base)
    concepts = {"subject": rex}

    def parted(text):
        spans = Prompt(text).fill({"subject": rex.word})
        with rex.attach(base):
            spans = spans.tokenize(base.tokenizer)
        return said(spans, clauses(spans, basis_positions(spans, concepts)))

    assert parted("a photo of a {subject} sleeping in the snow") == ["photo of sleeping in snow"]
    assert parted("a photo of a {subject}, sleeping in snow, in red hat") == ["photo of sleeping in snow", "in red hat"]
    assert parted("in the snow, a {subject} sleeping and in a red hat") == ["in snow", "sleeping", "and in red hat"]
    assert parted("a {subject}") == []


# --- at work ---


def read(base, concept, text, *adjustments):
    concepts = concept if isinstance(concept, dict) else {"subject": concept}
    filled = Prompt(text).fill({s: e.word for s, e in concepts.items() if f"{{{s}}}" in text})
    sentence = Sentence(base, filled, concepts, (), None)
    with next(iter(concepts.values())).attach(base), torch.no_grad():
        return encode_adjusted(sentence, adjustments), encode(base, filled), sentence


def test_7_only_visual_rows_change_and_they_are_the_formula(base):
    for concept in (word(base), rare(base)):
        made, source, _ = read(base, concept, "a {subject} sleeping in the snow", Orchestrate())
        spans = source.spans[0]
        visual = list(visual_positions(spans, {"subject": concept}))
        others = [at for at in range(len(spans.ids)) if at not in visual]
        new = made.conditioning.embeds
        assert torch.equal(new[:, others], source.embeds[:, others])
        basis = source.embeds[:, list(basis_positions(spans, {"subject": concept}))].double()
        expected = gram_schmidt(source.embeds[0, visual].double(), basis[0])
        assert torch.allclose(new[0, visual].double(), expected, atol=1e-5)
        assert (new[:, visual] - source.embeds[:, visual]).abs().max() > 0.05
        assert made.reports[0]["basis"] == ["sleeping", "in", "snow"] and made.reports[0]["rank"] == 3


def test_identity_where_there_is_nothing_to_do(base):
    rex = word(base)
    made, source, _ = read(base, rex, "a {subject} sleeping", Orchestrate(strength=0.0))
    assert torch.equal(made.conditioning.embeds, source.embeds)
    made, source, _ = read(base, rex, "a {subject}", Orchestrate())
    assert torch.equal(made.conditioning.embeds, source.embeds)
    assert "nothing to orthogonalise" in made.reports[0]["says"]
    made, source, _ = read(base, rex, "a red {subject}", Orchestrate(weights="red:0,hat:0"))
    assert torch.equal(made.conditioning.embeds, source.embeds)
    assert "'hat' is not in the sentence" in made.reports[0]["says"]


def test_other_bases(base):
    rex, text = word(base), "a {subject} sleeping"
    made, source, sentence = read(base, rex, text, Orchestrate(basis="text_only"))
    with torch.no_grad():
        plain = encode(base, "a dog sleeping").embeds[:, 3:4]
        caption = encode(base, "a cat on the beach").embeds[:, [2, 3, 5]]
    assert torch.allclose(made.conditioning.embeds[:, 2:3], perp(source.embeds[:, 2:3], plain), atol=1e-6)
    made, source, _ = read(base, rex, text, Orchestrate(basis_text="a cat on the beach"))
    assert torch.allclose(made.conditioning.embeds[:, 2:3], perp(source.embeds[:, 2:3], caption), atol=1e-6)
    assert made.reports[0]["basis"] == ["cat", "on", "beach"]


LONG = "a {subject} sleeping in the snow, on the beach and in a red hat"


def test_a_copy_for_each_clause(base):
    """Each is the formula with its clause alone; nothing else changes but padding."""
    rex = word(base)
    made, source, _ = read(base, rex, LONG, Orchestrate(group="clause", max_rank=16))
    spans, before = source.spans[0], source.embeds
    groups = clauses(spans, basis_positions(spans, {"subject": rex}))
    assert said(spans, groups) == ["sleeping in snow", "on beach", "and in red hat"]
    visual, pad = list(visual_positions(spans, {"subject": rex})), spans.where("pad")
    places = [visual, [pad[-1]], [pad[-2]]]
    for group, at in zip(groups, places, strict=True):
        expected = gram_schmidt(before[0, visual].double(), before[0, list(group)].double())
        assert torch.allclose(made.conditioning.embeds[0, at].double(), expected, atol=1e-5)
    others = [at for at in range(len(spans.ids)) if [at] not in places]
    assert torch.equal(made.conditioning.embeds[:, others], before[:, others])
    report = made.reports[0]
    whole, _, _ = read(base, rex, LONG, Orchestrate(max_rank=16))
    assert min(report["retained"]) > max(whole.reports[0]["retained"]) and len(report["retained"]) == 3
    assert "without sleeping in snow | on beach | a n d in red hat" in report["says"]
    one = "a {subject} sleeping in the snow"
    single, plain = (read(base, rex, one, Orchestrate(group=each))[0] for each in ("clause", "sentence"))
    assert torch.equal(single.conditioning.embeds, plain.conditioning.embeds)


def test_clauses_that_padding_has_no_room_for_are_one(base):
    rex = word(base)
    text = "a {subject} sleeping, in snow, on beach, in red hat, in photo, of cat, on 1"
    made, source, _ = read(base, rex, text, Orchestrate(group="clause"))
    room = 1 + len(source.spans[0].where("pad"))
    report = made.reports[0]
    assert len(report["clauses"]) == room < 7 and f"7 clauses, but padding for {room}" in report["says"]
    assert sum(report["clauses"], []) == report["basis"]


def test_copies_of_a_pictures_tokens():
    """The sentence's rows read all copies; the picture's own, as often, are to attention what one is."""
    from thisness.attention.image_tokens import ImageTokens

    layers = {"x": (torch.nn.Linear(8, 8, bias=False), torch.nn.Linear(8, 8, bias=False))}
    one, copied = (ImageTokens(layers, drawn(3, 8), drawn(3, 8, seed=1)) for _ in range(2))
    copied.change(drawn(6, 8, seed=2))
    query = drawn(1, 2, 5, 4, seed=3)
    attended = []
    for each in (one, copied):
        keys, values = (part[1].unflatten(-1, (2, 4)).transpose(0, 1)[None] for part in each.keys_values("x"))
        attended.append(torch.nn.functional.scaled_dot_product_attention(query, keys, values))
    assert torch.allclose(*attended, atol=1e-6)
    assert torch.allclose(copied.keys_values("x")[0][0], layers["x"][0](drawn(6, 8, seed=2)))


def test_the_contrast_basis(base):
    """Rows minus those of the sentence that stops before the clause, encoded by itself."""
    rex = word(base)
    made, source, _ = read(base, rex, "a photo of a {subject} sleeping in the snow, in a red hat",
                           Orchestrate(basis="contrast", max_rank=16))  # fmt: skip
    spans = source.spans[0]
    at = {each: [n for n in basis_positions(spans, {"subject": rex}) if spans.piece(n) in each.split()]
          for each in ("photo of", "sleeping", "snow", "red hat")}  # fmt: skip
    rows = []
    with rex.attach(base), torch.no_grad():
        for stop, words in (("a", "photo of"), ("a photo of a <rex>", "sleeping snow"),
                            ("a photo of a <rex> sleeping in the snow,", "red hat")):  # fmt: skip
            chosen = [n for n in basis_positions(spans, {"subject": rex}) if spans.piece(n) in words.split()]
            rows.append((source.embeds - encode(base, stop).embeds)[0, chosen])
        ins = [n for n in basis_positions(spans, {"subject": rex}) if spans.piece(n) == "in"]
        rows.append((source.embeds - encode(base, "a photo of a <rex>").embeds)[0, ins[:1]])
        rows.append((source.embeds - encode(base, "a photo of a <rex> sleeping in the snow,").embeds)[0, ins[1:]])
    assert all(at.values()) and len(ins) == 2
    visual = list(visual_positions(spans, {"subject": rex}))
    basis = torch.cat(rows).double()
    expected = perp(source.embeds[:, visual].double(), basis[None], max_rank=16)
    assert torch.allclose(made.conditioning.embeds[:, visual].double(), expected, atol=1e-5)
    plain, _, _ = read(base, rex, "a photo of a {subject} sleeping in the snow, in a red hat", Orchestrate(max_rank=16))
    assert not torch.allclose(plain.conditioning.embeds, made.conditioning.embeds, atol=1e-3)
    text = "in the snow a {subject}"
    marks, _, _ = read(base, rex, text, Orchestrate(basis="contrast", eos=True))
    without, _, _ = read(base, rex, text, Orchestrate(basis="contrast"))
    assert torch.allclose(marks.conditioning.embeds, without.conditioning.embeds, atol=1e-6)


def test_a_word_typed_in_the_sentence_and_a_warning(base):
    made, source, _ = read(base, word(base), "a <rex> sleeping", Orchestrate())
    assert (made.conditioning.embeds[:, 2] != source.embeds[:, 2]).any()
    long = "a {subject} sleeping on the beach in snow with red hat of photo cat sks 1 2 3 4"
    made, _, _ = read(base, word(base), long, Orchestrate(max_rank=16))
    assert "warning: only" in made.reports[0]["says"]
    made, _, _ = read(base, word(base), long, Orchestrate())
    assert made.reports[0]["rank"] == 4


def test_tokens_of_image_hosts_are_projected_in_a_batch():
    image, text = drawn(2, 4, WIDTH), drawn(2, 6, WIDTH, seed=1)
    chosen = torch.tensor([[True] * 6, [True, True, False, False, False, False]])
    done = Orchestrate().tokens(image, text, chosen)
    assert done.rank.tolist() == [6, 2]
    assert torch.allclose(done.tokens[1], gram_schmidt(image[1].double(), text[1, :2].double()).float(), atol=1e-5)
    assert torch.allclose(done.tokens[:1], Orchestrate().tokens(image[:1], text[:1]).tokens, atol=1e-6)


def test_presets_and_refusals(base):
    assert (Orchestrate().factor, Orchestrate(preset="mean").reduce) == (1.0, "mean")
    robust = Orchestrate(preset="robust")
    assert (robust.factor, robust.scope, Orchestrate(preset="robust", strength=0.5).factor) == (0.8, "first", 0.5)
    with pytest.raises(ValueError, match="strength 2.*ridge.*word:number"):
        Orchestrate(strength=2.0, ridge=-1.0, weights="red")
    with pytest.raises(ValueError, match="without ridge"):
        Orchestrate(weights="red:0.5")
    with pytest.raises(ValueError, match="group=clause and space=value.*leave basis_text out"):
        Orchestrate(group="clause", space="value", basis="contrast", basis_text="a dog")
    with pytest.raises(ConfigurationError, match="give one"):
        Orchestrate().bound(Sentence(base, Prompt("a dog").fill({}), {}, (), None))
    adjust, attach = combined(Spec.of("harmonizing", preset="robust", stop=0.5, ridge=0.1))
    assert str(adjust[0]) == "orchestrate:preset=robust,ridge=0.1"
    assert str(attach[0]) == "attention-swap:preset=robust,stop=0.5"


@pytest.mark.parametrize("mode", ["null_text", "zeros", "zeros_bos", "drop"])
def test_7_the_second_branch_reads_the_words_unchanged(base, mode):
    """The text encoder is causal: what follows a word does not change its row."""
    rex = word(base)
    _, source, sentence = read(base, rex, "a {subject} sleeping on the beach")
    with rex.attach(base), torch.no_grad():
        alone, visible = visual_only(sentence, "subject", mode)
    assert torch.allclose(alone.embeds[:, 2], source.embeds[:, 2], atol=1e-6) and 2 in visible
    if mode.startswith("zeros"):
        zero = [at for at in range(alone.embeds.shape[1]) if not alone.embeds[0, at].any()]
        assert zero == [at for at in range(alone.embeds.shape[1]) if at not in visible]


def test_the_noun_stays_with_an_identifier(base):
    for keep, expected in (("auto", "a sks dog"), ("yes", "a sks dog"), ("no", "a sks")):
        _, _, sentence = read(base, rare(base), "a photo of the {subject} sleeping")
        with torch.no_grad():
            alone, _ = visual_only(sentence, "subject", "null_text", keep)
        assert alone.spans[0].text == expected.replace("a ", "the ", 1)
    _, _, sentence = read(base, word(base), "a {subject} sleeping")
    with word(base).attach(base), torch.no_grad():
        assert visual_only(sentence, "subject", "null_text", "yes")[0].spans[0].text == "a <rex> dog"


@pytest.mark.parametrize("mode", ["null_text", "zeros"])
def test_words_read_of_a_picture_need_no_noun(base, mode):
    """BLIP-Diffusion writes "<rex> dog": the noun is not in the second branch unless asked for."""
    rows = {"text_encoder": 0.06 * drawn(1, 16, seed=5)}
    blip = Concept.create(
        "blip-diffusion", tiny.toy(), base, word="<rex> dog", tokens=["<rex>"], tensors={EMBEDDINGS: rows}
    )
    taught = Concept({**blip.manifest, "method": "custom-diffusion"}, blip.tensors)
    filled = Prompt("a {subject} sleeping").fill({"subject": blip.word})
    sentence = {name: Sentence(base, filled, {"subject": each}, (), None) for name, each in
                (("blip", blip), ("taught", taught))}  # fmt: skip
    with word(base).attach(base), torch.no_grad():
        found = {
            (name, keep): visual_only(sentence[name], "subject", mode, keep)
            for name in sentence for keep in ("auto", "yes", "no")
        }  # fmt: skip
    for name, same in (("blip", "no"), ("taught", "yes")):
        assert torch.equal(found[name, "auto"][0].embeds, found[name, same][0].embeds)
        assert found[name, "auto"][1] == found[name, same][1]
    if mode == "null_text":
        assert found["blip", "auto"][0].spans[0].text == "a <rex>"
        assert found["taught", "auto"][0].spans[0].text == "a <rex> dog"
    else:
        assert len(found["blip", "auto"][1]) == 1 and len(found["taught", "auto"][1]) == 2
