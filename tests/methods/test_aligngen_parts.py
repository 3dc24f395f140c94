"""AlignGen's parts. Oracles: the plain tokenizer, T5 by token numbers, a module evaluated in full, one attention
against the other."""

from __future__ import annotations

import random

import pytest
import tiny_flux
import torch

from thisness.errors import ConfigurationError, PromptError
from thisness.methods.aligngen_parts import (
    DeviationExtraction,
    Plan,
    Spliced,
    Star,
    concept_span,
    selective_attention,
    spliced,
    states_with_star,
    with_rows,
)
from thisness.prompt import FilledPrompt

LENGTH = 32


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_flux.tokenizer(LENGTH)


@pytest.fixture(scope="module")
def encoder(tokenizer):
    return tiny_flux.text_encoder(tokenizer).requires_grad_(False)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(one, other, atol=2e-6):
    return torch.allclose(one, other, rtol=1e-5, atol=atol)


def prepared(tokenizer, text, *names, cut=False):
    spans = FilledPrompt.plain(text).tokenize(tokenizer, cut=cut)
    return spans, spliced(spans, [concept_span(text, name) for name in names], tokenizer.pad_token_id)


# --- spans and splicing ---


@pytest.mark.parametrize(
    "text, name, found",
    [
        ("a photo of a dog", "dog", "dog"),
        ("The Dog on a dogma, a dog", "dog", "Dog"),
        ("two dogs on the beach", "dog", "dogs"),
        ("a dog on the beach", "dogs", "dog"),
        ("an acoustic guitar, red", "acoustic guitar", "acoustic guitar"),
        ("a red guitar", "acoustic guitar", "guitar"),
        ("three red ponies", "pony", "ponies"),
        ("a glass of water and glasses", "glasses", "glasses"),
        ("a wind-up robot in snow", "wind-up robot", "wind-up robot"),
        ("hotdog dog", "dog", "dog"),
    ],
)
def test_the_name_is_found_as_whole_words(text, name, found):
    assert text[slice(*concept_span(text, name))] == found


def test_a_name_that_is_not_there_is_refused_with_the_words_that_are():
    with pytest.raises(PromptError, match=r"'robot' is not in .* its words are a, photo, of, dog; write"):
        concept_span("a photo of a dog", "robot")
    with pytest.raises(PromptError, match="did you mean 'robit'"):
        concept_span("a robit", "robot")


def test_the_name_has_the_same_tokens_with_and_without_s_star_on_200_sentences(tokenizer):
    draws = random.Random(0)
    words = ["photo", "of", "on", "the", "beach", "snow", "sleeping", "hat", "in", "red", "xyz", "a", "wide-open", "b2"]
    names = ["dog", "red robot", "hat-cat", "robots", "sleeping dog", "qwerty"]
    seen_cut = 0
    for _ in range(200):
        name = draws.choice(names)
        before = " ".join(draws.choices(words, k=draws.randint(0, 2)))
        after = " ".join(draws.choices(words, k=draws.randint(0, 14)))
        text = f"{before} {name}{draws.choice(['', ',', '.', '!'])} {after}".strip()
        plain, done = prepared(tokenizer, text, name, cut=True)
        (star,), (tokens,) = done.stars, done.names
        assert tokens == tuple(range(star + 1, star + 1 + len(tokens)))
        assert [done.ids[at] for at in tokens] == [plain.ids[at - 1] for at in tokens]
        spelt = tokenizer.decode([done.ids[at] for at in tokens]).strip()
        assert spelt.startswith(text[slice(*concept_span(text, name))])
        without = [number for at, number in enumerate(done.ids) if at != star]
        kept = without.index(tokenizer.eos_token_id)
        assert without[:kept] == list(plain.ids[:kept]) and done.ids[done.end] == tokenizer.eos_token_id
        assert len(done.ids) == LENGTH and set(done.ids[done.end + 1 :]) <= {tokenizer.pad_token_id}
        seen_cut += plain.length == LENGTH
    assert seen_cut > 10


def test_two_concepts_have_one_each_and_what_is_cut_is_refused(tokenizer):
    plain, done = prepared(tokenizer, "a cat on a red dog", "dog", "cat")
    # a S* cat on a red S* dog
    assert done.concepts == [[6, 7], [1, 2]]
    assert (done.ids[7], done.ids[2]) == (plain.ids[5], plain.ids[1])
    with pytest.raises(PromptError, match="'dog' is cut by the encoder's 32 tokens"):
        prepared(tokenizer, "red " * 40 + "dog", "dog", cut=True)
    with pytest.raises(PromptError, match="'dog' with its S\\* does not fit the 32 tokens"):
        prepared(tokenizer, "red " * 30 + "dog", "dog", cut=True)


