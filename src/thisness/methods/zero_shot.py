"""Methods that know a subject from a look at its pictures: nothing is trained for it.

What was read becomes a `Concept` like any other: saved, attached, adjusted, benchmarked, replayed. The weights of the
method itself (its adapter) are not in the concept, which names them with their hash.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..bases import Base
from ..bases.locate import from_hub
from ..concept import Concept
from ..errors import ArtefactError, ConfigurationError, nearest
from ..files import load_tensors, read_json, sha256
from ..subject import Subject
from .registry import METHODS, Method, method_named, settings_for

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class ZeroShotMethod(Method):
    """A method whose `learn` is one look.

    Attributes:
        several: whether it reads more than one picture of a subject.
    """

    several: ClassVar[bool] = False

    @abstractmethod
    def read(self, subject: Subject, base: Base, settings: Any) -> Concept:
        """Read the pictures. The base is as before afterwards.

        Raises:
            ArtefactError: the method's weights are not there, or not for this base.
            ImageError: pictures that it cannot read.
        """

    def learn(
        self, subject: Subject, base: Base, settings: Any, folder: Path, *, resume: bool, progress: bool,
        stop_after: float | None,
    ) -> Concept:  # fmt: skip
        return self.read(subject, base, settings)


def zero_shot_methods() -> list[str]:
    """Names of those that are registered."""
    return [name for name, method in METHODS.items() if issubclass(method, ZeroShotMethod)]


def read_subject(
    method: str, subject: Subject, base: Base, *, preset: str | None = None, settings: Mapping[str, Any] | None = None
) -> Concept:
    """A concept from a look at a subject's pictures.

    Args:
        method: "ip-adapter", "elite" ...
        subject: its pictures; methods that read one picture read the first.
        base: the model to make pictures with.
        preset: a named set of settings; by default the one for the base's size.
        settings: any setting of the method.

    Raises:
        ConfigurationError: no such method, or one that has to learn; unknown settings.
        ArtefactError: the method's weights are not there, or not for this base.
    """
    names = zero_shot_methods()
    chosen = METHODS.get(method)
    if chosen is None and method not in METHODS:
        raise ConfigurationError(f"no method {method!r}{nearest(method, names)}: known are {', '.join(names)}")
    if chosen is None or not issubclass(chosen, ZeroShotMethod):
        raise ConfigurationError(
            f"{method} has to learn the subject first: thisness learn {method} PICTURES --noun {subject.noun}, then "
            f"--concept; without learning: {', '.join(names)}"
        )
    full = settings_for(method_named(method), base, settings or {}, preset)
    return chosen().read(subject, base, full)


@dataclass(frozen=True, eq=False)
class AdapterWeights:
    """What a zero-shot method was trained to.

    Attributes:
        name: as it is written down: the embedded one's name, or what the user gave.
        config: sizes, and what it was trained on: "method", "base" (signature of the base; absent where it is for a
            whole family).
        tensors: by name, float32.
        signature: SHA-256 of the file.
    """

    name: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    signature: str


def open_weights(method: str, given: str, base: Base, expect: str = "") -> AdapterWeights:
    """The weights of a method for a base.

    Args:
        method: its registered name.
        given: a local folder (config.json, model.safetensors) or a hub id; "" for the embedded ones.
        base: that they must be for.
        expect: the signature that they must have; "" takes any.

    Raises:
        ArtefactError: not there, of another method, for another base, or other ones than expected.
    """
    folder = _folder(method, given)
    found = _open(str(folder), (folder / WEIGHTS).stat().st_mtime_ns, given or method)
    if found.config.get("method") != method:
        raise ArtefactError(f"{found.name}: these weights are for {found.config.get('method')!r}, not for {method!r}")
    made_for = found.config.get("base")
    if made_for and made_for != base.signature:
        raise ArtefactError(
            f"the weights of {method} ({found.name}) were trained on {found.config.get('base_name', 'another base')} "
            f"with the signature {made_for}, and {base.name!r} has {base.signature}: use that base, or give weights "
            "for this one (weights=FOLDER)"
        )
    if expect and found.signature != expect:
        raise ArtefactError(
            f"the concept was read with other weights of {method} than those of {found.name!r}: read its pictures anew"
        )
    return found


def embedded_folder(method: str) -> Path:
    """Where the package keeps the weights of a method."""
    return Path(str(resources.files("thisness").joinpath("playroom", "weights", method)))


def weights_hash(method: str, given: str = "") -> str:
    """SHA-256 of the weights that a method would read with, where they lie on this machine; else ""."""
    path = Path(given).expanduser() if given else embedded_folder(method)
    file = path / WEIGHTS if path.is_dir() else path
    return sha256(file) if file.is_file() else ""


def _folder(method: str, given: str) -> Path:
    if not given:
        folder = embedded_folder(method)
        if not (folder / CONFIG).is_file():
            raise ArtefactError(
                f"{method} has no embedded weights in this installation: give some (weights=FOLDER or hub id), or "
                f"train them with `thisness playroom train {method}`"
            )
        return folder
    path = Path(given).expanduser()
    folder = path if path.is_dir() or given.startswith((".", "/", "~")) else from_hub(given, (CONFIG, WEIGHTS))
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise ArtefactError(f"{given}: {' and '.join(missing)} missing: expected a folder of {method}'s weights")
    return folder


@lru_cache(maxsize=4)
def _open(folder: str, changed: int, name: str) -> AdapterWeights:
    file = Path(folder) / WEIGHTS
    tensors = {key: tensor.float() for key, tensor in load_tensors(file).items()}
    config = read_json(Path(folder) / CONFIG)
    return AdapterWeights(name, config if isinstance(config, dict) else {}, tensors, sha256(file))
