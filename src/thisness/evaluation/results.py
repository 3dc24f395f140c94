"""What a run wrote, and reading it: nothing here imports torch, so that a report opens at once.

A run's folder:

    run.json                      what is run: benchmark, recipes, base, command, environment, identities of the metrics
    plan.jsonl                    one row a picture; see `plan.Row`
    results.jsonl                 what came of it, one entry a line; each line carries its own checksum
    images/ID.png                 the pictures, with their records
    references/SUBJECT/NN.png     small copies of what they should resemble
    concepts/RECIPE/SUBJECT/      what was learned
    cache/                        features: may be removed at any time

Kinds of entries: "learned" (a recipe knows a subject), "picture", "failure" (why there is no picture), "score".
A torn or altered line is as if it had never been written; of several entries on one thing the last one counts.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ArtefactError, UserError
from ..files import inside, read_json, sha256, write_text
from .items import Scored

RUN, PLAN, RESULTS = "run.json", "plan.jsonl", "results.jsonl"
FORMAT, VERSION = "thisness-run", 1
Entry = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A run as far as it has come.

    Attributes:
        folder: where it lies.
        benchmark: name, preset, seeds, families, and by name of each subject its noun, category, liveness and number
            of pictures ("subjects").
        recipes: by label: the text that it was given as, its parts, the settings it learns and samples with.
        base: name, family, signature, dtype, device.
        scored: one for each planned picture that was made or has failed, in the order of the plan.
        identities: of each metric, by its name.
        environment: versions, processor, threads.
        command: what started it, as typed; "" where it was called from Python.
        references: small copies of each subject's pictures, by its name.
        sentences: of each (subject, case): the sentence with its class nouns.
        learning: seconds that each (recipe, subject) took to learn, where something was learned.
        sizes: bytes of what was learned, alike.
        planned: pictures that the plan asks for.
        damaged: lines of results.jsonl that could not be used.
    """

    folder: Path
    benchmark: Mapping[str, Any]
    recipes: Mapping[str, Mapping[str, Any]]
    base: Mapping[str, Any]
    scored: tuple[Scored, ...]
    identities: Mapping[str, Mapping[str, Any]]
    environment: Mapping[str, Any]
    command: str = ""
    references: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    sentences: Mapping[tuple[str, str], str] = field(default_factory=dict)
    learning: Mapping[tuple[str, str], float] = field(default_factory=dict)
    sizes: Mapping[tuple[str, str], int] = field(default_factory=dict)
    planned: int = 0
    damaged: int = 0

    @property
    def finished(self) -> bool:
        """Whether every planned picture was made or has failed, and every one that was made has its values."""
        made = all(each.failure or each.values.keys() >= self.identities.keys() for each in self.scored)
        return len(self.scored) == self.planned and made


def read_run(folder: str | Path) -> Run:
    """Read a run's folder, also of a run that is still going on or was cut short.

    Pictures that are missing count as not made; their bytes are not checked here (the runner does when it goes on).

    Raises:
        ArtefactError: not a run's folder, or its plan is damaged.
    """
    folder = Path(folder)
    about = read_about(folder)
    rows = read_rows(folder, about)
    entries, damaged = read_entries(folder / RESULTS)
    state = State(entries)
    current = {name: identity_hash(each) for name, each in about["metrics"].items()}
    scored = []
    for row in rows:
        if row["role"] != "picture":
            continue
        picture, failure = state.pictures.get(row["id"]), state.failures.get(row["id"])
        path = folder / "images" / f"{row['id']}.png"
        if picture is not None and not path.is_file():
            picture = None
        if picture is None and failure is None:
            continue
        values = state.values(row["id"], current) if picture is not None else {}
        scored.append(
            Scored(
                id=row["id"],
                recipe=row["recipe"],
                subject=row["subject"],
                case=row["case"],
                family=row["family"],
                seed=row["seed"],
                sentence=_shown(row),
                values=values,
                image=path if picture is not None else None,
                failure=failure["reason"] if picture is None and failure is not None else "",
                seconds=float(picture["seconds"]) if picture is not None else 0.0,
            )  # fmt: skip
        )
    learned = {
        (label, subject): entry
        for label, recipe in about["recipes"].items()
        for (owner, subject), entry in state.learned.items()
        if owner == recipe.get("learned_as")
    }
    return Run(
        folder=folder,
        benchmark=about["benchmark"],
        recipes=about["recipes"],
        base=about["base"],
        scored=tuple(scored),
        identities=about["metrics"],
        environment=about["environment"],
        command=about["command"],
        references={
            name: tuple(inside(folder, f"references/{name}/{number:02d}.png") for number in range(each["pictures"]))
            for name, each in about["benchmark"]["subjects"].items()
        },
        sentences={(row["subject"], row["case"]): row["sentence"] for row in rows},
        learning={key: float(each["seconds"]) for key, each in learned.items()},
        sizes={key: int(each["bytes"]) for key, each in learned.items()},
        planned=sum(row["role"] == "picture" for row in rows),
        damaged=damaged,
    )