# --- S* in T5 ---


def star_mask(done: Spliced):
    mask = torch.zeros(1, len(done.ids), dtype=torch.bool)
    mask[0, list(done.stars)] = True
    return mask


@torch.no_grad()
def test_a_row_of_the_vocabulary_is_that_word(tokenizer, encoder):
    _, done = prepared(tokenizer, "a photo of a dog", "dog")
    ids = torch.tensor([done.ids])
    number = tokenizer("red", add_special_tokens=False)["input_ids"][0]
    row = encoder.get_input_embeddings().weight[number]
    as_word = ids.clone()
    as_word[0, done.stars[0]] = number
    assert torch.equal(states_with_star(encoder, ids, star_mask(done), row), encoder(as_word)[0])
    nothing = torch.zeros_like(star_mask(done))
    assert torch.equal(states_with_star(encoder, ids, nothing, row), encoder(ids)[0])


def test_gradients_reach_s_star_alone_and_its_steps_are_of_the_tables_size(tokenizer, encoder):
    table = encoder.get_input_embeddings().weight
    number = tokenizer("red", add_special_tokens=False)["input_ids"][0]
    star = Star.beside(table, number)
    assert torch.equal(star(), table[number]) and star.scale == pytest.approx(float(table.square().mean().sqrt()))
    _, done = prepared(tokenizer, "a photo of a dog", "dog")
    before = table.clone()
    states = states_with_star(encoder, torch.tensor([done.ids]), star_mask(done), star())
    states[0, done.stars[0]].sum().backward()
    assert star.delta.grad is not None and bool(star.delta.grad.any())
    assert all(each.grad is None for each in encoder.parameters()) and torch.equal(table, before)
    with torch.no_grad():
        star.delta += 1
        assert torch.allclose(star() - table[number], torch.full_like(star(), star.scale))


# --- DEM ---


def trained(width=32, seed=0, lite=False):
    torch.manual_seed(seed)
    module = DeviationExtraction.lite(width) if lite else DeviationExtraction(width, width, 4, 4 * width)
    for parameter in module.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return module


@torch.no_grad()
@pytest.mark.parametrize("lite", [False, True])
def test_at_first_it_changes_nothing(lite):
    module = DeviationExtraction.lite(32) if lite else DeviationExtraction(32, 32, 4, 64)
    concept, picture = noise(2, 4, 32), noise(2, 9, 32, seed=1)
    assert torch.equal(module(concept, picture), concept[:, 0])
    states = noise(2, 12, 32, seed=2)
    at = torch.tensor([3, 7])
    rows = states[torch.arange(2), at]
    same = with_rows(states, module(torch.stack([rows, rows], 1), picture), at)
    assert torch.equal(same, states) and same is not states


@torch.no_grad()
@pytest.mark.parametrize("lite", [False, True])
def test_the_first_row_alone_is_the_first_of_all(lite):
    module, concept, picture = trained(lite=lite), noise(3, 5, 32), noise(3, 9, 32, seed=1)
    whole = module(concept, picture, every=True)
    assert whole.shape == (3, 5, 32) and close(module(concept, picture), whole[:, 0], 1e-5)
    assert not close(whole[:, 0], concept[:, 0], 0.1)


@torch.no_grad()
def test_padding_and_the_order_of_the_pictures_tokens_change_nothing():
    module, concept, picture = trained(), noise(2, 3, 32), noise(2, 9, 32, seed=1)
    plain = module(concept, picture)
    padded = torch.cat([concept, noise(2, 4, 32, seed=5) * 100], 1)
    there = torch.arange(7).expand(2, -1) < 3
    assert close(module(padded, picture, there), plain, 1e-5)
    assert not close(module(padded, picture), plain, 1e-2)
    assert close(module(concept, picture[:, torch.randperm(9)]), plain, 1e-5)
    assert not close(module(concept, noise(2, 9, 32, seed=8)), plain, 1e-2)


def test_sizes_are_those_that_were_counted():
    with torch.device("meta"):
        full, lite = DeviationExtraction(), DeviationExtraction.lite()
    for module, millions in ((full, 268), (lite, 67)):
        assert sum(each.numel() for each in module.parameters() if each.ndim == 2) / 1e6 == pytest.approx(
            millions, 0.01
        )


