"""Oracle: the filled sentence, read by eye; positions cut out exactly the words; all errors at once (SAFETY 9, 10)."""

import pytest

from thisness.errors import PromptError
from thisness.prompt import FilledPrompt, Prompt, SlotWord

RUFUS = SlotWord("<rufus> <rufus_1> dog", "dog")


def test_one_slot():
    prompt = Prompt("a {subject} sleeping")
    filled = prompt.fill({"subject": RUFUS})
    assert prompt.slots == ("subject",)
    assert filled.text == "a <rufus> <rufus_1> dog sleeping" and filled.template == prompt.text
    (slot,) = filled.slots
    assert filled.text[slot.char_start : slot.char_end] == RUFUS.text
    assert filled.text[slot.noun_start : slot.noun_end] == "dog" and slot.noun == "dog"


def test_several_slots_and_one_that_stands_twice():
    prompt = Prompt("{rex}, a {mug} and {rex}'s shadow")
    assert prompt.slots == ("rex", "mug")
    filled = prompt.fill({"mug": SlotWord("<mug>", "mug"), "rex": SlotWord("sks cat", "cat")})
    assert filled.text == "sks cat, a <mug> and sks cat's shadow"
    cut = [
        (s.slot, filled.text[s.char_start : s.char_end], filled.text[s.noun_start : s.noun_end]) for s in filled.slots
    ]
    assert cut == [("rex", "sks cat", "cat"), ("mug", "<mug>", ""), ("rex", "sks cat", "cat")]


@pytest.mark.parametrize(
    "word, found",
    [
        (SlotWord("dog", "dog"), (0, 3)),
        (SlotWord("hotdog dog dogs", "dog"), (7, 10)),
        (SlotWord("<dog>", "dog"), (5, 5)),
        (SlotWord("<dog> dog <dog_1>", "dog"), (6, 9)),
        (SlotWord("<x> Teddy Bear", "teddy bear"), (4, 14)),
        (SlotWord("<x>", "dog"), (3, 3)),
        (SlotWord("<x>"), (3, 3)),
        (SlotWord("hotdogs", "dog"), (7, 7)),
    ],
)
def test_where_the_noun_is(word, found):
    (slot,) = Prompt("{a}").fill({"a": word}).slots
    assert (slot.noun_start, slot.noun_end) == found


def test_sentence_without_slots():
    assert Prompt("a dog").fill({}) == FilledPrompt.plain("a dog")
    assert FilledPrompt.plain("").text == ""
    with pytest.raises(PromptError, match="no placeholder: write {subject} where the subject goes"):
        Prompt("a dog").fill({"subject": RUFUS})


def test_slots_without_words_and_words_without_slots():
    with pytest.raises(
        PromptError, match=r"unknown placeholder {subjct} \(did you mean 'subject'\?\); known here: {subject}"
    ):
        Prompt("a {subjct}").fill({"subject": RUFUS})
    with pytest.raises(PromptError, match="{rex}.*{mug}.*known here: none: give a subject or a concept"):
        Prompt("a {rex} and a {mug}").fill({})
    with pytest.raises(PromptError, match="{mug} is given but not in the sentence"):
        Prompt("a {rex}").fill({"rex": RUFUS, "mug": RUFUS})


@pytest.mark.parametrize("text", ["", "   ", "\n\t", "\u200b", "\ufeff \u2060"])
def test_empty(text):
    with pytest.raises(PromptError, match="the prompt is empty"):
        Prompt(text)


def test_stray_braces_are_all_named():
    with pytest.raises(PromptError) as caught:
        Prompt("{} {a b} {Rex} { and } {{x}}")
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "'{}' is not",
        "'{a b}' is not a placeholder (write {ab}",
        "'{Rex}' is not a placeholder (write {rex}",
    ):
        assert part in message
    assert "{x}" not in Prompt("a dog").slots


@pytest.mark.parametrize("text", ["pre{rex}", "{rex}s", "{rex}2", "{rex}\u0301", "{a}{b}c"])
def test_placeholders_that_touch_letters(text):
    with pytest.raises(PromptError, match="put a space between"):
        Prompt(text)


@pytest.mark.parametrize("text", ["{rex}'s", "({rex})", "{rex}, {mug}.", "{a}{b}", "-{rex}-"])
def test_placeholders_that_touch_other_marks(text):
    assert Prompt(text).text == text


def test_odd_unicode():
    assert Prompt("a cafe\u0301").text == "a caf\u00e9"
    assert Prompt("  a\u00a0dog\u2003on\nthe\tbeach ").text == "a dog on the beach"
    assert Prompt("a \u200bd\u200eo\u202eg\ufeff").text == "a dog"
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
    assert Prompt(family).text == family
    assert Prompt("e\u200b\u0301").text == "\u00e9"  # a mark that became visible to the letter before it
    assert SlotWord("cafe\u0301", "cafe\u0301") == SlotWord("caf\u00e9", "caf\u00e9")


@pytest.mark.parametrize("character", ["\x00", "\x07", "\x1b", "\ud800", "\ue000", "\U0010ffff"])
def test_what_is_not_text(character):
    for make in (Prompt, SlotWord):
        with pytest.raises(PromptError, match=r"not text \(U\+[0-9A-F]{4,6}\)"):
            make(f"a{character} dog")


def test_words_are_checked():
    with pytest.raises(PromptError, match="empty"):
        SlotWord(" ", "dog")
    with pytest.raises(PromptError, match="braces"):
        SlotWord("{subject}", "dog")
    with pytest.raises(PromptError, match="10001 characters"):
        Prompt("a" * 10_001)
