"""Text from anywhere (prompts, labels, messages) made harmless before it is shown."""

from __future__ import annotations

import html
import re
from typing import Any

_UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufffe\uffff\ud800-\udfff]"
)  # control characters, what turns the direction of writing around, halves of characters
_MARKDOWN = re.compile(r"([\\`*_{}\[\]|~$@]|^[#+=-]|(?<=^\d)[.)]|:(?=//)|(?<=www)\.)", re.IGNORECASE)
# formatting, links, what begins a heading or a list, and addresses that become links by themselves


def plain(text: Any) -> str:
    """One line of characters that are seen: white space becomes one blank, what cannot be seen becomes U+FFFD."""
    return _UNSEEN.sub("\ufffd", " ".join(str(text).split()))


def escaped(text: Any) -> str:
    """For HTML and SVG, inside an element or a quoted attribute."""
    return html.escape(plain(text), quote=True)


def escaped_block(text: str) -> str:
    """The same for <pre>: lines stay lines."""
    return "\n".join(html.escape(_UNSEEN.sub("\ufffd", line), quote=True) for line in text.splitlines())


def escaped_markdown(text: Any) -> str:
    """For a line or a table cell of Markdown: nothing in it is formatting, a link, or HTML."""
    return _MARKDOWN.sub(r"\\\1", html.escape(plain(text), quote=False))


def fenced(text: str) -> str:
    """A block of code in Markdown; the fence is longer than any in the text."""
    kept = "\n".join(_UNSEEN.sub("\ufffd", line) for line in text.splitlines())
    longest = max((len(run) for run in re.findall("`+", kept)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{kept}\n{fence}"


def number(value: float | None, digits: int = 3) -> str:
    """0.812; "n/a" where there is none."""
    if value is None:
        return "n/a"
    text = f"{value:.{digits}f}"
    return text.replace("-", "") if float(text) == 0 else text.replace("-", "\u2212")


def p_text(value: float | None) -> str:
    """A p-value to three digits; "< 0.001" below."""
    return "n/a" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"
