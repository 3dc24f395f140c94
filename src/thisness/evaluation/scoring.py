"""Values of pictures, the same bits however often a run was interrupted."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError, ThisnessError
from .items import Benchmark, Case, Item, Picture
from .jobs import Score, Setup, disk_full, keep, one_line
from .plan import Row

if TYPE_CHECKING:
    from ..subject import Subject
    from .job_cache import JobCache

KEPT = 8  # subjects whose references are remembered


class Scorer:
    """Metrics and judges of one worker, made once, and what they are shown.

    Args:
        setup: of the run.
        subject: the subject of a name, with its pictures.
    """

    def __init__(self, setup: Setup, subject: Callable[[str], Subject]) -> None:
        self.setup, self.subject = setup, subject
        self._metrics: list[Any] | None = None
        self._judges: list[Any] | None = None
        self._cache: JobCache | None = None
        self._primed: OrderedDict[str, Any] = OrderedDict()
        self._references: OrderedDict[str, tuple[Picture, ...]] = OrderedDict()
        self._cases = {case.id: case for case in setup.benchmark.cases}

    def score(self, job: Score) -> dict[str, Any]:
        """For each metric its value for each row; why it has none; what it says beside them.

        A pure function of the job: features are computed in this job, on top of those of the references, which are
        computed once for each subject. Were they taken from wherever an earlier call left them, the last bits would
        tell how often the run was interrupted.
        """
        items = [self._item(row) for row in job.rows]
        self._start_from_references(job.rows[0].subject)
        values: dict[str, list[float | None]] = {}
        problems: list[str] = []
        notes: list[str] = []
        for metric in self.metrics() + self.judges():
            if metric.name not in job.metrics:
                continue
            try:
                found = [None if value is None else float(value) for value in metric.score(items)]
                if len(found) != len(items):
                    raise ThisnessError(f"{len(found)} values for {len(items)} pictures")
                if any(value is not None and not abs(value) < float("inf") for value in found):
                    raise ThisnessError("a value is not finite")
                values[metric.name] = found
                notes += [str(each) for each in getattr(metric, "failures", ())]
            except Exception as error:
                if disk_full(error):
                    raise
                problems.append(f"{metric.name}: {one_line(error)}")
        return {"values": values, "problems": problems, "notes": notes}

    def _start_from_references(self, subject: str) -> None:
        """Let the cache hold what the metrics need of a subject's references, and nothing else."""
        self.metrics()
        if self._cache is None:
            return
        if subject not in self._primed:
            self._cache.restore(None)
            if subject:
                self._prime(subject)
            keep(self._primed, subject, self._cache.snapshot(), KEPT)
        self._cache.restore(self._primed[subject])

    def _prime(self, name: str) -> None:
        """Score a reference against the references."""
        references = self._pictures_of(name)
        noun = self.setup.benchmark.subject(name).noun
        sentence = f"a photo of a {noun}"
        item = Item(
            "", "", name, "", 0, references[0], references, noun, sentence, concept=f"a {noun}", context="a photo"
        )
        for metric in self.metrics():
            with contextlib.suppress(Exception):  # what is wrong shows itself on the pictures
                metric.score([item])

    def identities(self) -> dict[str, dict[str, Any]]:
        """By name, of metrics and of judges."""
        return {
            "metrics": {each.name: dict(each.identity) for each in self.metrics()},
            "judges": {each.name: dict(each.identity) for each in self.judges()},
        }

    def metrics(self) -> list[Any]:
        """All metrics, made once."""
        if self._metrics is None:
            if any(isinstance(each, str) for each in self.setup.metrics):
                from .job_cache import JobCache

                self._cache = JobCache()
            made = [each for each in self.setup.metrics if not isinstance(each, str)]
            if names := [each for each in self.setup.metrics if isinstance(each, str)]:
                from .metrics import make_metrics, open_masker

                masker = open_masker(self.setup.masker, self.setup.device)
                made = [*make_metrics(names, device=self.setup.device, cache=self._cache, masker=masker), *made]
            _check_names(made)
            self._metrics = made
        return self._metrics

    def judges(self) -> list[Any]:
        """All columns of judges, made once."""
        if self._judges is None:
            made: list[Any] = []
            for each in self.setup.judges:
                if isinstance(each, str):
                    from .judges import make_judge

                    self.metrics()
                    answers = self.setup.folder / "judges" / "answers.jsonl"
                    made += make_judge(each, device=self.setup.device, cache=self._cache, answers=answers)
                else:
                    made.append(each)
            _check_names(self.metrics() + made)
            self._judges = made
        return self._judges

    # --- items ---

    def _item(self, row: Row) -> Item:
        case = self._cases[row.case]
        shown = bool(case.subjects)  # otherwise the sentence has no subject that a picture could resemble
        subject = self.setup.benchmark.subject(row.subject) if row.subject else None
        picture = self._made(row.id)
        baseline = picture if row.baseline == row.id else None
        if row.baseline and baseline is None and self._path(row.baseline).is_file():
            baseline = self._made(row.baseline)
        return Item(
            id=row.id,
            recipe=row.recipe,
            subject=row.subject,
            case=row.case,
            seed=row.seed,
            picture=picture,
            references=self._pictures_of(row.subject) if shown and subject else (),
            noun=subject.noun if shown and subject else "",
            sentence=row.sentence,
            concept=concept_words(self.setup.benchmark, case) if shown else "",
            context=case.context,
            family=row.family,
            expected=case.expected,
            truths=subject.truths if shown and subject else (),
            category=subject.category if shown and subject else "",
            baseline=baseline,
            source=_source(case),
        )

    def _path(self, row: str) -> Path:
        return self.setup.folder / "images" / f"{row}.png"

    def _made(self, row: str) -> Picture:
        from ..images import load_image

        return Picture(load_image(self._path(row)))

    def _pictures_of(self, name: str) -> tuple[Picture, ...]:
        if name not in self._references:
            subject = self.subject(name)
            pictures = tuple(Picture(i, m) for i, m in zip(subject.images, subject.masks, strict=True))
            keep(self._references, name, pictures, KEPT)
        return self._references[name]


def concept_words(benchmark: Benchmark, case: Case) -> str:
    """The first subject's part of a sentence: "a dog", with the article that stands before it there."""
    slot, name = case.subjects[0]
    noun = benchmark.subject(name).noun
    words = case.text.split(f"{{{slot}}}")[0].split()
    article = words[-1].lower() if words and words[-1].lower() in ("a", "an", "the") else "a"
    return f"{article} {noun}"


def _source(case: Case) -> Picture | None:
    if case.edit is None:
        return None
    from ..images import load_image, load_mask

    image = load_image(case.edit[0])
    return Picture(image, load_mask(case.edit[1], image.size))


def _check_names(scorers: Sequence[Any]) -> None:
    names = [each.name for each in scorers]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ConfigurationError(f"{', '.join(twice)}: asked for twice; leave one out")