def _shown(row: Entry) -> str:
    """Its sentence, and what is kept of which reference: "a dog in the snow [pose:2]"."""
    keep = row.get("keep") or ()
    return " ".join([row["sentence"], *(f"[{each}]" for each in keep)])


_PARTS = {
    "benchmark": dict, "recipes": dict, "base": dict, "metrics": dict, "environment": dict, "command": str, "plan": str,
}  # fmt: skip


def read_about(folder: Path) -> dict[str, Any]:
    """The checked content of run.json.

    Raises:
        ArtefactError: none, damaged, or of a later version.
    """
    path = Path(folder) / RUN
    if not path.is_file():
        raise ArtefactError(f"{folder} is not a run: it has no {RUN}; name the folder that `bench run --out` wrote")
    about = read_json(path)
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ArtefactError(f"{path} does not describe a run of thisness")
    if type(about.get("version")) is not int or not 1 <= about["version"] <= VERSION:
        raise ArtefactError(f"{path} is of version {about.get('version')!r}, this program reads {VERSION}: update it")
    wrong = [name for name, kind in _PARTS.items() if not isinstance(about.get(name), kind)]
    subjects = about.get("benchmark", {}).get("subjects") if not wrong else {}
    if (
        wrong
        or not isinstance(subjects, dict)
        or not all(_is_count(each.get("pictures")) for each in subjects.values())
    ):
        raise ArtefactError(f"{path} is damaged ({', '.join(wrong) or 'subjects'}): start anew in another folder")
    return about


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= 10_000


def read_rows(folder: Path, about: Mapping[str, Any]) -> list[Entry]:
    """The rows of plan.jsonl, as plain data.

    Raises:
        ArtefactError: not there, or not as it was written.
    """
    path = Path(folder) / PLAN
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtefactError(f"{path} cannot be read ({error.strerror}): start anew in another folder") from error
    if sha256(data) != about["plan"]:
        raise ArtefactError(
            f"{path} is not as it was written: type --extend again if that was cut short, or start anew elsewhere"
        )
    return [json.loads(line) for line in data.decode("utf-8").splitlines()]


