"""A benchmark in words, and every picture that it asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ..items import Benchmark, BenchSubject, Case


def pairs(benchmark: Benchmark) -> Iterator[tuple[BenchSubject, Case]]:
    """Every case beside the subject whose concept makes it; times the seeds, these are the pictures of one recipe.

    A case without a subject measures drift, so it is made once with every subject's concept; one with several
    subjects stands beside the first.
    """
    by_name = {subject.name: subject for subject in benchmark.subjects}
    for case in benchmark.cases:
        for subject in [by_name[case.subjects[0][1]]] if case.subjects else benchmark.subjects:
            yield subject, case


def already_shown(subject: BenchSubject, case: Case) -> tuple[str, ...]:
    """The expected attributes that some reference of the subject shows as asked, where its truths are known.

    A picture can then follow the sentence by copying a reference.
    """
    if not case.subjects:
        return ()
    return tuple(
        name for name, value in case.expected.items() if any(truth.get(name) == value for truth in subject.truths)
    )


def describe(benchmark: Benchmark) -> str:
    """A few lines: subjects, cases by family, pictures in all, notes."""
    made = list(pairs(benchmark))
    references = [len(subject.pictures) for subject in benchmark.subjects]
    few, many = min(references, default=0), max(references, default=0)
    kinds = Counter(subject.category for subject in benchmark.subjects if subject.category)
    families = Counter(case.family or "no family" for _, case in made)
    masks = sum(any(subject.masks) for subject in benchmark.subjects)
    shown = sum(bool(already_shown(subject, case)) for subject, case in made)
    lines = [
        f"{benchmark.name}: {len(benchmark.subjects)} subjects x {few if few == many else f'{few}-{many}'} references"
        + (f" ({_joined(kinds)})" if kinds else "")
        + (f", {masks} with masks" if masks else ""),
        f"{len(made)} cases: {_joined(families)}",
        f"{len(benchmark.seeds)} seeds: {len(made) * len(benchmark.seeds)} pictures a recipe; "
        f"metrics preset {benchmark.preset!r}",
    ]
    if shown:
        lines.append(f"in {shown} cases a reference already shows part of what is asked")
    return "\n".join([*lines, *(f"note: {note}" for note in benchmark.notes)])


def _joined(counts: Counter[str]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items())
