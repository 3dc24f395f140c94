"""Other names in training sentences. Oracle: sentences as people write them."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from thisness.errors import PromptError
from thisness.methods.aligngen_names import Pattern, names_of, patterns
from thisness.methods.aligngen_parts import concept_span


@pytest.mark.parametrize(
    "sentence, item, name, expected",
    [
        ("A photo of an acoustic guitar.", "acoustic guitar", "guitar", "A photo of a guitar."),
        ("An umbrella, open", "umbrella", "thing", "A thing, open"),
        ("A unicorn", "unicorn", "animal", "An animal"),
        ("a red umbrella on it", "umbrella", "tool", "a red tool on it"),
        ("Two red ponies run", "pony", "animal", "Two red animals run"),
        ("the brushes lie there", "brush", "pony", "the ponies lie there"),
        ("one hour glass", "hour glass", "utensil", "one utensil"),
        ("a clock", "clock", "hour glass", "an hour glass"),
        ("a glass on glasses", "glass", "dish", "a dish on glasses"),
    ],
)
def test_another_name_stands_where_the_first_did(sentence, item, name, expected):
    assert Pattern.of(sentence, item).filled(name) == expected


def test_names_by_rule():
    assert names_of("Acoustic  Guitar", "Musical Instruments") == ("acoustic guitar", "guitar", "musical instrument")
    assert names_of("guitar", "Guitars") == ("guitar",)
    assert names_of("red bus") == ("red bus", "bus")
    assert names_of("vase", "Dishes") == ("vase", "dish")


def test_names_of_a_model_and_the_rules_where_it_says_something_else():
    asked = []

    def ask(question):
        asked.append(question)
        return 'Here: ["Acoustic guitar", "guitar", "musical instrument"]'

    assert names_of("acoustic guitar", "Music", ask) == ("acoustic guitar", "guitar", "musical instrument")
    assert "'acoustic guitar'" in asked[0] and "'Music'" in asked[0]
    for answer in ("no", '["a", "b"]', '["a", 3, "c"]', "[", '["a", "", "c"]'):
        assert names_of("acoustic guitar", "Toys", lambda _, said=answer: said) == ("acoustic guitar", "guitar", "toy")


def test_each_name_is_as_likely_and_found_again():
    pattern, names, rng = (
        Pattern.of("two acoustic guitars in rain", "acoustic guitar"),
        ("guitar", "toy", "thing"),
        Random(0),
    )
    drawn = [pattern.drawn(names, rng) for _ in range(3000)]
    counts = Counter(name for _, name in drawn)
    assert set(counts) == {"guitars", "toys", "things"} and all(900 < each < 1100 for each in counts.values())
    for sentence, name in drawn[:50]:
        assert sentence[slice(*concept_span(sentence, name))] == name


def test_sentences_without_the_name_are_left_out():
    assert len(patterns(["a dog", "a cat", "Dogs!"], "dog")) == 2
    with pytest.raises(PromptError, match="'dog' is not in 'a cat'"):
        Pattern.of("a cat", "dog")
