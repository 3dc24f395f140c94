"""What folders of pictures say of themselves: what kind of thing they show."""

from __future__ import annotations

import json
from pathlib import Path

from .errors import UserError

NOUN_FILES = ("noun.txt", "subject.json", "truth.json")
"""Where a folder of pictures may say what it shows: a word, or JSON data with "noun"."""


def noun_in(folder: Path) -> str:
    """What a folder says that it shows; "" where it does not.

    Raises:
        UserError: a file that should say so cannot be read.
    """
    for name in NOUN_FILES:
        path = folder / name
        if not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
            noun = json.loads(text).get("noun", "") if path.suffix == ".json" else text
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f"{path} cannot be read ({error}): mend it, or give --noun") from error
        if str(noun).strip():
            return str(noun).strip()
    return ""
