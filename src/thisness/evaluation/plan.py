"""The plan of a run: one row a picture, its id computed from everything that decides its pixels.

Which pictures are made together in one batch is part of the plan, since the last bits depend on it: a batch of which
something is missing is made again as a whole, and gives the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import ConfigurationError, raise_all
from ..prompt import Prompt, SlotWord
from .items import Benchmark, Case
from .recipes import NamedRecipe
from .results import canonical

ALONE = "subject"  # the placeholder of what a sentence without placeholders is made with


@dataclass(frozen=True)
class Row:
    """One picture.

    Args:
        id: 24 hexadecimal digits.
        role: "picture", or "baseline" for one that is only compared with.
        recipe: label.
        subject: the first of `slots`; "" for none.
        case, family, seed: of the benchmark.
        text: the sentence with its placeholders.
        sentence: with each placeholder replaced by its class noun.
        slots: (placeholder, subject) pairs; of a sentence without placeholders the subject that is known meanwhile.
        seeds: of the batch that it is made in.
        baseline: id of what the plain base makes of the same sentence and seed; "" where the plan has none.
        keep: as the case's.
    """

    id: str
    role: str
    recipe: str
    subject: str
    case: str
    family: str
    seed: int
    text: str
    sentence: str
    slots: tuple[tuple[str, str], ...]
    seeds: tuple[int, ...]
    baseline: str = ""
    keep: tuple[str, ...] = ()

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Row:
        slots = tuple((slot, name) for slot, name in data["slots"])
        return cls(**{**data, "slots": slots, "seeds": tuple(data["seeds"]), "keep": tuple(data.get("keep", ()))})

    def to_data(self) -> dict[str, Any]:
        """JSON data; `keep` only where there is something to keep."""
        return {key: value for key, value in asdict(self).items() if key != "keep" or value}

    @property
    def batch(self) -> tuple[str, str, str, tuple[int, ...]]:
        """Rows with the same one are made together."""
        return self.recipe, self.subject, self.case, self.seeds

    @property
    def group(self) -> tuple[str, str, str]:
        """Rows with the same one are scored together: all seeds of a recipe, a subject, a case."""
        return self.recipe, self.subject, self.case


@dataclass(frozen=True)
class Settled:
    """A recipe with everything filled in.

    Args:
        named: the recipe.
        learning: what decides what is learned of a subject; None where nothing is.
        sampling: all options of the sampler.
        keeps: the attributes that it learns words for.
    """

    named: NamedRecipe
    learning: Mapping[str, Any] | None
    sampling: Mapping[str, Any]
    keeps: frozenset[str] = frozenset()

    @property
    def plain(self) -> bool:
        """Whether it is the base alone."""
        recipe = self.named.recipe
        return recipe.method is None and not recipe.adjustments and not recipe.attachments


def make_plan(
    benchmark: Benchmark,
    recipes: Sequence[Settled],
    hashes: Mapping[str, str],
    signature: str,
    batches: Sequence[Sequence[int]],
) -> tuple[Row, ...]:
    """All pictures of a run: by recipe, then as the benchmark lists its cases, then by seed.

    A sentence without a subject (drift) is made once by a recipe that knows no subject, and once for each subject by
    one that does; what the plain base makes of it is planned beside it, unless a recipe makes it anyway.

    Args:
        benchmark: subjects, cases.
        recipes: labels are unique.
        hashes: of each subject's pictures, by its name.
        signature: of the base.
        batches: seeds of which pictures are made at once; see `batches_of`.

    Raises:
        ConfigurationError: two recipes are the same.
    """
    rows: dict[str, Row] = {}
    same: dict[str, str] = {}
    for settled in recipes:
        for case in benchmark.cases:
            if not {each.partition(":")[0] for each in case.keep} <= settled.keeps:
                continue
            for slots in _slots(case, settled, benchmark):
                for seeds in batches:
                    for row in _rows(benchmark, case, settled, slots, tuple(seeds), hashes, signature):
                        if row.id in rows and rows[row.id].recipe != row.recipe:
                            same[row.recipe] = rows[row.id].recipe
                        rows.setdefault(row.id, row)
    raise_all([f"recipes {one!r} and {other!r} are the same: leave one out" for one, other in same.items()])
    return _with_baselines(tuple(rows.values()), benchmark, recipes, hashes, signature)


def plan_text(rows: Sequence[Row]) -> str:
    """plan.jsonl."""
    return "".join(canonical(row.to_data()) + "\n" for row in rows)


def noun_sentence(benchmark: Benchmark, case: Case) -> str:
    """A case's sentence with each placeholder replaced by its subject's class noun."""
    prompt = Prompt(case.text)
    nouns = {slot: benchmark.subject(name).noun for slot, name in case.subjects if slot in prompt.slots}
    return prompt.fill({slot: SlotWord(noun, noun) for slot, noun in nouns.items()}).text


def narrowed(
    benchmark: Benchmark,
    subjects: Sequence[str] = (),
    families: Sequence[str] = (),
    seeds: Sequence[int] = (),
) -> Benchmark:
    """A part of a benchmark: only some subjects, families of cases, other seeds; what is empty stays as it is.

    Raises:
        ConfigurationError: names that the benchmark does not have, or nothing is left; all of it at once.
    """
    from dataclasses import replace

    from ..errors import nearest

    problems = []
    known = {
        "subject": (subjects, [each.name for each in benchmark.subjects]),
        "family": (families, list(dict.fromkeys(each.family for each in benchmark.cases))),
    }
    for what, (wanted, valid) in known.items():
        for name in wanted:
            if name not in valid:
                problems.append(f"{benchmark.name} has no {what} {name!r}{nearest(name, valid)}: {', '.join(valid)}")
    raise_all(problems)
    kept = tuple(each for each in benchmark.subjects if not subjects or each.name in subjects)
    dropped = {each.name for each in benchmark.subjects} - {each.name for each in kept}
    cases = tuple(
        case
        for case in benchmark.cases
        if (not families or case.family in families) and not any(name in dropped for _, name in case.subjects)
    )
    if not cases:
        raise ConfigurationError(f"nothing of {benchmark.name} is left with these subjects and families: name others")
    return replace(benchmark, subjects=kept, cases=cases, seeds=tuple(seeds) or benchmark.seeds)


def _slots(case: Case, settled: Settled, benchmark: Benchmark) -> list[tuple[tuple[str, str], ...]]:
    """Which subjects a sentence is made with: those of the case, or for drift each one that a recipe knows."""
    if case.subjects:
        return [case.subjects]
    if settled.named.recipe.method is None:
        return [()]
    return [((ALONE, subject.name),) for subject in benchmark.subjects]


def batches_of(seeds: Sequence[int], size: int, kept: Sequence[Sequence[int]] = ()) -> list[tuple[int, ...]]:
    """Seeds whose pictures are made at once.

    Args:
        seeds: all of them.
        size: of a batch, at most.
        kept: batches of a run that is extended, which stay as they are, with their pictures, where all their seeds are
            still asked for.
    """
    known = {seed for batch in kept for seed in batch}
    if not known <= set(seeds):
        kept, known = (), set()
    rest = [seed for seed in seeds if seed not in known]
    return [*(tuple(batch) for batch in kept), *(tuple(rest[at : at + size]) for at in range(0, len(rest), size))]


def _rows(
    benchmark: Benchmark,
    case: Case,
    settled: Settled,
    slots: tuple[tuple[str, str], ...],
    seeds: tuple[int, ...],
    hashes: Mapping[str, str],
    signature: str,
    role: str = "picture",
) -> list[Row]:
    """The rows of one batch."""
    recipe = settled.named.recipe
    described = [[slot, name, benchmark.subject(name).noun, hashes[name]] for slot, name in slots]
    content = {
        "base": signature,
        "method": recipe.method.name if recipe.method else None,
        "learning": settled.learning,
        "adjustments": [part.to_dict() for part in recipe.adjustments],
        "attachments": [part.to_dict() for part in recipe.attachments],
        "sampling": dict(settled.sampling),
        "subjects": described,
        "text": case.text,
        "batch": list(seeds),
        **({"keep": list(case.keep)} if case.keep else {}),
    }
    sentence = noun_sentence(benchmark, case)
    rows = []
    for seed in seeds:
        # a case of the same words has the same pictures, but is a picture of its own in the tables
        key = canonical({**content, "case": case.id, "seed": seed})
        rows.append(
            Row(
                id=hashlib.sha256(key.encode()).hexdigest()[:24],
                role=role,
                recipe=settled.named.label,
                subject=slots[0][1] if slots else "",
                case=case.id,
                family=case.family,
                seed=seed,
                text=case.text,
                sentence=sentence,
                slots=slots,
                seeds=seeds,
                keep=case.keep,
            )  # fmt: skip
        )
    return rows


def _with_baselines(
    rows: tuple[Row, ...],
    benchmark: Benchmark,
    recipes: Sequence[Settled],
    hashes: Mapping[str, str],
    signature: str,
) -> tuple[Row, ...]:
    """Each row with the id of its baseline, and rows for those baselines of drift that no recipe makes."""
    from dataclasses import replace

    by_label = {settled.named.label: settled for settled in recipes}
    cases = {case.id: case for case in benchmark.cases}

    def key(row: Row) -> str:
        return canonical([row.sentence, row.seed, row.seeds, dict(by_label[row.recipe].sampling)])

    plain = {key(row): row.id for row in reversed(rows) if by_label[row.recipe].plain}
    added: dict[str, Row] = {}
    for row in rows:
        if key(row) in plain or cases[row.case].subjects:
            continue
        settled = by_label[row.recipe]
        alone = Settled(
            replace(settled.named, recipe=replace(settled.named.recipe, method=None, adjustments=(), attachments=())),
            None,
            settled.sampling,
        )
        for made in _rows(benchmark, cases[row.case], alone, (), row.seeds, hashes, signature, "baseline"):
            added[made.id] = made
            plain[key(made)] = made.id
    return tuple(replace(row, baseline=plain.get(key(row), "")) for row in rows) + tuple(added.values())
