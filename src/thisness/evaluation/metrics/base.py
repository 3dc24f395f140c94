"""What a metric is, what it works with, and which there are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import numpy as np

from ...errors import ConfigurationError
from ..cache import FeatureCache
from ..encoders import Encoder, open_encoder
from ..items import Item, Picture
from .views import View

if TYPE_CHECKING:
    from PIL import Image

METRICS: dict[str, type[Metric]] = {}


class Masker(Protocol):
    """Finds the subject in a made picture, which has no mask of its own.

    Attributes:
        identity: JSON: what decides its masks.
    """

    identity: Mapping[str, Any]

    def __call__(self, image: Image.Image, noun: str) -> np.ndarray | None:
        """A mask (H, W) float32 in [0, 1] of the picture's size; None where it finds nothing."""


class Tools:
    """What metrics share: the device, vectors that are computed once, encoders that are open once.

    Args:
        device: where encoders run.
        cache: of vectors; a new one in memory where None.
        masker: for made pictures without a mask; None leaves them without.
        batch_size: pictures encoded at once.
    """

    def __init__(
        self, device: str = "cpu", cache: FeatureCache | None = None, masker: Masker | None = None,
        batch_size: int = 16,
    ) -> None:  # fmt: skip
        self.device, self.masker, self.batch_size = device, masker, batch_size
        self.cache = cache or FeatureCache()
        self._encoders: dict[tuple[Any, ...], Encoder] = {}
        self._masks: dict[tuple[str, str], np.ndarray | None] = {}

    def encoder(self, name: str, pooling: str | None = None, revision: str | None = None) -> Encoder:
        key = (name, pooling, revision)
        if key not in self._encoders:
            self._encoders[key] = open_encoder(
                name, pooling=pooling, revision=revision, device=self.device, batch_size=self.batch_size
            )
        return self._encoders[key]

    def directions(self, encoder: Encoder, views: Iterable[View | None]) -> dict[str, np.ndarray]:
        """Vectors of length 1, float64 (d,), by hash of the view."""
        by_hash = {view.hash: view for view in views if view is not None}
        if not by_hash:
            return {}
        vectors = self.cache.get(encoder, list(by_hash.values())).numpy()
        return dict(zip(by_hash, unit(vectors), strict=True))

    def made(self, item: Item) -> Picture:
        """The picture that is scored, with the masker's mask where it has none."""
        picture = item.picture
        if picture.mask is not None or self.masker is None:
            return picture
        key = (picture.hash, item.noun)
        if key not in self._masks:
            self._masks[key] = self.masker(picture.image, item.noun)
        return Picture(picture.image, self._masks[key])


class Metric(ABC):
    """One column of numbers about pictures.

    Attributes:
        Settings: a frozen dataclass of its settings.
        better: "higher", "lower", or "" where neither is better by itself.
        name: of the column.
        identity: JSON: all that decides a value; stored with the values.
    """

    Settings: ClassVar[type]
    kind: ClassVar[str]
    better: ClassVar[str] = "higher"
    formula: ClassVar[str]

    def __init__(self, name: str, settings: Any, tools: Tools) -> None:
        self.name, self.settings, self.tools = name, settings, tools
        self.identity: dict[str, Any] = {
            "metric": self.kind,
            "formula": self.formula,
            "better": self.better,
            **{key: value for key, value in asdict(settings).items() if key not in ("encoder", "pooling", "revision")},
        }

    @abstractmethod
    def score(self, items: Sequence[Item]) -> list[float | None]:
        """A value for each item, None where the metric says nothing about it. All seeds of one (recipe, subject, case)
        must be in the same call."""

    def check(self, sentences: Sequence[str]) -> None:  # noqa: B027 - most metrics refuse nothing
        """Refuse sentences that could not be scored, before any picture is made.

        Raises:
            PromptError: one is too long; what would be cut is shown.
        """


@dataclass(frozen=True)
class WithEncoder:
    """Settings of what compares vectors.

    Args:
        encoder: a name of encoders.json, a folder, or a hub id.
        pooling: how tokens become one vector; None for what is usual for the encoder.
        revision: of a hub id.
    """

    encoder: str
    pooling: str | None = None
    revision: str | None = None


class EncoderMetric(Metric):
    """A metric that compares vectors of one encoder."""

    uses_made_mask: bool = False

    def __init__(self, name: str, settings: Any, tools: Tools) -> None:
        super().__init__(name, settings, tools)
        self.encoder = tools.encoder(settings.encoder, settings.pooling, settings.revision)
        self.identity["encoder"] = dict(self.encoder.identity)
        if self.uses_made_mask and tools.masker is not None:
            self.identity["masker"] = dict(tools.masker.identity)


Registered = TypeVar("Registered", bound=type[Metric])


def register_metric(name: str) -> Callable[[Registered], Registered]:
    """Make a metric known under a name."""

    def register(metric: Registered) -> Registered:
        if name in METRICS:
            raise ConfigurationError(f"there are two metrics called {name!r}")
        metric.kind = name
        METRICS[name] = metric
        return metric

    return register


def unit(vectors: np.ndarray) -> np.ndarray:
    """(n, d) in float64, each of length 1; zeros stay zeros."""
    wide = np.asarray(vectors, np.float64)
    return wide / np.maximum(np.linalg.norm(wide, axis=-1, keepdims=True), 1e-12)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of two vectors of length 1. Rounding beyond 1 is taken off; nothing else is."""
    return float(np.clip(np.sum(a * b), -1.0, 1.0))


def aggregated(values: Sequence[float], how: str) -> float | None:
    """One value of those over references: "mean", "best" (the highest), "first"; None for none."""
    if not values:
        return None
    return {"mean": float(np.mean(values)), "best": float(np.max(values)), "first": float(values[0])}[how]
