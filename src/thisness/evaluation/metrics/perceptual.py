"""LPIPS and DreamSim, where they are installed: distances by packages of their authors.

Both need torchvision, which the pinned CPU build of torch cannot have beside it (`docs/metrics.md`), and fetch weights
on their own. They are therefore extras, imported when asked for.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import numpy as np
from PIL import Image

from ...errors import ConfigurationError
from ..items import Item, Picture
from .base import Metric, Tools, aggregated, register_metric
from .pictures import References
from .spread import seeds_together

Against = Literal["references", "seeds", "baseline"]


@dataclass(frozen=True)
class PerceptualSettings:
    """What a picture is compared with.

    Args:
        against: the "references", the other "seeds" of its case (diversity), or its "baseline" (drift).
        references: how distances over references become one; "best" is the nearest.
    """

    against: Against = "references"
    references: References = "mean"


@dataclass(frozen=True)
class LpipsSettings(PerceptualSettings):
    """Beside the others.

    Args:
        net: whose features: "alex", "vgg", "squeeze".
        size: side to which pictures are brought (bicubic), in pixels.
    """

    net: Literal["alex", "vgg", "squeeze"] = "alex"
    size: int = 256


@dataclass(frozen=True)
class DreamSimSettings(PerceptualSettings):
    """Beside the others.

    Args:
        model: of the package's `dreamsim_type`.
    """

    model: str = "ensemble"


class PerceptualMetric(Metric):
    """Each pair of pictures once."""

    better = "lower"
    package: str

    def __init__(self, name: str, settings: Any, tools: Tools) -> None:
        super().__init__(name, settings, tools)
        if settings.against == "seeds":
            self.identity["better"] = "higher"
        try:
            self._module: Any = import_module(self.package)
        except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision of another build
            line = (str(error).splitlines() or [type(error).__name__])[0][:120]
            raise ConfigurationError(
                f"{name} needs the package {self.package} ({line}): pip install 'thisness[perceptual]' in an "
                "environment with torchvision (see docs/metrics.md), or leave it out"
            ) from error
        self.identity["package"] = f"{self.package} {getattr(self._module, '__version__', '')}".strip()
        self._distance: Callable[[Picture, Picture], float] | None = None
        self._known: dict[tuple[str, str], float] = {}

    @abstractmethod
    def opened(self) -> Callable[[Picture, Picture], float]:
        """Fetch the weights; the distance of two pictures."""

    def score(self, items: Sequence[Item]) -> list[float | None]:
        against, how = self.settings.against, self.settings.references
        values: list[float | None] = [None] * len(items)
        if against == "seeds":
            for group in seeds_together(items):
                for at in group:
                    others = [self._between(items[at].picture, items[b].picture) for b in group if b != at]
                    values[at] = aggregated(others, "mean")
            return values
        for at, item in enumerate(items):
            others_of = item.references if against == "references" else (item.baseline,) if item.baseline else ()
            distances = [-self._between(item.picture, each) for each in others_of]
            value = aggregated(distances, how)  # the best is the nearest
            values[at] = None if value is None else -value
        return values

    def _between(self, a: Picture, b: Picture) -> float:
        first, second = sorted((a, b), key=lambda picture: picture.hash)
        key = (first.hash, second.hash)
        if key not in self._known:
            self._distance = self._distance or self.opened()
            self._known[key] = self._distance(first, second)
        return self._known[key]


@register_metric("lpips")
class Lpips(PerceptualMetric):
    """Zhang et al., arXiv 1801.03924; against seeds: DreamBooth's DIV."""

    Settings = LpipsSettings
    package = "lpips"
    formula = "LPIPS(made, other)"

    def opened(self) -> Callable[[Picture, Picture], float]:
        import torch

        model = self._module.LPIPS(net=self.settings.net, verbose=False).to(self.tools.device).eval()
        side = (self.settings.size, self.settings.size)

        def prepared(picture: Picture) -> Any:
            scaled = picture.image.convert("RGB").resize(side, Image.Resampling.BICUBIC)
            pixels = torch.from_numpy(np.array(scaled)).permute(2, 0, 1)[None].float().div_(127.5).sub_(1)
            return pixels.to(self.tools.device)

        @torch.no_grad()
        def distance(a: Picture, b: Picture) -> float:
            return float(model(prepared(a), prepared(b)))

        return distance


@register_metric("dreamsim")
class DreamSim(PerceptualMetric):
    """Fu et al., arXiv 2306.09344."""

    Settings = DreamSimSettings
    package = "dreamsim"
    formula = "DreamSim(made, other)"

    def opened(self) -> Callable[[Picture, Picture], float]:
        import torch

        device = self.tools.device
        model, prepare = self._module.dreamsim(pretrained=True, dreamsim_type=self.settings.model, device=device)

        @torch.no_grad()
        def distance(a: Picture, b: Picture) -> float:
            return float(model(prepare(a.image.convert("RGB")).to(device), prepare(b.image.convert("RGB")).to(device)))

        return distance
