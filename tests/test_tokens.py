"""Oracle: the ids are the stock tokenizer's; the tokens of each span, decoded, are its words (SAFETY 9)."""

import pytest
from transformers import CLIPTokenizer

import tiny
from thisness.errors import PromptError
from thisness.prompt import FilledPrompt, Prompt, SlotWord
from thisness.tokens import check_new_tokens, placeholder_tokens

ADDED = ["<rufus>", "<rufus_1>", "<rufus_2>", "<mug>"]


def byte_level(length):
    """A tokenizer that reads any text, a byte a token, as the real one does for what it has no merges for."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(code) for code in printable] + [chr(256 + number) for number in range(256 - len(printable))]
    vocabulary = {token: number for number, token in enumerate([*letters, *(letter + "</w>" for letter in letters)])}
    vocabulary |= {"do": 512, "dog</w>": 513, "<|startoftext|>": 514, "<|endoftext|>": 515}
    return CLIPTokenizer(vocab=vocabulary, merges=[("d", "o"), ("do", "g</w>")], model_max_length=length)


TOKENIZERS = {
    "words, 48": lambda: tiny.tokenizer(length=48),
    "words, 77, padded with !": lambda: tiny.tokenizer(pad="!", length=77),
    "bytes, 77": lambda: byte_level(77),
}


@pytest.fixture(params=TOKENIZERS, scope="module")
def tokenizer(request):
    tokenizer = TOKENIZERS[request.param]()
    tokenizer.add_tokens(ADDED)
    return tokenizer


def squeezed(text):
    return "".join(text.lower().split())


SENTENCES = [
    "a {subject} on the beach",
    "A {subject}'s hat, ON the {mug}!",
    "{subject}",
    "{subject}{mug}",
    "an {mug} with the {subject} -- a dog, a red {subject}?",
]
WORDS = ["<rufus>", "<rufus> <rufus_1> <rufus_2>", "<rufus> dog", "sks dog", "dog", "Red DOG"]


@pytest.mark.parametrize("sentence", SENTENCES)
@pytest.mark.parametrize("word", WORDS)
def test_spans_decode_to_their_words(tokenizer, sentence, word):
    words = {"subject": SlotWord(word, "dog"), "mug": SlotWord("<mug>", "mug")}
    prompt = Prompt(sentence)
    filled = prompt.fill({name: words[name] for name in prompt.slots})
    spans = filled.tokenize(tokenizer)
    stock = tokenizer(filled.text, padding="max_length", truncation=True, max_length=tokenizer.model_max_length)
    assert list(spans.ids) == stock.input_ids
    assert len(spans.slots) == len(filled.slots)
    for tokens, slot in zip(spans.slots, filled.slots, strict=True):
        assert tokens.slot == slot.slot
        for positions, text in (
            (tokens.all, filled.text[slot.char_start : slot.char_end]),
            (tokens.noun, filled.text[slot.noun_start : slot.noun_end]),
        ):
            assert squeezed(tokenizer.decode([spans.ids[position] for position in positions])) == squeezed(text)
        assert {spans.roles[position] for position in tokens.word} <= {"subject"}
        assert {spans.roles[position] for position in tokens.noun} <= {"noun"}
    inside = sorted(position for tokens in spans.slots for position in tokens.all)
    assert inside == sorted(spans.where("subject", "noun"))
    rest = [spans.ids[position] for position in spans.where("context", "article", "punctuation")]
    template = "".join(filled.template.replace("{subject}", "").replace("{mug}", ""))
    assert squeezed(tokenizer.decode(rest)) == squeezed(template)


def test_roles_one_by_one():
    tokenizer = tiny.tokenizer(length=16)
    tokenizer.add_tokens(ADDED)
    filled = Prompt("The {subject} on a beach, red").fill({"subject": SlotWord("<rufus> <rufus_1> dog", "dog")})
    spans = filled.tokenize(tokenizer)
    assert [(role, spans.piece(position)) for position, role in enumerate(spans.roles)] == [
        ("bos", ""),
        ("article", "The"),
        ("subject", "<rufus>"),
        ("subject", "<rufus_1>"),
        ("noun", "dog"),
        ("context", "on"),
        ("article", "a"),
        ("context", "beach"),
        ("punctuation", ","),
        ("context", "red"),
        ("eos", ""),
        *[("pad", "")] * 5,
    ]
    assert (spans.length, spans.end) == (11, 10)
    assert spans.slots[0].word == (2, 3) and spans.slots[0].noun == (4,) and spans.of("subject") == (2, 3, 4)
    with pytest.raises(PromptError, match="no placeholder {mug}"):
        spans.of("mug")


def test_letters_of_a_word_are_no_articles():
    spans = FilledPrompt.plain("sea a at").tokenize(tiny.tokenizer())  # "sea" and "at" fall apart into letters
    assert [spans.piece(position) for position in spans.where("article")] == ["a"]


def test_empty_sentence():
    spans = FilledPrompt.plain("").tokenize(tiny.tokenizer(length=5))
    assert spans.roles == ("bos", "eos", "pad", "pad", "pad") and spans.end == 1


def test_the_end_is_the_first_end_mark_also_where_the_padding_is_the_same_token():
    tokenizer = tiny.tokenizer(length=8)
    spans = FilledPrompt.plain("a dog").tokenize(tokenizer)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert spans.end == spans.ids.index(tokenizer.eos_token_id) == 3


def test_positions_are_right_beside_other_alphabets():
    tokenizer = byte_level(77)
    tokenizer.add_tokens(ADDED)
    filled = Prompt("ein Ärger, 犬 e\u0301 \U0001f415 {subject} Straße").fill(
        {"subject": SlotWord("<rufus> chien é", "chien é")}
    )
    spans = filled.tokenize(tokenizer)
    (tokens,) = spans.slots
    assert tokenizer.decode([spans.ids[position] for position in tokens.word]) == "<rufus>"
    assert squeezed(tokenizer.decode([spans.ids[position] for position in tokens.noun])) == "chiené"


@pytest.mark.parametrize("length", [16, 48, 77])
def test_too_long_shows_what_would_be_cut(length):
    tokenizer = tiny.tokenizer(length=length)
    fits = " ".join(["dog"] * (length - 2))
    assert FilledPrompt.plain(fits).tokenize(tokenizer).roles.count("pad") == 0
    with pytest.raises(PromptError) as caught:
        FilledPrompt.plain(fits + " on the red beach").tokenize(tokenizer)
    message = str(caught.value)
    assert (
        f"has {length + 4} tokens but the encoder takes {length}: 'on the red beach' would be cut; shorten it by 4"
        in message
    )
    kept = tokenizer(fits + " on the red beach", truncation=True, max_length=length).input_ids
    assert list(FilledPrompt.plain(fits).tokenize(tokenizer).ids) == kept  # it is what the stock tokenizer cuts
    with pytest.raises(PromptError, match=r"'dog .*\.\.\.' would be cut"):
        FilledPrompt.plain("dog " * 500).tokenize(tokenizer)


def test_another_length_may_be_asked_for():
    tokenizer = tiny.tokenizer(length=77)
    assert len(FilledPrompt.plain("a dog").tokenize(tokenizer, 12).ids) == 12
    tokenizer.model_max_length = int(1e30)
    with pytest.raises(ValueError, match="max_length"):
        FilledPrompt.plain("a dog").tokenize(tokenizer)


def test_learned_words_that_were_not_added_are_refused(tokenizer):
    filled = Prompt("a {subject}").fill({"subject": SlotWord("<rufus> <rex> dog", "dog")})
    with pytest.raises(PromptError, match="does not know the learned word '<rex>': attach the concept"):
        filled.tokenize(tokenizer)


@pytest.mark.parametrize(
    "text, shown", [("a dog<|endoftext|> cat", "<|endoftext|>"), ("<|startoftext|>dog", "startoftext")]
)
def test_marks_of_the_encoder_cannot_be_written_out(tokenizer, text, shown):
    with pytest.raises(PromptError) as caught:
        FilledPrompt.plain(text).tokenize(tokenizer)
    assert "cannot read" in str(caught.value) and shown in str(caught.value)


def test_characters_that_a_small_vocabulary_lacks_are_refused():
    with pytest.raises(PromptError, match="cannot read 'é', '犬' in"):
        FilledPrompt.plain("a caf\u00e9 犬").tokenize(tiny.tokenizer())


def test_names_of_new_tokens():
    assert placeholder_tokens("rufus", 3) == ("<rufus>", "<rufus_1>", "<rufus_2>")
    tokenizer = byte_level(77)
    check_new_tokens(placeholder_tokens("rufus", 3), tokenizer)
    tokenizer.add_tokens(ADDED)
    taken = CLIPTokenizer(vocab={**tokenizer.get_vocab(), "<old>": 600, "<new></w>": 601}, merges=[])
    taken.add_tokens(["<mug>"])
    with pytest.raises(PromptError) as caught:
        check_new_tokens(["<Rex>", "rex", "<rex>", "<rex>", "<mug>", "<old>", "<new>", "<a b>"], taken)
    message = str(caught.value)
    assert message.startswith("7 problems: ") and "\n" not in message
    for part in (
        "'<Rex>' must be of a-z",
        "'rex' must be",
        "'<rex>' is there twice",
        "'<mug>' is in use by another concept",
        "'<old>' is a word of the vocabulary",
        "'<new>' is a word of the vocabulary",
        "'<a b>' must be",
    ):
        assert part in message
