"""Which methods there are, and the one call that learns by any of them."""

from __future__ import annotations

import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from ..bases import Base
from ..concept import MANIFEST, Concept, ConceptHandler, register_handler
from ..errors import ArtefactError, ConfigurationError, ThisnessError, nearest
from ..files import check_replaceable
from ..files.locks import locked
from ..recipe import build_settings
from ..subject import Subject
from ..training.parallel import Parallel

METHODS: dict[str, type[Method]] = {}
LOCK = ".learn.lock"
SMALL = 50_000_000  # parameters of a denoiser below which the preset "small" is the default


class Stopped(ThisnessError):
    """Learning was cut short by a signal or by time; the same call goes on."""

    exit_code = 130


class Method(ABC):
    """A way to learn a subject.

    Attributes:
        name: given by `register_method`.
        Settings: a frozen dataclass; fields may carry metadata "help". Its defaults are those for full-size models.
        presets: named changes of those defaults; "small" is taken for small models unless another is named.
        handler: attaches and exports what the method learned.
    """

    name: ClassVar[str]
    Settings: ClassVar[type]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    handler: ClassVar[ConceptHandler]

    @staticmethod
    def decisive(settings: Any) -> dict[str, Any]:
        """The settings that decide the result, as JSON data; they are in the concept's manifest."""
        return asdict(settings)

    @staticmethod
    def can_keep(settings: Any) -> frozenset[str]:
        """What of a reference can be kept on demand ("pose", "background"): `Concept.keeps` has words for it."""
        return frozenset()

    @abstractmethod
    def learn(
        self, subject: Subject, base: Base, settings: Any, folder: Path, *, resume: bool, progress: bool,
        stop_after: float | None,
    ) -> Concept:  # fmt: skip
        """Learn, with everything needed to go on kept in `folder`. The base is as before afterwards.

        Raises:
            Stopped: a signal, or `stop_after` seconds have passed.
        """


Registered = TypeVar("Registered", bound=type[Method])


def register_method(name: str) -> Callable[[Registered], Registered]:
    """Make a method known under a name. Its class must have Settings and a handler."""

    def register(method: Registered) -> Registered:
        if name in METHODS:
            raise ConfigurationError(f"there are two methods called {name!r}")
        for preset, changes in method.presets.items():
            build_settings(changes, method.Settings, f"{name}, preset {preset}")
        method.name = name
        METHODS[name] = method
        register_handler(name, method.handler)
        return method

    return register


def method_named(name: str) -> type[Method]:
    """The method of a name.

    Raises:
        ConfigurationError: there is none; the nearest name is given.
    """
    if name not in METHODS:
        raise ConfigurationError(f"no method {name!r}{nearest(name, METHODS)}: known are {', '.join(METHODS)}")
    return METHODS[name]


def settings_for(method: type[Method], base: Base, given: Mapping[str, Any], preset: str | None = None) -> Any:
    """A method's settings: the class's defaults, over them the preset's, over them those given.

    Raises:
        ConfigurationError: an unknown preset or setting, or values that do not fit; all of it at once.
    """
    if preset is not None and preset not in (*method.presets, "default"):
        known = ["default", *method.presets]
        raise ConfigurationError(f"{method.name} has no preset {preset!r}{nearest(preset, known)}: {', '.join(known)}")
    if preset is None:
        size = sum(parameter.numel() for parameter in base.denoiser.parameters())
        preset = "small" if size < SMALL and "small" in method.presets else "default"
    return build_settings({**method.presets.get(preset, {}), **given}, method.Settings, method.name)


def learn(
    method: str,
    subject: Subject,
    base: Base,
    *,
    folder: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
    stop_after: float | None = None,
    preset: str | None = None,
    **settings: Any,
) -> Concept:
    """Learn a subject.

    Args:
        method: a registered name: "dreambooth-lora", "textual-inversion".
        subject: its pictures.
        base: the model to learn on; as before afterwards, to the bit.
        folder: where the concept is written; beside it, FOLDER.training holds what is needed to go on after a stop.
            None writes nothing.
        resume: return what the folder holds if it was learned from the same with the same settings, or go on where a
            call was cut short; False starts anew.
        progress: say how it goes.
        stop_after: seconds after which to stop; the same call goes on.
        preset: a named set of settings; by default the one for the base's size.
        settings: any setting of the method.

    Raises:
        ConfigurationError: unknown method, preset or settings; or the folder holds a run with other settings.
        ArtefactError: the folder holds something that thisness did not write.
        UserError: another process learns there.
        Stopped: by a signal or by `stop_after`.
    """
    chosen = method_named(method)
    full = settings_for(chosen, base, settings, preset)
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="thisness-") as temporary:
            return chosen().learn(
                subject, base, full, Path(temporary), resume=False, progress=progress, stop_after=stop_after
            )
    folder = Path(folder)
    if resume and (done := learned_already(folder, chosen, subject, base, full)) is not None:
        return done
    check_replaceable(folder)  # now, not after minutes of work
    training, parallel = folder.with_name(folder.name + ".training"), Parallel()
    with learning_in(training, parallel.first):
        if resume and (done := learned_already(folder, chosen, subject, base, full)) is not None:
            return done  # by a process that was done just now
        concept = chosen().learn(subject, base, full, training, resume=resume, progress=progress, stop_after=stop_after)
        if parallel.first:
            concept.save(folder, extra=lambda building: _keep_records(training, building))
            tidy(training)
        parallel.wait()
    return concept


@contextmanager
def learning_in(training: Path, first: bool = True) -> Iterator[None]:
    """The one process that may learn there; of several that learn together, the first.

    Raises:
        UserError: another one does.
    """
    if not first:
        yield
        return
    taken = f"another `learn` is at work in {training}: wait for it, stop it, or name another --out"
    with locked(training / LOCK, taken):
        try:
            yield
        finally:
            if [each.name for each in training.iterdir()] == [LOCK]:
                (training / LOCK).unlink()
                training.rmdir()


def learned_already(
    folder: Path, method: type[Method], subject: Subject, base: Base, settings: Any, **more: Any
) -> Concept | None:
    """What an earlier call wrote, if it was asked for the very same; `more` stands among its settings, too."""
    if not (folder / MANIFEST).is_file():
        return None
    try:
        concept = Concept.load(folder)
    except ArtefactError:
        return None
    found = concept.manifest
    same = (
        (found["method"], found["name"], found["noun"]) == (method.name, subject.name, subject.noun)
        and found["subject"]["hash"] == subject.hash
        and found["base"]["signature"] == base.signature
        and found["settings"] == json.loads(json.dumps({**method.decisive(settings), **more}))
    )
    return concept if same else None


def _keep_records(training: Path, building: Path) -> None:
    """The log, the previews and what was recorded of semantic collapse go with the concept."""
    import shutil

    if (training / "log.jsonl").is_file():
        shutil.copyfile(training / "log.jsonl", building / "log.jsonl")
    for name in ("previews", "collapse", "tensorboard"):
        if (training / name).is_dir():
            shutil.copytree(training / name, building / name)


def tidy(training: Path) -> None:
    """Remove what was needed only to go on; whatever somebody else put there stays."""
    import shutil

    from ..training.checkpoint import remove_run

    remove_run(training)
    for name in ("previews", "checkpoints", "collapse", "tensorboard"):
        shutil.rmtree(training / name, ignore_errors=True)
    if training.is_dir() and not any(training.iterdir()):
        training.rmdir()
