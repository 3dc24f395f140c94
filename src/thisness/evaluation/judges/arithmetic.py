"""The arithmetic of DreamBench++ (arXiv 2406.16855): scores in [0, 1], micro-averages, passes, the product.

A rating's share is score / 4; the overall value of a pass is the mean over *all* its ratings, so that categories count
by their size; passes are averaged; CP x PF is the product of the two overall values, not a mean of products. A rating
that failed counts as 0 and is listed. A rating's category is what its record says, never a part of a name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import ArtefactError, raise_all
from .protocol import COLUMNS, TOP

MAX_RECORD_BYTES = 256 * 2**20
MAX_PASSES = 1000


@dataclass(frozen=True)
class Rated:
    """The ratings of one picture in one column.

    Args:
        id: of the picture.
        column: "cp" or "pf".
        passes: 0 to 4 for each pass; None where it failed.
        category: of the subject: "animal", "human", "object", "style".
        kind: of the sentence: "photorealistic", "style", "imaginative".
    """

    id: str
    column: str
    passes: tuple[float | None, ...]
    category: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Share:
    """A mean of shares in [0, 1], the pictures behind it, and how many of their ratings failed."""

    mean: float
    pictures: int
    failures: int


@dataclass(frozen=True)
class ProtocolTable:
    """What the tables of DreamBench++ hold, by column ("cp", "pf").

    Args:
        overall, by_category, by_kind: shares.
        passes: ratings of each picture.
        failed: (picture, column, pass from 1) of each rating that counts as 0 for want of a score.
    """

    overall: Mapping[str, Share]
    by_category: Mapping[str, Mapping[str, Share]]
    by_kind: Mapping[str, Mapping[str, Share]]
    passes: int
    failed: tuple[tuple[str, str, int], ...]

    @property
    def product(self) -> float | None:
        """CP x PF: the product of the two overall means; None without both."""
        if not all(column in self.overall for column in COLUMNS):
            return None
        return self.overall["cp"].mean * self.overall["pf"].mean


def item_share(passes: Sequence[float | None]) -> float:
    """One picture's value: its ratings' mean / 4, failures as 0."""
    return sum(score or 0.0 for score in passes) / len(passes) / TOP


def protocol_table(ratings: Iterable[Rated], passes: int | None = None) -> ProtocolTable:
    """The table of a set of ratings.

    Args:
        ratings: one for each picture and column.
        passes: how many each must have; by default the largest number there is. Those that lack are failures.

    Raises:
        ArtefactError: no ratings; a picture twice in a column; unknown columns; scores outside 0 ... 4. All at once.
    """
    rows = list(ratings)
    needed = max((len(row.passes) for row in rows), default=0) if passes is None else passes
    raise_all(_problems(rows, needed), ArtefactError, "ratings")
    whole = [Rated(r.id, r.column, (*r.passes, *[None] * (needed - len(r.passes))), r.category, r.kind) for r in rows]
    by_column = {column: [row for row in whole if row.column == column] for column in COLUMNS}
    by_column = {column: of for column, of in by_column.items() if of}
    return ProtocolTable(
        overall={column: _share(of) for column, of in by_column.items()},
        by_category={column: _grouped(of, lambda row: row.category) for column, of in by_column.items()},
        by_kind={column: _grouped(of, lambda row: row.kind) for column, of in by_column.items()},
        passes=needed,
        failed=tuple(
            (row.id, row.column, number) for row in whole for number, score in enumerate(row.passes, 1) if score is None
        ),
    )


def read_recorded(path: str | Path) -> list[Rated]:
    """Ratings from a JSON Lines file, one rating a line:
    {"id": ..., "column": "cp", "category": "animal", "kind": "style", "pass": 1, "score": 3}; "score" null: failed.

    Raises:
        ArtefactError: not there, too large, or lines of another form: the first of them are named.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_RECORD_BYTES:
            raise ArtefactError(f"{path} is over {MAX_RECORD_BYTES // 2**20} MiB: that is no file of ratings")
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError:
        raise ArtefactError(f"{path} is not text in UTF-8: expected JSON Lines, one rating a line") from None
    except OSError as error:
        raise ArtefactError(
            f"{path} cannot be read ({error.strerror}): expected JSON Lines, one rating a line"
        ) from error
    problems: list[str] = []
    passes: dict[tuple[str, str], dict[int, float | None]] = {}
    about: dict[tuple[str, str], tuple[str, str]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, column, time, score = row["id"], row["column"], row["pass"], row["score"]
            facts = (row.get("category", ""), row.get("kind", ""))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            problems.append(f"line {number} is not an object with id, column, pass, score")
            continue
        if not all(isinstance(text, str) for text in (name, column, *facts)):
            problems.append(f"line {number}: id, column, category and kind are texts")
        elif not isinstance(time, int) or isinstance(time, bool) or not 1 <= time <= MAX_PASSES:
            problems.append(f"line {number}: pass is {time!r}, expected 1 ... {MAX_PASSES}")
        elif isinstance(score, bool) or not (score is None or isinstance(score, (int, float))):
            problems.append(f"line {number}: score is {score!r}, expected 0 ... {TOP} or null")
        elif time in passes.setdefault((name, column), {}):
            problems.append(f"line {number}: {name}, {column}, pass {time} is there twice")
        elif about.setdefault((name, column), facts) != facts:
            problems.append(f"line {number}: {name} has another category or kind than before")
        else:
            passes[name, column][time] = score
    more = [f"and {len(problems) - 5} more"] if len(problems) > 5 else []
    raise_all(problems[:5] + more, ArtefactError, str(path))
    return [
        Rated(name, column, tuple(given.get(time) for time in range(1, max(given) + 1)), *about[name, column])
        for (name, column), given in passes.items()
    ]


def _share(rows: Sequence[Rated]) -> Share:
    times = range(len(rows[0].passes))
    of_pass = [sum((row.passes[time] or 0.0) / TOP for row in rows) / len(rows) for time in times]
    return Share(sum(of_pass) / len(of_pass), len(rows), sum(score is None for row in rows for score in row.passes))


def _grouped(rows: Sequence[Rated], group: Callable[[Rated], str]) -> dict[str, Share]:
    groups: dict[str, list[Rated]] = {}
    for row in rows:
        groups.setdefault(group(row), []).append(row)
    return {name: _share(of) for name, of in sorted(groups.items())}


def _problems(rows: Sequence[Rated], passes: int) -> list[str]:
    problems = [] if rows and passes > 0 else ["there are none"]
    seen: set[tuple[str, str]] = set()
    for row in rows:
        if row.column not in COLUMNS:
            problems.append(f"{row.id} has column {row.column!r}, expected {' or '.join(COLUMNS)}")
        if (row.id, row.column) in seen:
            problems.append(f"{row.id} is there twice in {row.column}")
        seen.add((row.id, row.column))
        if len(row.passes) > passes:
            problems.append(f"{row.id} has {len(row.passes)} passes, expected {passes}")
        problems += [f"{row.id} has score {s}" for s in row.passes if s is not None and not 0 <= s <= TOP]
    return problems[:6]
