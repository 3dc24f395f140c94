"""Several runs of one benchmark read as one: recipes on other bases, or made at other times, beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ConfigurationError, raise_all
from ..files import listed
from .results import Run

_SHARED = {"subjects": ("hash", "noun"), "cases": ("text", "subjects", "keep")}
"""What must be the same under one name."""


def joined(runs: Sequence[Run]) -> Run:
    """One run with the recipes of all.

    Differences are taken on the same (subject, case, seed), so what the runs share must be the same there: the pictures
    of the subjects, the sentences, and what each metric is. A recipe says of which base it is.

    Args:
        runs: at least one, as `read_run` gives them; the first one's folder and references are the result's.

    Raises:
        ConfigurationError: two recipes of one name, other pictures or sentences under one name, a metric computed by
            different models; all of it at once.
    """
    first = runs[0]
    if len(runs) == 1:
        return first
    problems = _twice(runs)
    for part, keys in _SHARED.items():
        problems += [
            f"{name!r} of the {part} is another one in {run.folder}"
            for run, name, there, here in _compared([run.benchmark.get(part, {}) for run in runs], runs)
            if any(there.get(key) != here.get(key) for key in keys)
        ]
    problems += [
        f"{name} is computed by another model or in another way in {run.folder}: score both runs by the same"
        for run, name, there, here in _compared([run.identities for run in runs], runs)
        if there != here
    ]
    raise_all(problems[:6], ConfigurationError, "these runs cannot be read as one")
    return Run(
        folder=first.folder,
        benchmark=_benchmark(runs),
        recipes={label: {**each, "base": run.base.get("name")} for run in runs for label, each in run.recipes.items()},
        base=_told([run.base for run in runs]),
        scored=tuple(row for run in runs for row in run.scored),
        identities=_first_of(run.identities for run in runs),
        environment=_told([run.environment for run in runs]),
        command="\n".join(dict.fromkeys(run.command for run in runs if run.command)),
        references=_first_of(run.references for run in runs),
        sentences=_first_of(run.sentences for run in runs),
        learning=_first_of(run.learning for run in runs),
        sizes=_first_of(run.sizes for run in runs),
        planned=sum(run.planned for run in runs),
        damaged=sum(run.damaged for run in runs),
    )


def _twice(runs: Sequence[Run]) -> list[str]:
    labels = [label for run in runs for label in run.recipes]
    twice = list(dict.fromkeys(label for label in labels if labels.count(label) > 1))
    names = f"a recipe is called {listed(twice)} in more than one of them"
    return [f"{names}: give one another name when it is run (NAME={twice[0]})"] if twice else []


def _compared(parts: Sequence[Mapping[str, Any]], runs: Sequence[Run]) -> list[tuple[Run, str, Any, Any]]:
    """What a later run has under a name that an earlier one has, too: (the later run, name, there, here)."""
    known: dict[str, Any] = {}
    found = []
    for run, part in zip(runs, parts, strict=True):
        found += [(run, name, known[name], each) for name, each in part.items() if name in known]
        known = {**part, **known}
    return found


def _benchmark(runs: Sequence[Run]) -> dict[str, Any]:
    """The first one's, with what all of them have together."""
    lists = {
        key: list(dict.fromkeys(value for run in runs for value in run.benchmark.get(key, ())))
        for key in ("seeds", "families", "notes") if key in runs[0].benchmark
    }  # fmt: skip
    maps = {
        key: _first_of(run.benchmark.get(key, {}) for run in runs)
        for key in ("subjects", "cases") if key in runs[0].benchmark
    }  # fmt: skip
    return {**runs[0].benchmark, **lists, **maps}


def _told(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all have in common; where they differ, each once: "playroom-sd and playroom-flux"."""
    found = {}
    for key in dict.fromkeys(key for part in parts for key in part):
        values = list(dict.fromkeys(str(part[key]) for part in parts if key in part))
        found[key] = parts[0][key] if len(values) == 1 and key in parts[0] else listed(values)
    return found


def _first_of(parts: Any) -> dict[Any, Any]:
    """Of several mappings what the first that has it says."""
    found: dict[Any, Any] = {}
    for part in parts:
        found = {**found, **{key: value for key, value in part.items() if key not in found}}
    return found
