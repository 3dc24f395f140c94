"""Many subjects in one batch on one frozen base: each row of the batch with its own small weights.

Words stand beside one another in one tokenizer, so a row reads those that its sentence names. Low-rank weights are
applied row by row: y = W x + s B_i A_i x with i the row's subject. No norm of the denoiser looks across rows, so each
subject's gradients are those that it would have alone; its draws come from a stream of its own, in the state that a
run alone starts from.

    rows of several subjects in one call of the denoiser     `PackedTask.loss`
    W x + s B_i A_i x by batched matrix products              `rows_apart`
    packs of subjects, one after another, each resumable     `learn_together`
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..bases import Base
from ..concept import Concept
from ..conditioning import Conditioning
from ..errors import ConfigurationError, raise_all
from ..files import check_replaceable, listed, write_text
from ..subject import Subject
from ..training.loop import train
from ..training.optimizers import check_optimizer
from ..training.progress import Progress
from ..training.task import Task
from .registry import Stopped, learned_already, learning_in, method_named, settings_for, tidy
from .tuning import (
    Draw,
    TuningMethod,
    TuningTask,
    conditioning_of,
    precision_for,
    prepared_for_training,
    prior_latents,
    take_average,
)

PACKED = ("textual-inversion", "dreambooth-lora")
MOST = 8  # subjects in one batch unless told otherwise


@dataclass
class Layout:
    """Whose the rows of a model's input are: names with numbers of rows, in their order; none: every adapter acts on
    all rows, as they are without this module."""

    rows: list[tuple[str, int]] = field(default_factory=list)


class PackedTask(Task):
    """Several `TuningTask`s whose rows share the calls of the models.

    Args:
        base: what all are attached to.
        tasks: by the subject's name.
        layouts: of the parts of the base whose low-rank weights differ by row, by part; see `rows_apart`.
        shared: modules that all train together, by name. With them the loss is the mean over the subjects, gradients
            are clipped together, and each subject draws otherwise.
        groups: of the optimizer; those of the tasks by default.
    """

    def __init__(
        self,
        base: Base,
        tasks: Mapping[str, TuningTask],
        layouts: Mapping[str, Layout] | None = None,
        shared: Mapping[str, nn.Module] | None = None,
        groups: list[dict[str, Any]] | None = None,
    ) -> None:
        self.base, self.tasks, self.layouts = base, dict(tasks), dict(layouts or {})
        self.shared, self.groups = dict(shared or {}), groups
        self.name = f"learning {listed(self.tasks, 3)}"
        self.batch_size = sum(task.batch_size for task in self.tasks.values())
        self.streams: dict[str, torch.Generator] = {}

    def modules(self) -> dict[str, nn.Module]:
        own = {f"{name}/{key}": module for name, task in self.tasks.items() for key, module in task.modules().items()}
        return {**self.shared, **own}

    def parameter_groups(self) -> list[dict[str, Any]]:
        return self.groups or [group for task in self.tasks.values() for group in task.parameter_groups()]

    def clip(self, parameters: list[Tensor], largest: float) -> Tensor:
        """Each subject's gradients for themselves, as alone, or all together if some are shared; the largest norm."""
        if self.shared:
            return super().clip(parameters, largest)
        own = [[p for module in task.modules().values() for p in module.parameters()] for task in self.tasks.values()]
        return torch.stack([nn.utils.clip_grad_norm_(each, largest, foreach=True) for each in own]).max()

    def settings(self) -> dict[str, Any]:
        return {"joint": bool(self.shared), "subjects": {name: task.settings() for name, task in self.tasks.items()}}

    def extra_state(self) -> dict[str, Any]:
        return {f"stream/{name}": stream.get_state() for name, stream in self.streams.items()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        for key, value in state.items():
            self._stream(key.removeprefix("stream/")).set_state(value)

    def on_start(self, device: torch.device) -> None:
        for task in self.tasks.values():
            task.device = device
            task.on_start(device)

    def loss(self, step: int, rng: torch.Generator) -> dict[str, Tensor]:
        """The sum over the subjects of what each would have alone, and each one's; with shared modules the mean."""
        if not self.streams:
            for name in self.tasks:
                if self.shared:
                    self._stream(name).manual_seed(int(torch.randint(2**62, (), generator=rng)))
                else:
                    self._stream(name).set_state(rng.get_state())
        return self.loss_of(list(self.tasks), step)

    def loss_of(self, names: Sequence[str], step: int) -> dict[str, Tensor]:
        """As `loss`, of some subjects only: the others draw nothing, and get no gradients at all, not even zeros, which
        an optimizer with a memory or weight decay would follow."""
        with self._at_rest([name for name in self.tasks if name not in names]):
            return self._loss(names, step)

    def _loss(self, names: Sequence[str], step: int) -> dict[str, Tensor]:
        draws = {name: self.tasks[name].draw(step, self.streams[name]) for name in names}
        conditioning = self.conditioning(draws)
        counts = [len(draw.timesteps) for draw in draws.values()]
        self._lay_out(self._denoiser(), list(zip(names, counts, strict=True)))
        noisy, timesteps = (torch.cat([getattr(d, key) for d in draws.values()]) for key in ("noisy", "timesteps"))
        answers = self.base.predict(noisy, timesteps, conditioning).split(counts)
        losses = {
            name: self.tasks[name].losses(draw, answer)["loss"]
            for (name, draw), answer in zip(draws.items(), answers, strict=True)
        }
        total = torch.stack(list(losses.values())).sum()
        total = total / len(losses) if self.shared else total
        return {"loss": total, **{name: loss.detach() for name, loss in losses.items()}}

    def conditioning(self, draws: Mapping[str, Draw]) -> Conditioning:
        """Of all rows. The text encoder is called once, unless it has weights of each subject's own."""
        if set(self.layouts) - {self._denoiser()}:
            parts = []
            for name, draw in draws.items():
                with self.alone(name):
                    parts.append(self.tasks[name].conditioning(draw.batch.sentences))
            return Conditioning.cat(parts)
        words = [sentence for draw in draws.values() for sentence in draw.batch.sentences]
        changing = set().union(*(self.tasks[name].changing for name in draws))
        fixed = {text: row for name in draws for text, row in self.tasks[name].fixed.items()}
        return conditioning_of(self.base, words, changing, fixed)

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Of the low-rank weights those of one subject act, on all rows, for the length of a `with`."""
        before = {part: layout.rows for part, layout in self.layouts.items()}
        try:
            for part in self.layouts:
                self._lay_out(part, [(name, 0)])
            yield
        finally:
            for part, layout in self.layouts.items():
                layout.rows = before[part]

    def preview(self, folder: Path, step: int) -> None:
        for name, task in self.tasks.items():
            (folder / name).mkdir(exist_ok=True)
            with self.alone(name):
                task.preview(folder / name, step)

    @contextmanager
    def _at_rest(self, names: Sequence[str]) -> Iterator[None]:
        """Every row is looked up in every subject's table of words: those of some are left out of the graph."""
        own = [p for name in names for m in self.tasks[name].modules().values() for p in m.parameters()]
        flags = [p.requires_grad for p in own]
        try:
            for parameter in own:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter, flag in zip(own, flags, strict=True):
                parameter.requires_grad_(flag)

    def _stream(self, name: str) -> torch.Generator:
        return self.streams.setdefault(name, torch.Generator())

    def _lay_out(self, part: str, rows: list[tuple[str, int]]) -> None:
        """It stays until the next: activations may be computed again in the backward pass."""
        if part in self.layouts:
            self.layouts[part].rows = rows

    def _denoiser(self) -> str:
        return next(name for name, module in self.base.modules.items() if module is self.base.denoiser)


# --- low-rank weights by row ---


@contextmanager
def rows_apart(layers: Mapping[str, Any], layout: Layout) -> Iterator[None]:
    """Let low-rank layers apply to each row only the weights of the subject whose row it is.

    Args:
        layers: PEFT's, with an adapter for each subject.
        layout: whose the rows are; read at each call. With one name all rows are that subject's.
    """
    try:
        for layer in layers.values():
            layer.forward = partial(_forward, layer, layer.forward, layout)
        yield
    finally:
        for layer in layers.values():
            layer.__dict__.pop("forward", None)


def _forward(layer: Any, plain: Callable[..., Tensor], layout: Layout, inputs: Tensor, *more: Any) -> Tensor:
    """inputs: (rows, ..., in) of a linear module, (rows, in, h, w) of a convolution."""
    rows = layout.rows
    if not rows:
        return plain(inputs, *more)
    output = layer.base_layer(inputs, *more)
    names, counts = [name for name, _ in rows], {count for _, count in rows}
    hidden = inputs.to(layer.lora_A[names[0]].weight.dtype)
    if len(names) > 1 and len(counts) == 1 and isinstance(layer.base_layer, nn.Linear):
        a = torch.stack([layer.lora_A[name].weight for name in names])  # (subjects, rank, in)
        b = torch.stack([layer.lora_B[name].weight * layer.scaling[name] for name in names])  # (subjects, out, rank)
        flat = hidden.reshape(len(names), -1, hidden.shape[-1])
        change = torch.bmm(torch.bmm(flat, a.transpose(1, 2)), b.transpose(1, 2)).view(output.shape)
    else:
        parts = hidden.split([count for _, count in rows]) if len(names) > 1 else [hidden]
        change = torch.cat([_change(layer, name, part) for name, part in zip(names, parts, strict=True)])
    return output + change.to(output.dtype)


def _change(layer: Any, name: str, inputs: Tensor) -> Tensor:
    return layer.lora_B[name](layer.lora_A[name](inputs)) * layer.scaling[name]


# --- learning ---


def learn_packed(
    method: str,
    subjects: Sequence[Subject],
    base: Base,
    *,
    folder: str | Path | None = None,
    pack: int = MOST,
    resume: bool = True,
    progress: bool = True,
    stop_after: float | None = None,
    preset: str | None = None,
    **settings: Any,
) -> list[Concept]:
    """Learn several subjects in the same batches, each as it would be learned alone.

    Args:
        method: one of PACKED.
        subjects: each with a name of its own.
        base: as for `learn`; as before afterwards, to the bit.
        folder: a folder for each concept is written in it, by the subject's name; FOLDER.training holds what is needed
            to go on after a stop. None writes nothing.
        pack: at most so many subjects in a batch; the others come after.
        resume, progress, stop_after, preset, settings: as for `learn`. The batch is `batch_size` rows of each subject.

    Returns:
        A concept for each subject, in their order.

    Raises:
        ConfigurationError: a method that cannot be packed, two subjects of one name, several processes (torchrun), or
            as for `learn`.
        ArtefactError, UserError, Stopped: as for `learn`.
    """
    chosen = method_named(method)
    if method not in PACKED:
        raise ConfigurationError(
            f"{method} cannot learn several subjects in one batch, {' and '.join(PACKED)} can: learn one after another"
            + (", or together for one picture (--joint)" if method == "custom-diffusion" else "")
        )
    if pack < 1:
        raise ConfigurationError(f"pack {pack} must be at least 1")
    full = settings_for(chosen, base, settings, preset)
    opened = partial(_packed, chosen, base, full, progress)
    return learn_together(
        opened, subjects, base, full, lambda place, subject: learned_already(place, chosen, subject, base, full),
        folder=folder, most=pack, resume=resume, progress=progress, stop_after=stop_after,
    )  # fmt: skip


@contextmanager
def _packed(
    chosen: type[Any], base: Base, settings: Any, progress: bool, subjects: Sequence[Subject]
) -> Iterator[tuple[PackedTask, Callable[[], list[Concept]]]]:
    """A pack's task, attached to the base, and what gives its concepts."""
    if hasattr(settings, "prior_pictures"):
        for subject in subjects:  # made while nothing is attached, and kept
            prior_latents(base, subject, settings, progress)
    methods: list[TuningMethod] = [chosen() for _ in subjects]
    with ExitStack() as stack:
        tasks = {
            subject.name: stack.enter_context(method.task(subject, base, settings, progress))
            for subject, method in zip(subjects, methods, strict=True)
        }
        layouts = {}
        for part, layers in getattr(methods[0], "layers", {}).items():
            layouts[part] = Layout()
            stack.enter_context(rows_apart(layers, layouts[part]))
        made = list(zip(methods, tasks.values(), strict=True))
        yield PackedTask(base, tasks, layouts), lambda: [method.concept(task, settings) for method, task in made]


Opened = Callable[[Sequence[Subject]], AbstractContextManager[tuple[PackedTask, Callable[[], list[Concept]]]]]


def learn_together(
    opened: Opened,
    subjects: Sequence[Subject],
    base: Base,
    settings: Any,
    finished: Callable[[Path, Subject], Concept | None],
    *,
    folder: str | Path | None,
    most: int | None,
    resume: bool,
    progress: bool,
    stop_after: float | None,
) -> list[Concept]:
    """Train packs of subjects, one after another, and write a folder for each concept.

    Args:
        opened: attaches a pack to the base for the length of a `with`; gives its task, and what gives its concepts.
        finished: what a folder holds of a subject, if it was learned from the same with the same settings.
        most: subjects in a pack; None: all, or none of them.
    """
    names = [subject.name for subject in subjects]
    if getattr(settings, "track_collapse", 0):
        raise ConfigurationError("track_collapse follows the learning of one subject: learn it alone, or leave it out")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigurationError(f"two subjects are called {listed(twice)}: give their folders different names")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigurationError(
            "several subjects in one batch are learned by one process, each with random numbers of its own: start it "
            "without torchrun, or learn one after another"
        )
    with ExitStack() as stack:
        if folder is None:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="thisness-"))) / "concepts"
        else:
            place = Path(folder)
        training = place.with_name(place.name + ".training")

        def finished_ones() -> dict[str, Concept]:
            if not resume or folder is None:
                return {}
            found = {subject.name: finished(place / subject.name, subject) for subject in subjects}
            return {name: concept for name, concept in found.items() if concept is not None}

        if len(done := finished_ones()) < len(subjects):
            stack.enter_context(learning_in(training))
            done = finished_ones()  # another process may have been at work until now
        for name in names:
            if name not in done:
                check_replaceable(place / name)  # now, not after minutes of work
        while len(done) < len(subjects):
            members = _members(subjects, done, training if resume else None, most)
            made = _train(opened, members, base, settings, training, resume, progress, stop_after)
            for concept in made:
                if folder is not None:
                    concept.save(place / concept.name, extra=partial(_records_of, training, concept.name))
                done[concept.name] = concept
            tidy(training)
        return [done[name] for name in names]


