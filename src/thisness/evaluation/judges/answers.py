"""Answers that were paid for once: a JSON Lines file, appended as they come, read back after any end.

One line an answer, keyed by the hash of everything that was asked; each line carries a hash of itself, so that a torn
or changed line is known for what it is and asked again. Neither the address of an endpoint nor its key is in it.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...files import make_parent
from .protocol import TOP, content_hash

LONGEST_RAW = 8_000  # characters of an answer that are kept


@dataclass(frozen=True)
class Answer:
    """What came of one rating.

    Args:
        key: hash of what was asked.
        score: 0 to 4; None where it failed.
        raw: the judge's words, or for an expectation the five probabilities.
        failure: one line that says why there is no score; "".
        seconds: from the first question to the answer, waiting included.
        requests: how many it took.
        about: model, variant, column, pass, for people who read the file.
    """

    key: str
    score: float | None
    raw: str = ""
    failure: str = ""
    seconds: float = 0.0
    requests: int = 1
    about: Any = None

    @property
    def valid(self) -> bool:
        score = self.score
        if not isinstance(score, (int, float)) or isinstance(score, bool):
            return False
        return math.isfinite(score) and 0 <= score <= TOP


class Answers:
    """Answers by key, kept in a file. Threads may add at once; so may processes.

    Args:
        path: the file; None keeps them in memory alone.

    Raises:
        UserError: the file cannot be read or written.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = Path(path) if path is not None else None
        self.damaged = 0
        self._known: dict[str, Answer] = {}
        self._lock = threading.Lock()
        if self.path is not None:
            self._read(self.path)

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __iter__(self) -> Iterator[Answer]:
        return iter(list(self._known.values()))

    def get(self, key: str) -> Answer | None:
        """The answer to a question, if it has a score; what failed is asked again."""
        return self._known.get(key)

    def add(self, answer: Answer) -> None:
        """Keep an answer; a failure is written down too, but never returned by `get`."""
        with self._lock:
            if answer.valid:
                self._known[answer.key] = answer
            if self.path is not None:
                _append(self.path, _line(answer))

    def _read(self, path: Path) -> None:
        make_parent(path)
        try:
            text = path.read_bytes().decode("utf-8", errors="replace") if path.exists() else ""
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): name another file for the answers") from error
        for line in text.split("\n"):
            if not line.strip():
                continue
            answer = _parsed(line)
            if answer is None:
                self.damaged += 1
            elif answer.valid:
                self._known[answer.key] = answer


def _line(answer: Answer) -> str:
    data = asdict(answer) | {"raw": answer.raw[:LONGEST_RAW]}
    return json.dumps({**data, "check": content_hash(data)[:16]}, ensure_ascii=False, allow_nan=False)


def _parsed(line: str) -> Answer | None:
    """The answer of a line; None where the line is not whole."""
    try:
        data = json.loads(line)
        check = data.pop("check")
        return Answer(**data) if content_hash(data)[:16] == check else None
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return None


def _append(path: Path, line: str) -> None:
    """One write at the end; the line before it is closed first if it was torn."""
    data = line.encode("utf-8") + b"\n"
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): name another file for the answers") from error
    try:
        size = os.fstat(handle).st_size
        torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        os.write(handle, b"\n" + data if torn else data)
        os.fsync(handle)
    finally:
        os.close(handle)
