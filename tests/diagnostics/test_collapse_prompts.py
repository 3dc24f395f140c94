"""Sentences for measures of semantic collapse. Oracles: the rules of the spec, counted; a file that breaks them."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny
from thisness import playroom
from thisness.diagnostics.collapse_prompts import context_prompts, read_prompts, simple_prompts
from thisness.errors import PromptError
from thisness.prompt import Prompt, SlotWord

DOG, RARE = SlotWord("dog", "dog"), SlotWord("sks dog", "dog")


class Reader:
    """A base as far as sentences are concerned."""

    name = "reader"

    def __init__(self, tokenizer) -> None:
        self.tokenizer, self.tokenizers = tokenizer, [tokenizer]


@pytest.fixture(scope="module")
def embedded():
    from transformers import CLIPTokenizer

    return Reader(CLIPTokenizer.from_pretrained(next((Path(playroom.__file__).parent / "weights").rglob("tokenizer"))))


@pytest.mark.parametrize("noun", ["dog", "bear", "teapot"])
def test_hundreds_of_sentences_with_the_word_once(embedded, noun):
    word = SlotWord(f"sks {noun}", noun)
    found = context_prompts(embedded, [word, SlotWord(noun, noun)], 300)
    assert len(set(found)) == 300
    lengths, places = [], set()
    for text in found:
        words = text.split()
        assert words.count("{subject}") == 1 and noun not in words and f"{noun}s" not in words
        lengths.append(len(words))
        places.add(words.index("{subject}"))
        Prompt(text).fill({"subject": word}).tokenize(embedded.tokenizer)  # not too long
        assert all(
            len(embedded.tokenizer(w, add_special_tokens=False)["input_ids"]) == 1 for w in words if "{" not in w
        )
    assert min(lengths) >= 10 and max(lengths) <= 30 and len(places) >= 8
    assert len({text.split()[0] for text in found}) >= 4  # not all begin alike
    simple = simple_prompts(embedded, [word], 200)
    assert len(set(simple)) == 200 and max(len(text.split()) for text in simple) <= 10
    assert not set(simple) & set(found)


def test_same_seed_same_sentences(embedded):
    one, again, other = (context_prompts(embedded, [DOG], 50, seed) for seed in (0, 0, 1))
    assert one == again and len(set(one) & set(other)) < 10


def test_a_tokenizer_that_knows_few_words():
    """The tiny one knows 16 words, of which few sentences are made; what it must spell out is used where it fits."""
    few = context_prompts(Reader(tiny.tokenizer()), [RARE], 100)
    known = {*tiny.WORDS, "{subject}", "and"}
    assert 8 <= len(few) < 100 and all(set(text.split()) <= known for text in few)
    assert len(simple_prompts(Reader(tiny.tokenizer(length=64)), [RARE], 100)) >= 8


def test_sentences_of_a_person(tmp_path):
    file = tmp_path / "mine.csv"
    rows = [f'"A dog, number {n}, in the rain"' for n in range(7)] + ['"one {subject} and a dog house"']
    file.write_text("id,prompt\n" + "".join(f"{n},{row}\n" for n, row in enumerate(rows)))
    assert read_prompts(file, "dog")[0] == "A {subject}, number 0, in the rain"
    assert read_prompts(file, "dog")[-1] == "one {subject} and a dog house"
    file.write_text("".join(f"the Dog, number {n}\n" for n in range(8)))
    assert read_prompts(file, "dog")[3] == "the {subject}, number 3"


@pytest.mark.parametrize(
    "row, said",
    [
        ("a cat in the rain", "has 'dog' 0 times"),
        ("a dog beside a dog", "has 'dog' 2 times"),
        ("many dogs", "has 'dog' 0 times"),
        ("'a dog in the rain'", "a quote or a comma"),
        ("a dog in the rain,", "a quote or a comma"),
    ],
)
def test_files_with_mistakes_are_refused(tmp_path, row, said):
    file = tmp_path / "mine.txt"
    file.write_text("\n".join([*[f"a dog number {n}" for n in range(9)], row]))
    with pytest.raises(PromptError, match=said) as refused:
        read_prompts(file, "dog")
    assert "sentence 10" in str(refused.value)
    file.write_text("a dog\n")
    with pytest.raises(PromptError, match="8 are needed"):
        read_prompts(file, "dog")
    with pytest.raises(PromptError, match="is not there"):
        read_prompts(tmp_path / "nowhere", "dog")