def _members(
    subjects: Sequence[Subject], done: Mapping[str, Concept], training: Path | None, most: int | None
) -> list[Subject]:
    """The subjects of the next pack: those of one that was cut short, or the next that are not done.

    Raises:
        ConfigurationError: one was cut short that has other subjects.
    """
    if most is None:
        return list(subjects)
    if training is not None and (training / "run.json").is_file():
        try:
            begun = list(json.loads((training / "run.json").read_text(encoding="utf-8"))["settings"]["subjects"])
        except (ValueError, KeyError, TypeError):
            begun = []  # the loop says what is wrong with it
        missing = [name for name in begun if name not in {subject.name for subject in subjects}]
        raise_all(
            [f"{training} holds learning cut short of {listed(begun)}, and {listed(missing)} is not given now: "
             "give the same folders to go on, another --out, or --fresh to start anew"] if missing else []
        )  # fmt: skip
        if begun:
            return [subject for subject in subjects if subject.name in begun]
    return [subject for subject in subjects if subject.name not in done][:most]


def _train(
    opened: Opened, members: Sequence[Subject], base: Base, settings: Any, training: Path, resume: bool,
    progress: bool, stop_after: float | None,
) -> list[Concept]:  # fmt: skip
    if settings.optimizer == "prodigy":
        raise ConfigurationError(
            "optimizer=prodigy finds one learning rate for all that is trained together, so subjects would depend on "
            "each other: learn them one at a time, or leave it out"
        )
    check_optimizer(settings.optimizer, base.device)
    with prepared_for_training(base, settings.checkpointing), opened(members) as (task, concepts):
        config = settings.loop(precision_for(settings.precision, base.device))
        result = train(
            task, config, training, resume=resume, progress=progress, stop_after=stop_after, device=base.device
        )
        if not result.finished:
            raise Stopped(
                f"stopped by {result.stopped_by} at step {result.steps} of {settings.steps}: "
                "the same command goes on from there"
            )
        take_average(task)
        said = Progress(task.name, result.steps, result.steps, progress)
        said.say(f"{result.steps / max(result.seconds, 1e-9):.2f} steps/s for each of {len(members)} subjects")
        said.close()
        return concepts()


def _records_of(training: Path, name: str, building: Path) -> None:
    """A subject's own log and previews go with its concept."""
    import shutil

    lines = []
    log = training / "log.jsonl"
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else []:
        entry = json.loads(line)
        if name in entry:
            kept = {key: entry[key] for key in ("step", "seconds", "lr") if key in entry}
            lines.append(json.dumps({**kept, "loss": entry[name]}) + "\n")
    if lines:
        write_text(building / "log.jsonl", "".join(lines))
    if (training / "previews" / name).is_dir():
        shutil.copytree(training / "previews" / name, building / "previews")
