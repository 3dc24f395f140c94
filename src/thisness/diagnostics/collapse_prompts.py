"""Sentences that semantic collapse is measured with: some hundred about a subject in its world, and as many that show
nothing but the subject. (arXiv 2506.22685 asked a language model for them; ours are put together from lists of words by
a seed.)

Only words that the base's tokenizer has as one token are used, as far as these suffice: the embedded base knows a few
hundred words, and a word that it must spell out tells nothing.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from ..bases import Base
from ..errors import ConfigurationError, PromptError, raise_all
from ..prompt import Prompt, SlotWord

COUNT = 200
FEWEST = 8
TRIES = 60  # in a row that give nothing new: then there is nothing new
MOST_BYTES = 1_000_000

PICTURES = """photo|picture|image|painting|drawing|portrait|sketch|pencil sketch|pencil drawing|watercolour|poster|
    statue|mosaic|postcard|sculpture|collage|print|cartoon|rendering|snapshot|illustration|photograph|
    watercolour painting"""
QUALITIES = """bright|dark|nice|lovely|small|big|little|old|new|soft|round|close|clean|blurry|faded|colourful|famous|
    simple|beautiful|shiny|very nice|very old|very dark|very small|black and white"""
MANNERS = """small|big|little|tiny|old|new|cute|happy|sad|quiet|proud|shiny|funny|lovely|nice|brave|fluffy|dirty|clean|
    lonely|tired|curious|wet|famous|strange|dusty|young|heavy"""
DOINGS = """standing|sitting|sleeping|jumping|running|waving|tilted|waiting|resting|hiding|falling|spinning|floating|
    alone|shown|seen|found|left|placed"""
PREPOSITIONS = "next to|behind|in front of|near|under|with|over|beside|to the left of|on top of|far from"
COLOURS = "red|orange|yellow|green|blue|purple|pink|brown|black|white|gray|golden|silver|striped"
THINGS = """ball|book|guitar|balloon|hat|scarf|teapot|backpack|car|robot|bird|cat|fox|bear|rabbit|table|chair|bicycle|
    lamp|bottle|mirror|flower|clock|piano|bridge|boat|train|horse|laptop|basket|umbrella|candle|ladder|blanket|
    newspaper|cake|statue|fence|suitcase|camera"""
WORN = "hat|bow|scarf|coat|crown|mask|ribbon|helmet|badge"
PLACES = """on the beach|at the beach|in the forest|in a forest|in the snow|in the city|in a city street|on the grass|
    in a meadow|under the night sky|in the kitchen|in a kitchen|in the desert|in a desert|in the mountains|
    in front of mountains|in the living room|in a living room|at the market|in a museum|on a wooden table|
    at the train station|by the river|in an old library|on the roof of a house|inside a hospital|at the airport|
    in a crowded restaurant|on a small island|behind the school|in the office|on a bridge|at a wedding|
    in the middle of a football field|beside a lake|in a garden full of flowers|at the bottom of the sea"""
TIMES = """at night|in the morning|in the evening|in summer|in winter|at dawn|after the rain|on a sunny day|
    on a rainy day|during a storm|before the party|while the sun goes down|on a cold winter night|
    in the summer of last year"""
OWNERS = "a|the|my|your|one|some"

Write = Callable[[Random, "Words"], str]


class Words:
    """The lists, without what a base cannot read or what is the noun itself.

    Args:
        readable: whether one word is; None takes all.
        noun: left out wherever it stands, in its plural, too.
    """

    def __init__(self, readable: Callable[[str], bool] | None, noun: str) -> None:
        own = {form for word in noun.lower().split() for form in (word, f"{word}s", f"{word}es")}

        def fits(phrase: str) -> bool:
            words = phrase.split()
            return not own & set(words) and (readable is None or all(readable(word) for word in words))

        def listed(text: str) -> list[str]:
            return [phrase for each in text.split("|") if fits(phrase := " ".join(each.split()))]

        self.pictures, self.qualities, self.manners = listed(PICTURES), listed(QUALITIES), listed(MANNERS)
        self.doings, self.prepositions, self.colours = listed(DOINGS), listed(PREPOSITIONS), listed(COLOURS)
        self.things, self.worn, self.places = listed(THINGS), listed(WORN), listed(PLACES)
        self.times, self.owners = listed(TIMES), listed(OWNERS) or ["a"]


def _context(rng: Random, words: Words) -> str:
    """10 to 30 words where the lists allow it: a picture, the subject somewhere in it, what else, where, when."""

    def one(phrases: Sequence[str], before: str = "") -> str:
        return f"{before} {rng.choice(phrases)}".strip() if phrases else ""

    def thing(link: Sequence[str]) -> str:
        named = " ".join(part for part in (one(words.colours), one(words.things)) if part)
        return f"{one(link)} {_article(named)}".strip() if named and link else ""

    opening = _article(" ".join(part for part in (maybe(rng, words.qualities, 0.3), one(words.pictures)) if part))
    opening = f"{opening} of" if words.pictures else ""
    subject = _article(f"{maybe(rng, words.manners, 0.6)} {{subject}}".strip())
    worn = _article(f"{one(words.colours)} {one(words.worn)}".strip()) if words.worn and rng.random() < 0.3 else ""
    wearing = f"wearing {worn}" if worn else ""
    place, time = one(words.places), maybe(rng, words.times, 0.5)
    frame = rng.randrange(4)
    if frame == 0:
        parts = [opening, subject, one(words.doings), thing(words.prepositions), place, time]
    elif frame == 1:
        other = thing([""])
        parts = [opening, other, other and "and", subject, wearing, one(words.doings), place, time]
    elif frame == 2:
        parts = [opening, thing([""]), one(words.prepositions), subject, one(words.doings), place, time]
    else:
        parts = [place, time, opening, subject, wearing, one(words.doings), thing(words.prepositions)]
    return " ".join(part for part in parts if part)


def _simple(rng: Random, words: Words) -> str:
    """A picture of nothing but the subject."""
    quality = maybe(rng, words.qualities, 0.75)
    picture = f"{quality} {rng.choice(words.pictures)}".strip() if words.pictures else quality
    owner = rng.choice(words.owners)
    opening = f"the {picture}" if rng.random() < 0.3 else _article(picture)
    return f"{opening} of {owner} {{subject}}" if picture else f"{owner} {{subject}}"


def maybe(rng: Random, phrases: Sequence[str], probability: float) -> str:
    """One of them, or nothing. Draws as many numbers either way."""
    chosen = rng.choice(phrases) if phrases else ""
    return chosen if rng.random() < probability else ""


def _article(words: str) -> str:
    if not words:
        return ""
    return words if words.split()[0] in ("some", "the") else ("an " if words[0] in "aeiou" else "a ") + words


def context_prompts(base: Base, words: Sequence[SlotWord], count: int = COUNT, seed: int = 0) -> list[str]:
    """P_c and P_V*, with {subject} in the place of the word: different topics, the word in different places.

    Args:
        base: whose tokenizer must read them, with what `words` needs attached.
        words: what will take the place of {subject}: all of them must fit the encoder's length; none of their nouns
            stands elsewhere in a sentence.
        count: how many, each once.
        seed: of their words.

    Raises:
        ConfigurationError: the base can read fewer than `FEWEST`.
    """
    return _made(base, words, count, seed, _context)


def simple_prompts(base: Base, words: Sequence[SlotWord], count: int = COUNT, seed: int = 0) -> list[str]:
    """P_simple: sentences whose only content is the word. As `context_prompts`."""
    return _made(base, words, count, seed, _simple)


def _made(base: Base, words: Sequence[SlotWord], count: int, seed: int, write: Write) -> list[str]:
    noun = " ".join(word.noun or word.text for word in words)
    found: dict[str, None] = {}
    for lists in (Words(lambda word: _one_token(base, word), noun), Words(None, noun)):
        rng = Random(f"{write.__name__}/{seed}")
        seen: set[str] = set()
        in_vain = 0
        while len(found) < count and in_vain < TRIES:
            text = write(rng, lists)
            in_vain = in_vain + 1 if text in seen else 0
            if text not in seen and _fits(base, text, words):
                found[text] = None
            seen.add(text)
            if len(seen) > count * TRIES:
                break
        if len(found) >= min(count, FEWEST):
            break  # words that must be spelt out only where there is nothing else
    if len(found) < min(count, FEWEST):
        raise ConfigurationError(
            f"{base.name} reads only {len(found)} of the built-in sentences ({FEWEST} are needed): give your own"
        )
    return list(found)


def _one_token(base: Base, word: str) -> bool:
    return all(len(each(word, add_special_tokens=False)["input_ids"]) == 1 for each in base.tokenizers)


def _fits(base: Base, text: str, words: Sequence[SlotWord]) -> bool:
    for word in words:
        filled = Prompt(text).fill({"subject": word})
        for tokenizer in base.tokenizers:
            if len(tokenizer(filled.text, verbose=False)["input_ids"]) > tokenizer.model_max_length:
                return False
    return True


def read_prompts(path: str | Path, noun: str) -> list[str]:
    """Sentences of a person: one a line, or a CSV file's column "prompt".

    Args:
        path: of a text file, UTF-8, at most 1 MB. Each sentence has the noun, or {subject}, exactly once.
        noun: what is replaced by {subject} where that is not there.

    Raises:
        PromptError: no sentences; the word missing or there twice; a quote or a comma left over at an end (a file that
            was not written as CSV); all of it at once.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise PromptError(f"{path} is larger than {MOST_BYTES} bytes: give at most a few thousand sentences")
        content = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise PromptError(f"{path} is not there: name a file with one sentence a line") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{path} cannot be read as text ({type(error).__name__}): save it as UTF-8") from error
    table = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(content), skipinitialspace=True) if row]
    heading = [cell.lower() for cell in table[0]] if table else []
    if "prompt" in heading:
        rows = [row[heading.index("prompt")] for row in table[1:] if len(row) > heading.index("prompt")]
    else:
        rows = [", ".join(row) for row in table]
    rows = [stripped for row in rows if (stripped := row.strip())]
    problems: list[str] = []
    found: dict[str, None] = {}
    for number, row in enumerate(rows, 1):
        text = row if "{subject}" in row else re.sub(rf"\b{re.escape(noun)}\b", "{subject}", row, flags=re.IGNORECASE)
        times = text.count("{subject}")
        if times != 1:
            problems.append(f"sentence {number} has {noun!r} {times} times, not once: {row[:60]!r}")
        elif row[0] in "\"'," or row[-1] in "\"',":
            problems.append(f"sentence {number} begins or ends with a quote or a comma: {row[:60]!r}")
        else:
            found[Prompt(text).text] = None
    if not rows:
        problems.append("it has no sentences")
    elif not problems and len(found) < FEWEST:
        problems.append(f"it has {len(found)} different sentences, {FEWEST} are needed")
    shown = problems[:8] + ([f"and {len(problems) - 8} more"] if len(problems) > 8 else [])
    raise_all(shown, PromptError, str(path))
    return list(found)
