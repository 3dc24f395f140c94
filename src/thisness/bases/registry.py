"""The models known by name, and what is known of them: `registry.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from ..errors import ConfigurationError


@dataclass(frozen=True)
class Facts:
    """What is known of a model before it is loaded.

    Attributes:
        name: its short name.
        family: the key of its family of models, as in `loading.FAMILIES`.
        hub: its id on the hub, or "" where it ships with the package.
        folder: its folder inside the package, or "".
        aliases: other short names.
        gone: hub ids that held it once, each with what became of it.
        resolution: side in pixels that it was trained at.
        prediction_type: "epsilon", "v_prediction" or "flow_prediction".
        schedule: its noise schedule, in words.
        steps, guidance: what pictures are made with unless told otherwise.
        licence: of its weights.
        notes: anything that its user should know.
    """

    name: str
    family: str
    hub: str = ""
    folder: str = ""
    aliases: tuple[str, ...] = ()
    gone: Mapping[str, str] = field(default_factory=dict)
    resolution: int | None = None
    prediction_type: str | None = None
    schedule: str = ""
    steps: int = 50
    guidance: float = 7.5
    licence: str = ""
    notes: str = ""

    def check(self, resolution: int, prediction_type: str) -> None:
        """Compare with the model that was loaded.

        Raises:
            ConfigurationError: it is not what goes by this name.
        """
        if self.prediction_type not in (None, prediction_type) or self.resolution not in (None, resolution):
            raise ConfigurationError(
                f"{self.name} should predict {self.prediction_type} at {self.resolution} px, but what was loaded "
                f"predicts {prediction_type} at {resolution} px: its files are of another model, fetch them again"
            )


@cache
def known() -> dict[str, Facts]:
    """Every registered model by its short name."""
    data: dict[str, dict[str, Any]] = json.loads(
        resources.files(__package__).joinpath("registry.json").read_text(encoding="utf-8")
    )
    for entry in data.values():
        entry["aliases"] = tuple(entry["aliases"])
    return {name: Facts(name=name, **entry) for name, entry in data.items()}


def find(name: str) -> Facts | None:
    """The registered model of a short name, an alias or a hub id; None where there is none. Case does not matter."""
    wanted = name.lower()
    for facts in known().values():
        names = (facts.name, *facts.aliases, facts.hub, *facts.gone)
        if wanted in (each.lower() for each in names if each):
            return facts
    return None