@torch.no_grad()
def test_only_s_star_is_replaced_and_it_alone_depends_on_the_picture(tokenizer, encoder):
    module = trained()
    _, done = prepared(tokenizer, "a red dog on the beach", "red dog")
    row = Star.beside(encoder.get_input_embeddings().weight, 9)()
    states = states_with_star(encoder, torch.tensor([done.ids]), star_mask(done), row)
    concept = states[:, done.concepts[0]]
    found = []
    for seed in (1, 2):
        replaced = with_rows(states, module(concept, noise(1, 9, 32, seed=seed)), torch.tensor(done.stars))
        changed = (replaced != states).any(-1)[0].nonzero().flatten().tolist()
        assert changed == [done.stars[0]]
        found.append(replaced[0, done.stars[0]])
    assert not close(*found, 1e-2)


def test_replacing_is_out_of_place_and_gradients_flow():
    states, rows = noise(2, 5, 3).requires_grad_(True), noise(2, 3, seed=1).requires_grad_(True)
    with_rows(states, rows, torch.tensor([0, 4])).sum().backward()
    assert torch.equal(rows.grad, torch.ones(2, 3))
    assert states.grad[0, 0].abs().sum() == 0 and states.grad[1, 4].abs().sum() == 0 and states.grad.sum() == 24


# --- selective attention (oracle 4) ---

LAYOUTS = [
    pytest.param([8], [[[2, 3]], [[1, 2, 3, 5]]], id="ragged"),
    pytest.param([8], [[[4]], [[]]], id="one-without"),
    pytest.param([4, 7], [[[1, 2], [4]], [[0], [6, 7, 8]]], id="two"),
    pytest.param([4, 2, 3], [[[1], [2], [3]], [[1, 2], [3], [9]]], id="three"),
]


@pytest.mark.parametrize("bind", [True, False])
@pytest.mark.parametrize("mode", ["joint", "independent"])
@pytest.mark.parametrize("references, concepts", LAYOUTS)
@pytest.mark.parametrize("backend", ["split", "flex"])
def test_three_ways_of_attending_give_the_same(backend, references, concepts, mode, bind):
    plan = Plan(10, 16, references, concepts, mode, bind=bind)
    q, k, v = (noise(2, 3, plan.total, 8, seed=seed).requires_grad_(backend == "split") for seed in range(3))
    dense = selective_attention(q, k, v, plan, "dense")
    other = selective_attention(q, k, v, plan, backend)
    assert close(other, dense)
    if backend == "split":
        weight = noise(*dense.shape, seed=9)
        one, two = (torch.autograd.grad((each * weight).sum(), (q, k, v)) for each in (dense, other))
        assert all(close(a, b, 1e-5) for a, b in zip(one, two, strict=True))


@torch.no_grad()
def test_all_may_read_all_is_no_mask_bit_for_bit():
    q, k, v = (noise(1, 2, 12, 8, seed=seed) for seed in range(3))
    plan = Plan(4, 5, [3], [[range(4)]])
    assert plan.dense.all() and plan.dense.shape == (1, 1, 12, 12)
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert torch.equal(selective_attention(q, k, v, plan, "dense"), plain)


@torch.no_grad()
def test_irrelevant_words_do_not_see_which_reference_it_is():
    for backend in ("dense", "split", "flex"):
        plan = Plan(6, 4, [5], [[[2, 3]]])
        q, k, v = (noise(1, 2, 15, 8, seed=seed) for seed in range(3))
        other_k, other_v = k.clone(), v.clone()
        other_k[:, :, 10:], other_v[:, :, 10:] = noise(1, 2, 5, 8, seed=7), noise(1, 2, 5, 8, seed=8)
        one = selective_attention(q, k, v, plan, backend)
        two = selective_attention(q, other_k, other_v, plan, backend)
        changed = [not close(one[:, :, at], two[:, :, at], 1e-4) for at in range(10)]
        assert changed == [False, False, True, True, False, False, True, True, True, True]
        assert torch.equal(one[:, :, [0, 1, 4, 5]], two[:, :, [0, 1, 4, 5]])


def test_plans_and_back_ends_that_do_not_fit_are_refused():
    with pytest.raises(ConfigurationError, match="2 references, but rows for 1"):
        Plan(4, 4, [2, 2], [[[1]]])
    q = noise(1, 1, 10, 4)
    with pytest.raises(ConfigurationError, match="no gradients on the CPU"):
        selective_attention(q.clone().requires_grad_(True), q, q, Plan(4, 4, [2], [[[1]]]), "flex")
    with pytest.raises(ConfigurationError, match="no back-end 'sage'"):
        selective_attention(q, q, q, Plan(4, 4, [2], [[[1]]]), "sage")
