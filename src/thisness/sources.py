"""Data as people name it on a line, and what folders of pictures say of themselves."""

from __future__ import annotations

import json
from pathlib import Path

from .errors import UserError, nearest, raise_all

FOLDERS = "folders"
FORMS = {
    "coco": "coco:INSTANCES.json,PICTURES[,CAPTIONS.json]",
    "youtube-vis": "youtube-vis:INSTANCES.json,FRAMES",
    FOLDERS: "a folder with a folder of pictures for each thing",
}
"""Forms of pairs to learn from (`methods.pairs`), and how they are written."""

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


def parse_data(text: str) -> tuple[str, tuple[str, ...]]:
    """A form of FORMS and its files and folders, from "coco:INSTANCES.json,PICTURES" or a folder.

    Raises:
        UserError: no such form, too few or too many parts, or parts that are not there.
    """
    if Path(text).is_dir():
        return FOLDERS, (text,)
    form, colon, rest = text.partition(":")
    known = "; ".join(FORMS.values())
    if not colon:
        raise UserError(f"{text}: no such folder: data are {known}")
    if form not in FORMS or form == FOLDERS:
        raise UserError(f"{text}: no form of data {form!r}{nearest(form, FORMS)}: data are {known}")
    parts = tuple(part.strip() for part in rest.split(","))
    if not all(parts) or len(parts) not in ((2, 3) if form == "coco" else (2,)):
        raise UserError(f"{text}: expected {FORMS[form]}")
    raise_all([f"{part} is not there" for part in parts if not Path(part).exists()], UserError, form)
    return form, parts