def identity_hash(identity: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that stand for a metric's identity."""
    return hashlib.sha256(canonical(identity).encode()).hexdigest()[:16]


def canonical(data: Any) -> str:
    """JSON in one form only: sorted keys, no blanks.

    Raises:
        ValueError: NaN or infinity.
    """
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


# --- lines ---


def line_of(entry: Mapping[str, Any]) -> bytes:
    """An entry as a line with its checksum."""
    return (json.dumps({**entry, "check": _checksum(entry)}, allow_nan=False) + "\n").encode()


def _checksum(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(entry).encode()).hexdigest()[:16]


def read_entries(path: Path) -> tuple[list[Entry], int]:
    """The whole entries of results.jsonl in their order, and how many lines could not be used."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], 0
    entries, damaged = [], 0
    if lines and lines[-1] == b"":
        lines.pop()
    for line in lines:
        try:
            entry = json.loads(line)
            del entry["check"]
            if not isinstance(entry["kind"], str) or line_of(entry) != line + b"\n":
                raise ValueError("not as it was written")
            entries.append(entry)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            damaged += 1
    return entries, damaged


class ResultsFile:
    """results.jsonl, open for appending by the one process that runs."""

    def __init__(self, path: Path) -> None:
        """Open it; lines that cannot be used, and entries that later ones replace, are removed."""
        self.path = path
        found, self.damaged = read_entries(path)
        kept = _latest(found)
        if self.damaged or len(kept) < len(found) or not _ends_whole(path):
            write_text(path, b"".join(map(line_of, kept)).decode())
        self.entries = kept
        self._handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def append(self, entries: Sequence[Entry]) -> None:
        """Add entries: one write each, one flush to the disk for all of them.

        Raises:
            OSError: the disk is full; a line that did not fit is taken back.
        """
        for entry in entries:
            line = line_of(entry)
            before = os.fstat(self._handle).st_size
            if os.write(self._handle, line) != len(line):
                os.ftruncate(self._handle, before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            self.entries.append(entry)
        if entries:
            os.fsync(self._handle)

    def forget(self, unwanted: Iterable[Entry]) -> None:
        """Remove entries: what they say is no longer true."""
        gone = {id(each) for each in unwanted}
        if not gone:
            return
        self.entries = [each for each in self.entries if id(each) not in gone]
        os.close(self._handle)
        write_text(self.path, b"".join(map(line_of, self.entries)).decode())
        self._handle = os.open(self.path, os.O_WRONLY | os.O_APPEND)

    def tidy(self) -> None:
        """Remove entries that later ones replace."""
        kept = {id(each) for each in _latest(self.entries)}
        self.forget([each for each in self.entries if id(each) not in kept])

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = -1


def _ends_whole(path: Path) -> bool:
    """Whether the next line can be appended: the file is not there, empty, or ends with its last line's end."""
    if not path.is_file() or path.stat().st_size == 0:
        return True
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _about(entry: Entry) -> tuple[Any, ...]:
    """What an entry is about: a later one about the same takes its place."""
    if entry["kind"] == "learned":
        return "learned", entry.get("recipe"), entry.get("subject")
    if entry["kind"] == "score":
        return "score", entry.get("id"), canonical(entry.get("identities"))
    return "picture", entry.get("id")  # a picture takes a failure's place, and the other way round


def _latest(entries: Sequence[Entry]) -> list[Entry]:
    """The entries that count, in the order in which they were written."""
    last = {_about(entry): number for number, entry in enumerate(entries)}
    return [entry for number, entry in enumerate(entries) if last[_about(entry)] == number]


class State:
    """What the entries say, by what it is said of."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.learned: dict[tuple[str, str], Entry] = {}
        self.pictures: dict[str, Entry] = {}
        self.failures: dict[str, Entry] = {}
        self.scores: dict[str, list[Entry]] = {}
        for entry in entries:
            self.add(entry)

    def add(self, entry: Entry) -> None:
        """Take one more entry in."""
        if entry["kind"] == "learned":
            self.learned[entry["recipe"], entry["subject"]] = entry
        elif entry["kind"] == "picture":
            self.pictures[entry["id"]] = entry
            self.failures.pop(entry["id"], None)
        elif entry["kind"] == "failure":
            self.failures[entry["id"]] = entry
            self.pictures.pop(entry["id"], None)
        elif entry["kind"] == "score":
            self.scores.setdefault(entry["id"], []).append(entry)

    def values(self, row: str, current: Mapping[str, str], of: str | None = None) -> dict[str, float | None]:
        """A picture's values under the metrics' present identities.

        Args:
            row: its id.
            current: hash of the identity of each metric, by its name.
            of: what the values must have been computed from (`pictures_hash`); None: what is said to be.
        """
        picture = self.pictures.get(row)
        found: dict[str, float | None] = {}
        for entry in self.scores.get(row, ()):
            if picture is None or entry["image"] != picture["sha256"] or (of is not None and entry["of"] != of):
                continue
            for name, value in entry["values"].items():
                if entry["identities"].get(name) == current.get(name, ""):
                    found[name] = value
        return {name: found[name] for name in current if name in found}


def pictures_hash(pictures: Mapping[str, str]) -> str:
    """What values were computed from: hashes of pictures by id, in 16 hexadecimal digits."""
    return hashlib.sha256(canonical(dict(pictures)).encode()).hexdigest()[:16]


def check_out(folder: Path) -> None:
    """Refuse a folder that a run may not be written to.

    Raises:
        UserError: a file, or a folder with other things in it.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder}: is a file: name a folder")
    if folder.is_dir() and not (folder / RUN).exists():
        others = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
        ours = {"references", "images", "cache", "concepts", PLAN, RESULTS}
        if others and not set(others) <= ours:
            raise UserError(f"--out {folder}: holds other things ({', '.join(others[:3])}): name a new folder")
