"""A benchmark's pictures and values, in a folder that no interruption can spoil.

The run's own process keeps the results: workers (`worker.Worker`, in an engine) give back pictures and values, and it
writes each picture, then the line that names its hash. Killed anywhere and started again, what is missing or not as it
was written is made again, in the same batches and with the same bytes.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ThisnessError, UserError
from ..files import sha256
from ..files.disk import partial_sibling
from .engines import Engine, open_engine, run_jobs
from .engines.opening import check_engine
from .finishing import Finished, summary
from .items import Benchmark
from .jobs import Identify, Job, Learn, Make, Outcome, Score, Setup, Share, portable
from .locking import running
from .plan import Row, narrowed
from .progress import Bar
from .recipes import NamedRecipe, parse_recipes
from .results import RESULTS, Entry, ResultsFile, State, check_out, identity_hash, pictures_hash
from .starting import Start, note_metrics, start
from .worker import Worker

if TYPE_CHECKING:
    from ..bases import Base


def run_benchmark(
    benchmark: Benchmark | str,
    recipes: Sequence[str | NamedRecipe],
    out: str | Path,
    *,
    base: str | Base = "playroom-sd",
    device: str = "cpu",
    dtype: str = "float32",
    engine: str = "local",
    workers: int = 1,
    threads: int | None = None,
    metrics: Sequence[Any] | str | None = None,
    judges: Sequence[Any] = (),
    masker: str | None = None,
    folder: str | Path | None = None,
    size: str | None = None,
    subjects: Sequence[str] = (),
    families: Sequence[str] = (),
    seeds: Sequence[int] = (),
    batch_size: int = 4,
    sampling: Mapping[str, Any] | None = None,
    extend: bool = False,
    stop_after: float | None = None,
    progress: bool = True,
    command: str = "",
    worker: type[Worker] = Worker,
) -> Finished:
    """Make and score all pictures of a benchmark; the same call goes on where it was cut short.

    Args:
        benchmark: one, or the name of one that `load_benchmark` knows.
        recipes: texts as in `recipes`, or parsed.
        out: folder of the run; made if need be.
        base: name, folder or hub id; an opened one only with one local worker.
        device, dtype: of the models.
        engine: "local" (processes of this machine), "ray" or "ray=ADDRESS" (a cluster whose machines share `out`).
        workers: each with a base of its own; a single local one works in this process.
        threads: of each worker on the CPU. It decides the last bits, so it does not follow the workers' number: 1 by
            default.
        metrics: names, presets or objects; the benchmark's own preset where None. May change from call to call: what
            has values is not scored again.
        judges: likewise, as "oracle".
        masker: what finds the subject in made pictures: "playroom", "none", a folder or hub id of a SAM or CLIPSeg
            model; the benchmark's own where None.
        folder: where the benchmark's own files lie.
        size: "smoke", "small", "full", where the benchmark has sizes.
        subjects, families, seeds: only these; () for the benchmark's own.
        batch_size: pictures made at once, at most.
        sampling: settings of the sampler for all recipes; a recipe's own win.
        extend: where `out` holds a part of what is asked for, keep it and make the rest; else such a folder is refused.
        stop_after: seconds after which to stop; the same call goes on.
        progress: bars on stderr.
        command: noted in the run.
        worker: what does the work; for measuring the runner itself.

    Raises:
        UserError: names, settings, the base, a folder of another plan; all before anything is made.
        Stopped: after `stop_after`, or by a signal while a recipe was learning.
        ThisnessError, OSError: nothing could be written any more.
    """
    out = Path(out)
    check_engine(engine)
    texts = [each for each in recipes if isinstance(each, str)]
    chosen = [each for each in recipes if isinstance(each, NamedRecipe)] + list(parse_recipes(texts) if texts else ())
    if not 1 <= workers <= 1024 or not 1 <= batch_size <= 1024 or (threads is not None and not 1 <= threads <= 256):
        raise UserError("workers and batch_size go from 1 to 1024, threads from 1 to 256")
    if not isinstance(base, str) and (workers > 1 or engine != "local"):
        raise UserError("an opened base cannot go to other processes: give its name or folder, or use one local worker")
    if isinstance(benchmark, str):
        from .benchmarks import load_benchmark

        benchmark = load_benchmark(benchmark, folder=folder, size=size, seeds=tuple(seeds) or None)
    benchmark = portable(narrowed(benchmark, subjects, families, seeds))
    wanted = benchmark.preset if metrics is None else metrics
    check_out(out)
    out.mkdir(parents=True, exist_ok=True)
    with running(out):
        begun = start(
            out, benchmark, chosen, base, device, dtype, threads or 1, batch_size, sampling, command, progress, extend
        )
        setup = Setup(
            base=base if begun.opened is None or workers > 1 or engine != "local" else begun.opened,
            signature=begun.signature,
            device=device,
            dtype=dtype,
            threads=threads or 1,
            folder=out.resolve(),
            benchmark=benchmark,
            recipes=begun.recipes,
            metrics=(wanted,) if isinstance(wanted, str) else tuple(wanted),
            judges=tuple(judges),
            masker=benchmark.masker if masker is None else masker,
        )
        begun.opened = None
        results = ResultsFile(out / RESULTS)
        try:
            with open_engine(engine, workers, setup, worker) as opened:
                return _Run(begun, results, opened, progress, stop_after).go()
        finally:
            results.close()


class _Run:
    """One call: what is there, what is missing, who does it."""

    def __init__(
        self, begun: Start, results: ResultsFile, engine: Engine, progress: bool, stop_after: float | None
    ) -> None:
        self.begun, self.results, self.engine, self.progress = begun, results, engine, progress
        self.folder, self.rows = begun.folder, begun.rows
        self.deadline = None if stop_after is None else time.monotonic() + stop_after
        self.stop_at = None if stop_after is None else time.time() + stop_after
        self.finished = Finished(begun.folder)
        self.images = begun.folder / "images"
        self.by_id = {row.id: row for row in begun.rows}
        self.stopped: str = ""

    def go(self) -> Finished:
        """Learn, make, score."""
        self.images.mkdir(exist_ok=True)
        for left in self.images.glob(".*.partial"):
            left.unlink(missing_ok=True)
        if self.results.damaged:
            self.say(f"{self.results.damaged} damaged lines of {RESULTS}: what they said is done again")
        self.state = self._checked()
        self._identify()  # what is asked for wrongly, or cannot be had, is said before hours of work
        broken = self._learn()
        self._make(broken)
        self._score()
        self.results.tidy()
        self.finished.summary = summary(self.begun, self.state)
        for row in self.rows:
            if row.id in self.state.failures and row.role == "picture":
                key = (row.recipe, self.state.failures[row.id]["reason"])
                self.finished.failures[key] = self.finished.failures.get(key, 0) + 1
        return self.finished

    def _checked(self) -> State:
        """What counts of the results: pictures whose bytes are as they were written. Failures are tried again."""
        gone: list[Entry] = []
        for entry in self.results.entries:
            kind, row = entry["kind"], entry.get("id")
            if kind == "failure" or (kind != "learned" and row not in self.by_id):
                gone.append(entry)
            elif kind == "picture":
                path = self.images / f"{row}.png"
                if not path.is_file() or sha256(path) != entry["sha256"]:
                    gone.append(entry)
        lost = sum(entry["kind"] == "picture" for entry in gone)
        if lost:
            self.say(f"{lost} pictures are missing or not as they were written: made again")
        self.results.forget(gone)
        return State(self.results.entries)

    # --- phases ---

    def _learn(self) -> dict[tuple[str, str], str]:
        """What recipes must learn for the pictures that are missing; why some could not, by recipe and subject."""
        needed: dict[tuple[str, str], None] = {}
        for row in self.rows:
            if row.id not in self.state.pictures and row.role == "picture" and self.begun.prepares[row.recipe]:
                for _, subject in row.slots:
                    needed[self.begun.owner[row.recipe], subject] = None
        broken: dict[tuple[str, str], str] = {}
        shares = {self.begun.shared[key]: key for key in reversed(needed) if self.begun.shared.get(key)}
        fresh = [key for key in shares.values() if not (self.folder / "concepts" / key[0] / key[1]).is_dir()]
        self._run("class pictures", [Share(recipe, subject) for recipe, subject in fresh], lambda job, outcome: None)

        def done(job: Job, outcome: Outcome) -> None:
            assert isinstance(job, Learn)
            key = (job.recipe, job.subject)
            if outcome.kind == "failed":
                broken[key] = outcome.failure
            elif outcome.result is not None:
                entry = {"kind": "learned", "recipe": job.recipe, "subject": job.subject, **outcome.result}
                if self.state.learned.get(key, {}).get("bytes") != entry["bytes"]:
                    self._note([entry])

        jobs = [Learn(recipe, subject, self.stop_at) for recipe, subject in needed]
        self._run("learning", jobs, done)
        return broken

    def _make(self, broken: Mapping[tuple[str, str], str]) -> None:
        """The pictures that are missing, in whole batches."""
        batches: dict[Any, list[Row]] = {}
        for row in self.rows:
            batches.setdefault((row.role, *row.batch), []).append(row)
        jobs = []
        for rows in batches.values():
            if all(row.id in self.state.pictures for row in rows):
                continue
            owner = self.begun.owner[rows[0].recipe]
            reasons = [broken[owner, name] for _, name in rows[0].slots if (owner, name) in broken]
            if reasons and rows[0].role == "picture":
                self._note([{"kind": "failure", "id": row.id, "reason": reasons[0]} for row in rows])
            else:
                jobs.append(Make(tuple(rows), owner))

        def done(job: Job, outcome: Outcome) -> None:
            assert isinstance(job, Make)
            if outcome.kind == "failed":
                self._note([{"kind": "failure", "id": row.id, "reason": outcome.failure} for row in job.rows])
                return
            entries = []
            for made in outcome.result:
                digest = sha256(made["png"])
                known = self.state.pictures.get(made["id"])
                if known is not None and known["sha256"] == digest:
                    continue
                _put(self.images / f"{made['id']}.png", made["png"])
                entries.append({"kind": "picture", "id": made["id"], "sha256": digest, "seconds": made["seconds"]})
            self._note(entries)
            self.finished.made += len(entries)

        self._run("pictures", jobs, done, lambda job: len(job.rows) if isinstance(job, Make) else 1)

    def _score(self) -> None:
        """The values that are missing."""
        short = {name: identity_hash(each) for group in self.identities.values() for name, each in group.items()}
        of = self._sources()
        buckets: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows:
            if row.role == "picture" and row.id in self.state.pictures:
                buckets.setdefault((row.recipe, row.subject), []).append(row)
        jobs: list[Job] = []
        for rows in buckets.values():
            for kind, group in self.identities.items():
                for names in self._missing(rows, {name: short[name] for name in group}, of):
                    jobs.append(Score(tuple(rows), names, key="judges" if kind == "judges" else ""))

        def done(job: Job, outcome: Outcome) -> None:
            assert isinstance(job, Score)
            if outcome.kind == "failed":
                self.finished.problems.append(f"{job}: {outcome.failure}")
                return
            self.finished.problems += [f"{job}: {each}" for each in outcome.result["problems"]]
            self.finished.notes += outcome.result["notes"]
            values = outcome.result["values"]
            if values:
                self._note_scores([
                    {
                        "kind": "score",
                        "id": row.id,
                        "image": self.state.pictures[row.id]["sha256"],
                        "of": of[row.id],
                        "values": {name: found[number] for name, found in values.items()},
                        "identities": {name: short[name] for name in values},
                    }
                    for number, row in enumerate(job.rows)
                ])  # fmt: skip

        self._run("scoring", jobs, done, lambda job: len(job.rows) if isinstance(job, Score) else 1)

    def _identify(self) -> None:
        """What the values will be computed by, of metrics and of judges."""
        self.identities: dict[str, dict[str, Any]] = {}
        self._run("", [Identify()], lambda job, outcome: self.identities.update(outcome.result))
        note_metrics(self.folder, {**self.identities["metrics"], **self.identities["judges"]})

    def _sources(self) -> dict[str, str]:
        """For each picture a hash of those that its values are computed from: all seeds of its group, the baselines."""
        groups: dict[Any, dict[str, str]] = {}
        for row in self.rows:
            for name in (row.id, row.baseline):
                if name in self.state.pictures and row.role == "picture":
                    groups.setdefault(row.group, {})[name] = self.state.pictures[name]["sha256"]
        hashes = {group: pictures_hash(pictures) for group, pictures in groups.items()}
        return {row.id: hashes.get(row.group, "") for row in self.rows}

    def _missing(self, rows: Sequence[Row], wanted: Mapping[str, str], of: Mapping[str, str]) -> list[tuple[str, ...]]:
        """Which metrics to score these pictures by, in sets.

        Metrics that were scored together are scored together again where anything of them is lost: which features a
        metric finds computed already decides the last bits.
        """
        sets: dict[tuple[str, ...], set[str]] = {}
        for row in rows:
            for entry in self.state.scores.get(row.id, ()):
                good = entry["image"] == self.state.pictures[row.id]["sha256"] and entry["of"] == of[row.id]
                if good and all(wanted.get(name) == each for name, each in entry["identities"].items()):
                    sets.setdefault(tuple(entry["identities"]), set()).add(row.id)
        whole = {row.id for row in rows}
        lost = [names for names, found in sets.items() if found != whole]
        covered = {name for names in sets for name in names}
        rest = tuple(name for name in wanted if name not in covered)
        return lost + ([rest] if rest else [])

    # --- what all phases share ---

    def _run(
        self,
        name: str,
        jobs: Sequence[Job],
        done: Callable[[Job, Outcome], None],
        weight: Callable[[Job], int] = lambda job: 1,
    ) -> None:
        """Have jobs done, with a bar; raises what ends the run."""
        if not jobs:
            return
        bar = Bar(name, sum(map(weight, jobs)), self.progress and bool(name))

        def outcome_of(job: Job, outcome: Outcome) -> None:
            if outcome.kind == "fatal":
                raise _ended(outcome.failure, outcome.exit_code)
            if outcome.kind == "stopped":
                self.stopped = outcome.failure
                if self.deadline is None or time.monotonic() < self.deadline:
                    raise self._stop(outcome.exit_code)
                return
            if outcome.kind == "failed":
                bar.say(f"{job}: {outcome.failure}")
            done(job, outcome)
            bar.step(weight(job))

        try:
            complete = run_jobs(
                self.engine, jobs, outcome_of, deadline=self.deadline,
                on_lost=lambda job, reason: bar.say(f"a worker died ({reason}) at {job}: another takes its place"),
            )  # fmt: skip
        finally:
            bar.close()
        if not complete or self.stopped:
            raise self._stop(130)

    def _stop(self, code: int) -> ThisnessError:
        from ..methods.registry import Stopped

        made = sum(row.id in self.state.pictures for row in self.rows)
        error = Stopped(f"stopped with {made} of {len(self.rows)} pictures: the same command goes on from there")
        error.exit_code = code  # type: ignore[misc]
        return error

    def _note(self, entries: Sequence[Entry]) -> None:
        """On disk first, then in mind."""
        self.results.append(entries)
        for entry in entries:
            self.state.add(entry)

    def _note_scores(self, entries: Sequence[Entry]) -> None:
        """Those that are not said already, as where one of many was lost."""
        self._note([entry for entry in entries if entry not in self.state.scores.get(entry["id"], ())])

    def say(self, text: str) -> None:
        if self.progress:
            print(text, file=sys.stderr, flush=True)


def _ended(text: str, code: int) -> ThisnessError:
    error = UserError(text) if code == 2 else ThisnessError(text)
    return error


def _put(path: Path, data: bytes) -> None:
    """A whole file or none. Not flushed to the disk: the results name its hash, so a loss is found and made again."""
    partial = partial_sibling(path)
    try:
        with partial.open("xb") as file:
            file.write(data)
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
