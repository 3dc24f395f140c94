"""Which benchmarks there are, by what protocols they are measured, and the one call that loads any of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from ...errors import ConfigurationError, UserError, nearest, raise_all
from ..items import Benchmark, BenchSubject, Case
from . import celeba, customconcept, dreambench, dreambench_plus, dreamedit, ds, folder, playroom
from .layout import Contents


@dataclass(frozen=True)
class Protocol:
    """How a source measures.

    Args:
        preset: of the metrics.
        seeds: pictures of each case.
        references: how many of a subject's pictures are used, the first by name; None for all.
        facts: what its source says, and what it leaves open.
    """

    preset: str
    seeds: int
    references: int | None = None
    facts: str = ""


@dataclass(frozen=True)
class Entry:
    """A benchmark before it is loaded.

    Args:
        name: its name here.
        title: one line.
        read: from the user's folder (None where there may be none) and a size to what is in it.
        protocols: by size; the first is the default.
        needs_folder: whether it is read from the user's own copy.
    """

    name: str
    title: str
    read: Callable[[Path | None, str], Contents]
    protocols: Mapping[str, Protocol]
    needs_folder: bool = True


def _plain(read: Callable[[Path], Contents]) -> Callable[[Path | None, str], Contents]:
    """A loader to which sizes make no difference."""

    def wrapped(path: Path | None, size: str) -> Contents:
        assert path is not None  # load_benchmark asked for it
        return read(path)

    return wrapped


_READERS: dict[str, Callable[[Path | None, str], Contents]] = {
    "playroom": playroom.read,
    "dreambench": _plain(dreambench.read),
    "dreambench++": _plain(dreambench_plus.read),
    "customconcept101": _plain(customconcept.read),
    "customconcept101-multi": _plain(customconcept.read_multi),
    "dreameditbench": dreamedit.read,
    "ds": _plain(ds.read),
    "celeba": _plain(celeba.read),
    "folder": _plain(folder.read),
}


def _entries() -> dict[str, Entry]:
    data: dict[str, dict[str, Any]] = json.loads(
        resources.files(__package__).joinpath("protocols.json").read_text(encoding="utf-8")
    )
    return {
        name: Entry(
            name,
            data[name]["title"],
            read,
            {size: Protocol(**facts) for size, facts in data[name]["protocols"].items()},
            needs_folder=name != "playroom",
        )
        for name, read in _READERS.items()
    }


BENCHMARKS: Mapping[str, Entry] = _entries()


def load_benchmark(
    name: str, folder: str | Path | None = None, size: str | None = None, seeds: Sequence[int] | None = None
) -> Benchmark:
    """Read a benchmark from its user's copy; the Playroom is rendered where it is not there yet.

    Args:
        name: one of `BENCHMARKS`; with its size ("playroom-small") or without.
        folder: the copy; for the Playroom where to render to, a cache by default; for `ds` its manifest.
        size: one of the benchmark's protocols ("small", "detex"), the first by default.
        seeds: instead of the protocol's, which are 0, 1, ...

    Raises:
        ConfigurationError: unknown name or size, or seeds that cannot be used.
        ArtefactError: the copy has another layout; all problems in one line.
    """
    if name not in BENCHMARKS and size is None:
        for entry_name, entry in BENCHMARKS.items():
            wanted = name.removeprefix(f"{entry_name}-")
            if wanted != name and wanted in entry.protocols:
                name, size = entry_name, wanted
    if name not in BENCHMARKS:
        raise ConfigurationError(f"no benchmark {name!r}{nearest(name, BENCHMARKS)}: known are {', '.join(BENCHMARKS)}")
    entry = BENCHMARKS[name]
    size = next(iter(entry.protocols)) if size is None else size
    if size not in entry.protocols:
        raise ConfigurationError(
            f"{name} has no size {size!r}{nearest(size, entry.protocols)}: it has {', '.join(entry.protocols)}"
        )
    if folder is None and entry.needs_folder:
        raise UserError(f"{name} is read from your own copy: name its folder (docs/benchmarks.md says where to get it)")
    protocol = entry.protocols[size]
    used = tuple(range(protocol.seeds)) if seeds is None else _checked_seeds(seeds)
    contents = entry.read(None if folder is None else Path(folder).expanduser(), size)
    subjects = tuple(map(partial(_first_references, count=protocol.references), contents.subjects))
    counts = {subject.name: len(subject.pictures) for subject in subjects}
    cases = tuple(case for case in contents.cases if _shown(case, counts))
    notes = (*([protocol.facts] if protocol.facts else []), *contents.notes)
    full_name = f"{name}-{size}" if len(entry.protocols) > 1 else name
    return Benchmark(full_name, subjects, cases, used, protocol.preset, notes, "playroom" if name == "playroom" else "")


def _shown(case: Case, counts: Mapping[str, int]) -> bool:
    """Whether the references that it keeps something of are among those used."""
    fewest = min((counts.get(name, 0) for _, name in case.subjects), default=0)
    return all(int(each.partition(":")[2]) < fewest for each in case.keep)


def _checked_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    problems = [] if seeds else ["seeds are empty: give at least one"]
    problems += [f"seed {seed} is not in 0 ... 2**63-1" for seed in seeds if not 0 <= seed < 2**63]
    problems += ["a seed is given twice"] if len(set(seeds)) != len(seeds) else []
    raise_all(problems, ConfigurationError)
    return tuple(int(seed) for seed in seeds)


def _first_references(subject: BenchSubject, count: int | None) -> BenchSubject:
    return replace(
        subject, pictures=subject.pictures[:count], masks=subject.masks[:count], truths=subject.truths[:count]
    )
