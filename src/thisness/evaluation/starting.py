"""Beginning a run, or going on with one: everything that can be wrong is found before anything is made."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArtefactError, ConfigurationError, UserError, raise_all
from ..files import checked_name, listed, sha256, write_json, write_text
from .items import Benchmark
from .plan import Row, Settled, batches_of, make_plan, noun_sentence, plan_text
from .recipes import NamedRecipe, resolved
from .results import FORMAT, PLAN, RUN, VERSION, Entry, canonical, read_about, read_rows

if TYPE_CHECKING:
    from ..bases import Base
    from ..subject import Subject

THUMBNAIL = 256  # pixels of the longer side of the small copies of references
_COMPARED = ("benchmark", "recipes", "base", "batch_size")
_COSMETIC = frozenset({"text", "learned_as"})


@dataclass
class Start:
    """A run that may begin.

    Attributes:
        folder: of the run.
        rows: the plan.
        recipes: by label, settled.
        owner: for each recipe the one that learns what it uses: several that differ in the sampling alone share it.
        prepares: whether a recipe learns anything.
        shared: what (recipe, subject) needs and shares with other subjects; see `Way.shared`.
        signature: of the base.
        opened: the base, until the engine has it.
    """

    folder: Path
    rows: tuple[Row, ...]
    recipes: dict[str, Settled]
    owner: dict[str, str]
    prepares: dict[str, bool]
    shared: dict[tuple[str, str], str | None]
    signature: str
    opened: Base | None

    def metrics(self) -> dict[str, Any]:
        """Identities, as noted."""
        return read_about(self.folder)["metrics"]


def start(
    folder: Path,
    benchmark: Benchmark,
    recipes: Sequence[NamedRecipe],
    base: str | Base,
    device: str,
    dtype: str,
    threads: int,
    batch_size: int,
    sampling: Mapping[str, Any] | None,
    command: str,
    progress: bool,
    extend: bool = False,
) -> Start:
    """Check everything, plan, and write what is run; or compare it with what was begun there.

    extend: instead of another run's folder being refused, what it has is kept and the rest is planned beside it.

    Raises:
        UserError: what cannot be run, or another run's folder.
    """
    import torch

    from ..bases import Base, load_base
    from ..recipe import build_settings
    from ..sampling import SamplingOptions
    from .learning import way_of

    settled_parts = [resolved(each, sampling) for each in recipes]
    _check_benchmark(benchmark)
    subjects = _subjects(benchmark)
    opened = base if isinstance(base, Base) else load_base(base, device=device, dtype=getattr(torch, dtype))
    settled: dict[str, Settled] = {}
    owner: dict[str, str] = {}
    prepares: dict[str, bool] = {}
    shared: dict[tuple[str, str], str | None] = {}
    by_learning: dict[str, str] = {}
    problems: list[str] = []
    for named in settled_parts:
        try:
            way = way_of(named)
            learning = way.settings(opened)
            options = build_settings(named.recipe.sampling.values, SamplingOptions, "sampling").resolved(opened)
        except UserError as error:
            problems.append(f"recipe {named.text!r}: {error}")
            continue
        settled[named.label] = Settled(named, learning, asdict(options), way.keeps(opened))
        method = named.recipe.method.name if named.recipe.method else ""
        owner[named.label] = by_learning.setdefault(canonical([method, learning]), named.label)
        prepares[named.label] = way.prepares
        for subject in subjects.values():
            shared[named.label, subject.name] = way.shared(opened, subject)
    raise_all(problems)
    hashes = {name: subject.hash for name, subject in subjects.items()}
    before = read_about(folder) if (folder / RUN).is_file() else None
    batches = batches_of(benchmark.seeds, batch_size, _batches_there(before) if before else ())
    rows = make_plan(benchmark, list(settled.values()), hashes, opened.signature, batches)
    text = plan_text(rows)
    about = {
        "format": FORMAT,
        "version": VERSION,
        "plan": sha256(text.encode()),
        "command": command,
        "benchmark": _described(benchmark, hashes),
        "recipes": {label: _recipe_data(each, owner[label]) for label, each in settled.items()},
        "base": {
            "name": opened.name,
            "family": opened.family,
            "signature": opened.signature,
            "device": device.split(":")[0],
            "dtype": dtype,
            "threads": threads,
        },
        "batch_size": batch_size,
        "batches": [list(batch) for batch in batches],
        "metrics": {},
        "environment": environment(device, threads),
        "environments": [],
    }
    if before is None:
        write_text(folder / PLAN, text)
        write_json(folder / RUN, about)
    elif extend and before["plan"] != about["plan"]:
        _extend(folder, before, about, rows, progress)
    else:
        _compare(folder, before, about, progress)
    _keep_references(folder, subjects)
    return Start(folder, rows, settled, owner, prepares, shared, opened.signature, opened)


def note_metrics(folder: Path, identities: Mapping[str, Any]) -> None:
    """Write the identities of metrics into run.json; those of earlier calls stay, so that their values do, too."""
    about = read_about(folder)
    metrics = {**about["metrics"], **identities}
    if metrics != about["metrics"]:
        write_json(folder / RUN, {**about, "metrics": metrics})


def environment(device: str, threads: int) -> dict[str, Any]:
    """What it runs on; no names of machines, people or folders."""
    import torch

    from ..concept import library_versions

    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        named = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = named[0] if named else processor
    return {
        **library_versions(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": threads,
        "accelerator": torch.cuda.get_device_name() if device.startswith("cuda") else "none",
    }


def _check_benchmark(benchmark: Benchmark) -> None:
    """Names become folders, sentences are filled: whatever a loader gave is checked here."""
    problems: list[str] = []
    names = [each.name for each in benchmark.subjects]
    ids = [each.id for each in benchmark.cases]
    for what, given in (("subject", names), ("case", ids)):
        problems += [f"two {what}s are called {name!r}" for name in dict.fromkeys(given) if given.count(name) > 1]
        for name in given:
            try:
                checked_name(name, f"the {what}")
            except UserError as error:
                problems.append(str(error))
    for case in benchmark.cases:
        unknown = [name for _, name in case.subjects if name not in names]
        problems += [f"case {case.id}: there is no subject {name!r}" for name in unknown]
        if not unknown:
            try:
                noun_sentence(benchmark, case)
            except UserError as error:
                problems.append(f"case {case.id}: {error}")
    if len(problems) > 6:
        problems = [*problems[:6], f"and {len(problems) - 6} more"]
    if not benchmark.seeds or not benchmark.cases:
        problems.append("there are no seeds" if benchmark.cases else "there are no cases")
    raise_all(problems, ConfigurationError, benchmark.name)


def _subjects(benchmark: Benchmark) -> dict[str, Subject]:
    problems, found = [], {}
    for each in benchmark.subjects:
        try:
            found[each.name] = each.load()
        except UserError as error:
            problems.append(f"{each.name}: {error}")
    raise_all([listed(problems)] if problems else [], UserError, benchmark.name)
    return found


def _described(benchmark: Benchmark, hashes: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": benchmark.name,
        "preset": benchmark.preset,
        "notes": list(benchmark.notes),
        "seeds": list(benchmark.seeds),
        "families": list(dict.fromkeys(case.family for case in benchmark.cases)),
        "subjects": {
            each.name: {
                "noun": each.noun,
                "category": each.category,
                "live": each.live,
                "pictures": len(each.pictures),
                "hash": hashes[each.name],
            }
            for each in benchmark.subjects
        },
        "cases": {
            case.id: {
                "text": case.text,
                "family": case.family,
                "context": case.context,
                "subjects": [list(pair) for pair in case.subjects],
                **({"keep": list(case.keep)} if case.keep else {}),
            }
            for case in benchmark.cases
        },
    }


def _recipe_data(settled: Settled, owner: str) -> dict[str, Any]:
    return {
        "text": settled.named.text,
        "recipe": settled.named.recipe.to_dict(),
        "learning": settled.learning,
        "sampling": dict(settled.sampling),
        "learned_as": owner,
    }


def _batches_there(about: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """Of a run that was begun; before runs could be extended they were not written down."""
    found = about.get("batches") or batches_of(about["benchmark"].get("seeds", ()), int(about["batch_size"]))
    return [tuple(batch) for batch in found]


def _compare(folder: Path, before: dict[str, Any], about: Mapping[str, Any], progress: bool) -> None:
    """Refuse a folder of another plan."""
    read_rows(folder, before)
    differs = _differences(before, about)
    if not differs and before["plan"] != about["plan"]:
        differs = ["the plan, though all that was typed is the same: it was made by another version of thisness"]
    if differs:
        raise ConfigurationError(
            f"{folder} holds another run ({listed(differs, 4)}): type what it was started with, name another --out, or "
            "keep what is there and add the rest with --extend"
        )
    environments = _environments(before, about, progress)
    if environments != before.get("environments", []):
        write_json(folder / RUN, {**before, "environments": environments})


def _extend(
    folder: Path, before: Mapping[str, Any], about: Mapping[str, Any], rows: Sequence[Row], progress: bool
) -> None:
    """Write a plan that contains the one that is there.

    Raises:
        ConfigurationError: it does not: something would be lost.
    """
    shared = [label for label in before["recipes"] if label in about["recipes"]]
    differs = _differences(
        {**{key: before[key] for key in ("base", "batch_size")}, "recipes": {n: before["recipes"][n] for n in shared}},
        {**{key: about[key] for key in ("base", "batch_size")}, "recipes": {n: about["recipes"][n] for n in shared}},
    )
    planned = {row.id for row in rows}
    lost: list[Entry] = [row for row in _rows_there(folder) if row["id"] not in planned]
    if lost and not differs:
        parts = [
            f"{what} {listed(names, 4)}" for what, names in (
                ("recipe", _gone(lost, "recipe", {row.recipe for row in rows})),
                ("subject", _gone(lost, "subject", {row.subject for row in rows})),
                ("family", _gone(lost, "family", {row.family for row in rows})),
                ("seed", _gone(lost, "seed", {row.seed for row in rows})),
            ) if names
        ]  # fmt: skip
        differs = [f"{len(lost)} pictures of it are not asked for" + (f": {'; '.join(parts)}" if parts else "")]
    if differs:
        raise ConfigurationError(
            f"{folder} cannot be extended by this ({listed(differs, 4)}): ask for all that is there, and more, or name "
            "another --out"
        )
    kept = {"metrics": before["metrics"], "environment": before["environment"]}
    write_text(folder / PLAN, plan_text(rows))  # killed in between, the same command writes both again
    write_json(folder / RUN, {**about, **kept, "environments": _environments(before, about, progress)})


def _rows_there(folder: Path) -> list[Entry]:
    """Of the plan as it lies there, also if an extension was cut short before run.json told of it."""
    path = folder / PLAN
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{path} cannot be read ({type(error).__name__}): start anew in another folder") from error


def _gone(lost: Sequence[Entry], what: str, asked: set[Any]) -> list[str]:
    return [str(name) for name in dict.fromkeys(row[what] for row in lost) if name not in asked]


def _differences(before: Mapping[str, Any], about: Mapping[str, Any]) -> list[str]:
    """What differs of all that decides pictures, said."""
    one = _flat({key: before.get(key) for key in _COMPARED})
    other = _flat({key: about.get(key) for key in _COMPARED})
    return [
        f"{key}: {one.get(key, 'not there')} there, {other.get(key, 'not there')} here"
        for key in dict.fromkeys([*one, *other])
        if one.get(key) != other.get(key)
    ]


def _environments(before: Mapping[str, Any], about: Mapping[str, Any], progress: bool) -> list[Any]:
    """On what a run went on, beside what it was begun on."""
    known = [before["environment"], *before.get("environments", [])]
    if about["environment"] in known:
        return known[1:]
    changes = [
        f"{key} {before['environment'].get(key)} -> {value}"
        for key, value in about["environment"].items()
        if before["environment"].get(key) != value
    ]
    if progress:
        print(f"note: begun elsewhere ({listed(changes)}): the last bits may differ", file=sys.stderr, flush=True)
    return [*known[1:], about["environment"]]


def _flat(data: Any, prefix: str = "") -> dict[str, str]:
    """Leaves by their dotted names, as text."""
    if not isinstance(data, dict) or not data:
        return {prefix.rstrip("."): canonical(data)[:80]}
    found: dict[str, str] = {}
    for key, value in data.items():
        if key not in _COSMETIC:
            found |= _flat(value, f"{prefix}{key}.")
    return found


def _keep_references(folder: Path, subjects: Mapping[str, Subject]) -> None:
    """Small copies, so that the folder alone can be reported on."""
    from PIL import Image

    from ..images import save_png

    for name, subject in subjects.items():
        for number, image in enumerate(subject.images):
            path = folder / "references" / name / f"{number:02d}.png"
            if not path.is_file():
                small = image.copy()
                small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
                save_png(small, path)
