"""What one process of a run does: it loads the base once, learns, makes pictures, scores. Engines start workers.

A worker writes nothing but what can be found again: concepts (by `methods.learn`), class pictures, cached features.
Pictures and values go back to the one process that keeps the results.
"""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ThisnessError, UserError
from .jobs import (
    DISK_FULL,
    Identify,
    Job,
    Learn,
    Make,
    Outcome,
    Score,
    Setup,
    Share,
    concept_folder,
    disk_full,
    keep,
    one_line,
)
from .scoring import Scorer

if TYPE_CHECKING:
    import torch

    from ..bases import Base
    from ..concept import Concept
    from ..subject import Subject
    from .learning import Way

KEPT = 8  # subjects and concepts that a worker remembers
KEPT_ENCODINGS = 256


class Worker:
    """Does jobs. Benchmarks and tests replace `pictures` by something that takes no time."""

    def __init__(self, setup: Setup, number: int = 0) -> None:
        self.setup, self.number = setup, number
        self._base: Base | None = None
        self.scorer = Scorer(setup, self.subject)
        self._subjects: OrderedDict[str, Subject] = OrderedDict()
        self._concepts: OrderedDict[tuple[str, str], Concept] = OrderedDict()
        self._ways: dict[str, Way] = {}
        self._encodings: OrderedDict[Any, Any] = OrderedDict()

    # --- jobs ---

    def do(self, job: Job) -> Outcome:
        """Do a job; whatever goes wrong is in the outcome."""
        from ..methods.registry import Stopped

        work: dict[type, Callable[[Any], Any]] = {
            Share: self._share, Learn: self._learn, Make: self._make, Score: self.scorer.score,
            Identify: lambda job: self.scorer.identities(),
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
                return Outcome(failure=DISK_FULL, kind="fatal")
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
            adjust = settled.named.recipe.adjustments if settled else ()
            attach = settled.named.recipe.attachments if settled else ()
            if not Prompt(first.text).slots:  # nothing of a concept is in the sentence
                adjust = tuple(each for each in adjust if not _about_concepts(each.name))
                attach = tuple(each for each in attach if not _about_concepts(each.name))
            if not adjust:  # adjustments may change what tokens mean
                stack.enter_context(self._remembered(tuple(concept.hash for concept in concepts)))
            made = generate(
                self.base,
                first.text,
                **keywords,
                adjust=adjust,
                interventions=attach,
                keep=first.keep,
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
        from ..bases import instead

        base = self.base
        encode = base.encode_tokens

        def remembering(tokens: Sequence[torch.Tensor]) -> Any:
            key = (concepts, *(each.cpu().numpy().tobytes() for each in tokens))
            if key not in self._encodings:
                keep(self._encodings, key, encode(tokens), KEPT_ENCODINGS)
            return self._encodings[key]

        with instead(base, encode_tokens=remembering):
            yield

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
            keep(self._subjects, name, self.setup.benchmark.subject(name).load(), KEPT)
        return self._subjects[name]

    def concept(self, owner: str, name: str) -> Concept:
        from ..concept import Concept

        if (owner, name) not in self._concepts:
            loaded = Concept.load(concept_folder(self.setup.folder, owner, name), self.base)
            keep(self._concepts, (owner, name), loaded, KEPT)
        return self._concepts[owner, name]

    @contextmanager
    def _threads(self) -> Iterator[None]:
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(self.setup.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


class _CannotOpen(Exception):
    """The base cannot be loaded: no job can be done."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def _about_concepts(name: str) -> bool:
    """Whether a part acts on what was learned, so that a sentence without it gives it nothing to do."""
    from ..attention import ATTACHMENTS
    from ..conditioning import ADJUSTMENTS

    return getattr(ADJUSTMENTS.get(name) or ATTACHMENTS.get(name), "about_concepts", False)


def _logged_seconds(folder: Path) -> float | None:
    """Seconds of learning over all its sittings, where the method keeps a log."""
    import json

    with contextlib.suppress(OSError, ValueError, KeyError, IndexError, TypeError):
        lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
        return float(json.loads(lines[-1])["seconds"])
    return None
