"""Other names for the same thing in training sentences: leaf, parent, broad class.

AlignGen (2025), section 4.1: "acoustic guitar" -> "guitar" -> "musical instrument". The paper asks a language model;
here rules do it, and a model may be asked by whoever has one (`ask`).

    Pattern.of("A red acoustic guitar on a table", "acoustic guitar")      where the name stands
    names_of("acoustic guitar", "Musical Instruments")                     ("acoustic guitar", "guitar", "musical ...")
    pattern.drawn(names, rng) -> (sentence, name)                          one of them in its place
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from ..errors import PromptError
from .aligngen_parts import concept_span

_ARTICLE = re.compile(r"\b(an?)(\s+)$", re.IGNORECASE)
_SILENT_H = ("hour", "honest", "heir", "honour", "honor")
_LIKE_Y = ("uni", "use", "usu", "euro", "one", "ute", "ufo")  # written with a vowel, spoken with a consonant
_ASKED = (
    "The item is {item!r}, of the category {category!r}. Answer with one JSON list of three strings: the item's own "
    "name, a more general name for it, and the name of the broad class it belongs to; lower case, singular, no article."
)


@dataclass(frozen=True)
class Pattern:
    """A sentence with a place for the name of its subject.

    Args:
        before, after: the text around it.
        plural: the name stands there in the plural.
    """

    before: str
    after: str
    plural: bool = False

    @classmethod
    def of(cls, sentence: str, item: str) -> Pattern:
        """Where an item's name first stands, in any number; of several words the last one will do.

        Raises:
            PromptError: it does not.
        """
        clean = " ".join(sentence.split())
        start, end = concept_span(clean, item)
        found, own = clean[start:end].lower(), item.lower().split()[-1]
        return cls(clean[:start], clean[end:], plural=found.split()[-1] in plurals(own) and not found.endswith(own))

    def filled(self, name: str) -> str:
        """The sentence with a name in its place, and the article that suits."""
        said = self.said(name)
        before = self.before
        article = _ARTICLE.search(before)
        if article is not None:
            wanted = "an" if spoken_with_a_vowel(said) else "a"
            wanted = wanted.capitalize() if article[1][0].isupper() else wanted
            before = before[: article.start()] + wanted + article[2]
        return before + said + self.after

    def said(self, name: str) -> str:
        """The name as it stands in the sentence: in the plural, if the item's stood so."""
        *ahead, last = name.split()
        return " ".join([*ahead, plurals(last)[0]]) if self.plural else name

    def drawn(self, names: Sequence[str], rng: Random) -> tuple[str, str]:
        """The sentence under one of several names, all as likely, and the name as it stands there."""
        name = rng.choice(list(names))
        return self.filled(name), self.said(name)


def names_of(item: str, category: str = "", ask: Callable[[str], str] | None = None) -> tuple[str, ...]:
    """Leaf, parent and broad name of an item, each once: by rules, or of a language model.

    By rules the parent is the item's last word and the broad name its category in the singular.

    Args:
        item: "acoustic guitar".
        category: "Musical Instruments", or "".
        ask: answers a question with text; what is no list of three names falls back to the rules.
    """
    leaf = " ".join(item.lower().split())
    by_rule = (leaf, leaf.split()[-1], singular(" ".join(category.lower().split())))
    told = _told(ask(_ASKED.format(item=leaf, category=category))) if ask is not None else ()
    return tuple(dict.fromkeys(each for each in (told or by_rule) if each))


def _told(answer: str) -> tuple[str, ...]:
    found = re.search(r"\[.*?\]", answer, re.DOTALL)
    try:
        names = json.loads(found[0]) if found else None
    except ValueError:
        return ()
    if (
        not isinstance(names, list)
        or len(names) != 3
        or not all(isinstance(each, str) and each.strip() for each in names)
    ):
        return ()
    return tuple(" ".join(each.lower().split()) for each in names)


def patterns(sentences: Sequence[str], item: str) -> list[Pattern]:
    """Of the sentences that name the item; the others are left out."""
    found = []
    for sentence in sentences:
        try:
            found.append(Pattern.of(sentence, item))
        except PromptError:
            continue
    return found


def plurals(word: str) -> tuple[str, ...]:
    """How a regular noun may be written in the plural, the likeliest first."""
    if re.search(r"[^aeiou]y$", word):
        return (word[:-1] + "ies", word + "s")
    if re.search(r"(s|x|z|ch|sh)$", word):
        return (word + "es", word + "s")
    return (word + "s", word + "es")


def singular(words: str) -> str:
    """The last of some words in the singular, if it is a regular plural."""
    if words.endswith("ies") and len(words) > 4:
        return words[:-3] + "y"
    if re.search(r"(ss|x|z|ch|sh)es$", words):
        return words[:-2]
    return words[:-1] if words.endswith("s") and not words.endswith(("ss", "us")) else words


def spoken_with_a_vowel(words: str) -> bool:
    """Whether "an" goes before them."""
    word = words.lower().lstrip("\"'(")
    if word.startswith(_SILENT_H):
        return True
    return word[:1] in tuple("aeiou") and not word.startswith(_LIKE_Y)
