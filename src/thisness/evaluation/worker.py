"""What one process of a run does: it loads the base once, learns, makes pictures, scores. Engines start workers.

A worker writes nothing but what can be found again: concepts (by `methods.learn`), class pictures, cached features.
Pictures and values go back to the one process that keeps the results.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ConfigurationError, ThisnessError, UserError
from .items import Benchmark, Case, Item, Picture
from .plan import Row, Settled

if TYPE_CHECKING:
    import torch

    from ..bases import Base
    from ..concept import Concept
    from ..subject import Subject
    from .job_cache import JobCache
    from .learning import Way

KEPT = 8  # subjects and concepts that a worker remembers
KEPT_ENCODINGS = 256
Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Setup:
    """All that a worker needs to know; goes to other processes.

    Args:
        base: a name, a folder or a hub id; an opened base only where everything happens in one process.
        signature: of the base that the plan was made for.
        device: torch's name; workers share several accelerators out among themselves where it is only "cuda".
        dtype: "float32" ...
        threads: of torch on the CPU: they decide the last bits, so all workers have the same number.
        folder: of the run.
        benchmark: subjects and cases.
        recipes: by label.
        metrics: a preset's or metrics' names, or objects with `name`, `identity` and `score`.
        judges: likewise.
    """

    base: Any
    signature: str
    device: str
    dtype: str
    threads: int
    folder: Path
    benchmark: Benchmark
    recipes: Mapping[str, Settled]
    metrics: tuple[Any, ...] = ()
    judges: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Job:
    """A piece of work. Of those with the same `key` only one is in work at any time, in their order."""

    key: str = field(default="", kw_only=True)

    def __str__(self) -> str:
        return type(self).__name__.lower()


@dataclass(frozen=True)
class Share(Job):
    """What several subjects of a recipe share, as class pictures."""

    recipe: str
    subject: str


@dataclass(frozen=True)
class Learn(Job):
    """A recipe gets to know a subject."""

    recipe: str
    subject: str
    stop_at: float | None = None  # of `time.time`

    def __str__(self) -> str:
        return f"learning {self.subject} by {self.recipe}"


@dataclass(frozen=True)
class Make(Job):
    """The pictures of one batch of the plan. `owner` is the recipe that learned what this one uses."""

    rows: tuple[Row, ...]
    owner: str

    def __str__(self) -> str:
        return f"{self.rows[0].recipe}, {self.rows[0].subject or 'no subject'}, {self.rows[0].case}"


@dataclass(frozen=True)
class Score(Job):
    """Values for all pictures of one recipe and one subject.

    Args:
        rows: those that have a picture.
        metrics: names of those that are wanted.
    """

    rows: tuple[Row, ...]
    metrics: tuple[str, ...]

    def __str__(self) -> str:
        return f"scoring {self.rows[0].recipe}, {self.rows[0].subject or 'no subject'}"


@dataclass(frozen=True)
class Identify(Job):
    """The identities of all metrics."""


@dataclass(frozen=True)
class Outcome:
    """What came of a job.

    Args:
        result: of a job that was done.
        failure: one line that says why it was not; "".
        kind: "done"; "failed" (this job's matter: the others go on), "stopped" (the job goes on another time), "fatal"
            (nothing can go on).
        exit_code: of what ends the run.
    """

    result: Any = None
    failure: str = ""
    kind: str = "done"
    exit_code: int = 1


class Worker:
    """Does jobs. Benchmarks and tests replace `pictures` by something that takes no time."""

    def __init__(self, setup: Setup, number: int = 0) -> None:
        self.setup, self.number = setup, number
        self._base: Base | None = None
        self._metrics: list[Any] | None = None
        self._judges: list[Any] | None = None
        self._cache: JobCache | None = None
        self._primed: OrderedDict[str, Any] = OrderedDict()
        self._subjects: OrderedDict[str, Subject] = OrderedDict()
        self._concepts: OrderedDict[tuple[str, str], Concept] = OrderedDict()
        self._references: OrderedDict[str, tuple[Picture, ...]] = OrderedDict()
        self._ways: dict[str, Way] = {}
        self._encodings: OrderedDict[Any, Any] = OrderedDict()
        self._cases = {case.id: case for case in setup.benchmark.cases}

    # --- jobs ---

    def do(self, job: Job) -> Outcome:
        """Do a job; whatever goes wrong is in the outcome."""
        from ..methods.registry import Stopped

        work: dict[type, Callable[[Any], Any]] = {
            Share: self._share, Learn: self._learn, Make: self._make, Score: self._score, Identify: self._identify,
        }  # fmt: skip
        try:
            with self._threads():
                if not isinstance(job, (Score, Identify)):
                    self._open_base()
                return Outcome(work[type(job)](job))
        except Stopped as error:
            return Outcome(failure=str(error), kind="stopped", exit_code=143 if "SIGTERM" in str(error) else 130)
        except _CannotOpen as error:
            return Outcome(failure=str(error), kind="fatal", exit_code=error.code)
        except Exception as error:
            if disk_full(error):
                return Outcome(failure=_DISK_FULL, kind="fatal")
            if isinstance(job, Identify):
                code = error.exit_code if isinstance(error, ThisnessError) else 1
                return Outcome(failure=one_line(error), kind="fatal", exit_code=code)
            return Outcome(failure=one_line(error), kind="failed")

    def _share(self, job: Share) -> None:
        self.way(job.recipe).share(self.base, self.subject(job.subject))

    def _learn(self, job: Learn) -> dict[str, Any]:
        folder = concept_folder(self.setup.folder, job.recipe, job.subject)
        started = time.perf_counter()
        left = None if job.stop_at is None else max(job.stop_at - time.time(), 0.0)
        self.way(job.recipe).prepare(self.subject(job.subject), self.base, folder, left)
        seconds = _logged_seconds(folder) or time.perf_counter() - started
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        return {"seconds": round(seconds, 3), "bytes": size}

    def _make(self, job: Make) -> list[dict[str, Any]]:
        """Each picture of the batch: id, PNG bytes, seconds."""
        started = time.perf_counter()
        files = self.pictures(job)
        seconds = (time.perf_counter() - started) / len(files)
        return [
            {"id": row.id, "png": data, "seconds": round(seconds, 4)} for row, data in zip(job.rows, files, strict=True)
        ]

    def _score(self, job: Score) -> dict[str, Any]:
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
            _keep(self._primed, subject, self._cache.snapshot(), KEPT)
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

    def _identify(self, job: Identify) -> dict[str, Any]:
        return {
            "metrics": {each.name: dict(each.identity) for each in self.metrics()},
            "judges": {each.name: dict(each.identity) for each in self.judges()},
        }

    # --- pictures ---

    def pictures(self, job: Make) -> list[bytes]:
        """The batch, as PNG files with their records."""
        from ..generation import generate
        from ..images import png_bytes
        from ..prompt import Prompt
        from ..sampling import SamplingOptions

        first = job.rows[0]
        settled = self.setup.recipes[first.recipe] if first.role == "picture" else None
        subjects = {slot: self.subject(name) for slot, name in first.slots}
        keywords: dict[str, Any] = {}
        if settled is not None:
            keywords = self.way(first.recipe).keywords(self.base, subjects, lambda name: self.concept(job.owner, name))
        unsaid: list[str] = []
        with ExitStack() as stack:
            concepts = list((keywords.get("concept") or {}).values())
            if not Prompt(first.text).slots:  # a sentence without a subject, while one is known
                for concept in concepts:
                    stack.enter_context(concept.attach(self.base))
                    unsaid.append(f"the concept {concept.name!r} attached without its word (hash {concept.hash[:12]})")
                keywords = {key: value for key, value in keywords.items() if key not in ("concept", "subject")}
            stack.enter_context(self._remembered(tuple(concept.hash for concept in concepts)))
            made = generate(
                self.base,
                first.text,
                **keywords,
                adjust=settled.named.recipe.adjustments if settled else (),
                interventions=settled.named.recipe.attachments if settled else (),
                seeds=first.seeds,
                options=SamplingOptions(**self.setup.recipes[first.recipe].sampling),
                batch_size=len(first.seeds),
            )
        record = {**made.record, "unsaid": [*made.record["unsaid"], *unsaid]}
        by_seed = dict(zip(first.seeds, range(len(first.seeds)), strict=True))
        return [png_bytes(made.images[by_seed[row.seed]], {**record, "index": by_seed[row.seed]}) for row in job.rows]

    @contextmanager
    def _remembered(self, concepts: tuple[str, ...]) -> Iterator[None]:
        """Token encodings computed once for each sentence, under the same concepts."""
        base = self.base
        encode = base.encode_tokens

        def remembering(tokens: Sequence[torch.Tensor]) -> Any:
            key = (concepts, *(each.cpu().numpy().tobytes() for each in tokens))
            if key not in self._encodings:
                _keep(self._encodings, key, encode(tokens), KEPT_ENCODINGS)
            return self._encodings[key]

        base.encode_tokens = remembering  # type: ignore[method-assign]
        try:
            yield
        finally:
            del base.encode_tokens

    # --- what is loaded once ---

    @property
    def base(self) -> Base:
        return self._open_base()

    def _open_base(self) -> Base:
        if self._base is None:
            try:
                self._base = self.open_base()
            except ThisnessError as error:
                raise _CannotOpen(str(error), error.exit_code) from error
        return self._base

    def open_base(self) -> Base:
        """The base that the plan was made for."""
        import torch

        from ..bases import Base, load_base

        given = self.setup.base
        if isinstance(given, Base):
            return given
        device = self.setup.device
        if device == "cuda" and torch.cuda.device_count() > 1:
            device = f"cuda:{self.number % torch.cuda.device_count()}"
        base = load_base(given, device=device, dtype=getattr(torch, self.setup.dtype))
        if base.signature != self.setup.signature:
            raise UserError(f"{given} has the signature {base.signature} here, but the plan is for another base")
        return base

    def way(self, label: str) -> Way:
        from .learning import way_of

        if label not in self._ways:
            self._ways[label] = way_of(self.setup.recipes[label].named)
        return self._ways[label]

    def subject(self, name: str) -> Subject:
        if name not in self._subjects:
            _keep(self._subjects, name, self.setup.benchmark.subject(name).load(), KEPT)
        return self._subjects[name]

    def concept(self, owner: str, name: str) -> Concept:
        from ..concept import Concept

        if (owner, name) not in self._concepts:
            loaded = Concept.load(concept_folder(self.setup.folder, owner, name), self.base)
            _keep(self._concepts, (owner, name), loaded, KEPT)
        return self._concepts[owner, name]

    def metrics(self) -> list[Any]:
        """All metrics, made once."""
        if self._metrics is None:
            if any(isinstance(each, str) for each in self.setup.metrics):
                from .job_cache import JobCache

                self._cache = JobCache()
            made = [each for each in self.setup.metrics if not isinstance(each, str)]
            if names := [each for each in self.setup.metrics if isinstance(each, str)]:
                from .metrics import make_metrics

                made = [*make_metrics(names, device=self.setup.device, cache=self._cache), *made]
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

    # --- scoring ---

    def _item(self, row: Row) -> Item:
        case = self._cases[row.case]
        shown = bool(case.subjects)  # otherwise the sentence has no subject that a picture could resemble
        subject = self.setup.benchmark.subject(row.subject) if row.subject else None
        return Item(
            id=row.id,
            recipe=row.recipe,
            subject=row.subject,
            case=row.case,
            seed=row.seed,
            picture=self._made(row.id),
            references=self._pictures_of(row.subject) if shown and subject else (),
            noun=subject.noun if shown and subject else "",
            sentence=row.sentence,
            concept=concept_words(self.setup.benchmark, case) if shown else "",
            context=case.context,
            family=row.family,
            expected=case.expected,
            truths=subject.truths if shown and subject else (),
            category=subject.category if shown and subject else "",
            baseline=self._made(row.baseline) if row.baseline and self._path(row.baseline).is_file() else None,
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
            _keep(self._references, name, pictures, KEPT)
        return self._references[name]

    @contextmanager
    def _threads(self) -> Iterator[None]:
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(self.setup.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _check_names(scorers: Sequence[Any]) -> None:
    names = [each.name for each in scorers]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ConfigurationError(f"{', '.join(twice)}: asked for twice; leave one out")


def concept_folder(folder: Path, recipe: str, subject: str) -> Path:
    return folder / "concepts" / recipe / subject


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


def portable(benchmark: Benchmark) -> Benchmark:
    """The same with plain dicts, which can go to another process."""
    return replace(
        benchmark,
        cases=tuple(replace(case, expected=dict(case.expected)) for case in benchmark.cases),
        subjects=tuple(
            replace(each, truths=tuple(dict(truth) for truth in each.truths)) for each in benchmark.subjects
        ),
    )


class _CannotOpen(Exception):
    """The base cannot be loaded: no job can be done."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


_DISK_FULL = "the disk is full: free some space, then run the same command again (what was written before is whole)"


def disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, says that nothing more can be written."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left" in str(error):
            return True
        error = error.__cause__
    return False


def one_line(error: BaseException) -> str:
    """An error as one line; those that are not ours with their type."""
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, ThisnessError) and text else f"{type(error).__name__}: {text}"


def _keep(kept: OrderedDict[Any, Thing], key: Any, value: Thing, limit: int) -> None:
    kept[key] = value
    while len(kept) > limit:
        kept.popitem(last=False)


def _logged_seconds(folder: Path) -> float | None:
    """Seconds of learning over all its sittings, where the method keeps a log."""
    import json

    with contextlib.suppress(OSError, ValueError, KeyError, IndexError, TypeError):
        return float(json.loads((folder / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1]["seconds"]))
    return None
