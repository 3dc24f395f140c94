"""Maps of words. Oracles: pictures without capturing; CaptureMaps of all tokens; tokens read off by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import tiny
from thisness.attention import CaptureMaps, Where
from thisness.diagnostics.attention_maps import attention_maps
from thisness.diagnostics.words import choose_words, words_of
from thisness.errors import ConfigurationError, ImageError, PromptError
from thisness.generation import generate
from thisness.prompt import Prompt, SlotWord
from thisness.sampling import SamplingOptions

OPTIONS = SamplingOptions(steps=3, guidance=3.0)
PROMPT = "a {subject} sleeping on the beach"


@pytest.fixture(scope="module")
def base():
    return tiny.base()


@pytest.fixture(scope="module")
def found(base):
    return attention_maps(base, PROMPT, noun="dog", seeds=(3, 4, 5), options=OPTIONS, batch_size=2)


def spans(text="a {subject} sleeping on the beach", word="dog"):
    return Prompt(text).fill({"subject": SlotWord(word, "dog")}).tokenize(tiny.tokenizer())


def test_looking_changes_no_pixel(base, found):
    plain = generate(base, "a dog sleeping on the beach", seeds=(3, 4, 5), options=OPTIONS, batch_size=2)
    assert [image.tobytes() for image in found.generation.images] == [image.tobytes() for image in plain.images]


def test_looking_changes_no_pixel_of_a_concept(base):
    concept = tiny.Louder()
    plain = generate(base, PROMPT, concept=concept, seeds=(1,), options=OPTIONS)
    seen = attention_maps(base, PROMPT, concept=concept, seeds=(1,), options=OPTIONS)
    assert seen.generation.images[0].tobytes() == plain.images[0].tobytes()
    assert [word.text for word in seen.words] == ["sks", "dog", "sleeping", "on", "beach"]


def test_maps_are_those_of_all_tokens(base, found):
    """Against the average over all tokens, each picture alone: of other batches, so equal to rounding."""
    for number, seed in enumerate((3, 4, 5)):
        capture = CaptureMaps(Where(kinds=("cross",)))
        generate(base, "a dog sleeping on the beach", seeds=(seed,), options=OPTIONS, interventions=[capture])
        whole = capture.average()[0]  # (64, tokens)
        assert torch.allclose(whole.sum(-1), torch.ones(len(whole)), atol=1e-5)
        for word, values in zip(found.words, found.pictures[number].maps, strict=True):
            expected = whole[:, list(word.positions)].sum(-1).reshape(8, 8).numpy()
            assert np.allclose(values, expected, atol=1e-5), word


def test_one_layer_and_one_step_are_those_that_were_asked_for(base):
    chosen = attention_maps(base, PROMPT, noun="dog", words=["beach"], resolution=4, during=(1, 1), options=OPTIONS)
    capture = CaptureMaps(Where(kinds=("cross",), resolutions=(4,), steps=(1,)))
    generate(base, "a dog sleeping on the beach", seeds=(0,), options=OPTIONS, interventions=[capture])
    ((key, whole),) = capture.maps.items()
    assert key[0] == 1 and chosen.steps == (1, 1, 3) and chosen.sites == (key[1],)
    expected = whole[0][:, list(chosen.words[0].positions)].sum(-1).reshape(4, 4)
    assert np.allclose(chosen.pictures[0].maps[0], expected, atol=1e-7)


def test_a_word_of_several_tokens_has_them_all():
    """The tiny tokenizer spells words that it does not know: "living" is six tokens after <bos> a dog in the."""
    sentence = spans("a {subject} in the living room")
    (word,) = choose_words(sentence, ["Living"])
    assert "".join(sentence.piece(at) for at in word.positions) == "living" and len(word.positions) == 6
    (phrase,) = choose_words(sentence, ["living room"])
    assert "".join(sentence.piece(at) for at in phrase.positions) == "livingroom"


def test_a_word_that_stands_twice_has_both_places():
    sentence = spans("a {subject} sleeping on a dog on the beach")
    (word,) = choose_words(sentence, ["dog"])
    assert len(word.positions) == 2 and not word.of_subject
    assert len(choose_words(sentence, ["on"])[0].positions) == 2


def test_the_words_by_default_are_the_subjects_and_the_context():
    assert [(word.text, word.of_subject) for word in words_of(spans(word="sks dog"))] == [
        ("sks", True), ("dog", True), ("sleeping", False), ("on", False), ("beach", False),
    ]  # fmt: skip
    (place,) = choose_words(spans(word="sks dog"), ["{subject}"])
    assert place.text == "sks dog" and place.of_subject and len(place.positions) == 2


def test_an_unknown_word_is_refused_with_the_words_that_are_there():
    with pytest.raises(PromptError) as refused:
        choose_words(spans(), ["beech", "sleep"])
    said = str(refused.value)
    assert (
        "'beech' (did you mean 'beach'?)" in said and "'sleep'" in said and "a, dog, sleeping, on, the, beach" in said
    )
    assert "\n" not in said


def test_the_mask_is_the_subjects_map_over_its_threshold(found):
    dog = found.pictures[0].maps[0]
    mask = found.pictures[0].mask
    assert dog[mask == 1].min() > dog[mask == 0].max() and found.pictures[0].mask_from == "otsu"
    data = found.to_dict()["pictures"][0]
    assert [each["made_the_mask"] for each in data["words"]] == [True, False, False, False]
    assert data["words"][0]["inside"] == pytest.approx(dog[mask == 1].sum() / dog.sum())
    assert data["words"][0]["ratio"] > 1


def test_a_given_mask_is_taken_and_no_placeholder_has_none(base):
    given = np.zeros((16, 16), np.float32)
    given[:, :8] = 1
    seen = attention_maps(base, PROMPT, noun="dog", mask=given, options=OPTIONS).pictures[0]
    assert seen.mask_from == "given" and seen.numbers[2].inside == pytest.approx(
        seen.maps[2][:, :4].sum() / seen.maps[2].sum()
    )
    bare = attention_maps(base, "a dog on the beach", options=OPTIONS).pictures[0]
    assert bare.mask is None and bare.numbers[0].inside is None and 0 < bare.numbers[0].entropy <= 1


def test_what_is_saved_is_what_was_found(found, tmp_path):
    from thisness.files import load_tensors

    one = replace(found, pictures=found.pictures[:1])  # the page of one is quicker to draw
    paths = one.save(tmp_path)
    assert [path.name for path in paths] == ["attention.png", "attention.json", "maps.safetensors"]
    maps = load_tensors(paths[2])
    assert list(maps) == ["seed-3"] and np.allclose(maps["seed-3"], found.pictures[0].maps)
    assert json.loads(paths[1].read_text()) == one.to_dict()
    assert len(list((tmp_path / "pictures").glob("*-seed-*.png"))) == 3


def test_the_page_shows_each_map_at_its_place(found):
    """Where a map is largest its tile is bright, where it is smallest dark."""
    from thisness.diagnostics.attention_sheet import _overlay

    values = found.pictures[0].maps[2]
    top = float((values / values.mean()).max())
    drawn = np.asarray(_overlay(found.generation.images[0], values, top).convert("L"), float)
    cell = drawn.shape[0] // 8
    grey = drawn.reshape(8, cell, 8, cell).mean((1, 3))
    assert np.corrcoef(grey.ravel(), values.ravel())[0, 1] > 0.9


def test_a_flat_map_is_drawn_flat(found):
    """Faint noise must not look like a pattern."""
    from PIL import Image

    from thisness.diagnostics.attention_sheet import _overlay

    noise = 1 + 0.01 * np.random.default_rng(0).normal(size=(8, 8))
    drawn = np.asarray(_overlay(Image.new("RGB", (16, 16), "gray"), noise, 3.0), float)
    assert np.ptp(drawn, (0, 1)).max() < 16


@pytest.mark.parametrize(
    "wrong, error, words",
    [
        ({"resolution": 16}, ConfigurationError, "4, 8"),
        ({"during": (2, 3)}, ConfigurationError, "0 to 2"),
        ({"layers": (7,)}, ConfigurationError, "layer 7"),
        ({"layers": (1,), "resolution": 8}, ConfigurationError, "no layer"),
        ({"mask": np.ones((8, 16))}, ImageError, "16x8 but the pictures are 16x16"),
        ({"words": ["hat"]}, PromptError, "hat"),
        ({"noun": ""}, PromptError, "subject"),
    ],
)
def test_what_does_not_fit_is_refused(base, wrong, error, words):
    with pytest.raises(error, match=words) as refused:
        attention_maps(base, PROMPT, **{"noun": "dog", "options": OPTIONS} | wrong)
    assert "\n" not in str(refused.value)
