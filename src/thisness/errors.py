"""What can go wrong, by whose fault, and the nearest valid word to a misspelt one.

An error that the user can mend is a `UserError`: its message is one line that says what was found, what was expected
and what to do. Anything else that reaches the command line is our fault.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import ClassVar


class ThisnessError(Exception):
    """Something failed that is not the user's doing. `exit_code` is the command line's."""

    exit_code: ClassVar[int] = 1


class UserError(ThisnessError):
    """The input cannot be used."""

    exit_code = 2


class ArtefactError(UserError):
    """A file or folder on disk is not what it claims to be: damaged, incomplete, unsafe, or made for something else."""


class ImageError(UserError):
    """A picture or a mask cannot be used."""


class PromptError(UserError):
    """A sentence cannot be used: its placeholders, its length, its characters."""


class ConfigurationError(UserError):
    """Settings, names or specifications that do not exist or do not fit together."""


def nearest(word: str, valid: Iterable[str]) -> str:
    """A hint to append to a message on an unknown name.

    Args:
        word: what was written.
        valid: the names that exist.

    Returns:
        `" (did you mean 'x'?)"`, or "" where nothing is close.
    """
    by_lower = {name.lower(): name for name in valid}
    found = difflib.get_close_matches(word.lower(), list(by_lower), n=1, cutoff=0.6)
    return f" (did you mean {by_lower[found[0]]!r}?)" if found else ""


def raise_all(problems: Sequence[str], error: type[ThisnessError] = ConfigurationError, lead: str = "") -> None:
    """Report everything that is wrong in one error; nothing happens where nothing is wrong.

    Args:
        problems: one clause for each thing that is wrong.
        error: what to raise.
        lead: put before the list, for instance "recipe.json".

    Raises:
        error: one line with all problems, separated by semicolons, and their number where there are several.
    """
    if problems:
        count = f"{len(problems)} problems: " if len(problems) > 1 else ""
        raise error((f"{lead}: " if lead else "") + count + "; ".join(problems))
