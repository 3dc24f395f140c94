"""How a recipe comes to know its subjects: the one seam at which methods of another kind fit in.

A method that learns (everything that `methods.learn` knows) is a `Learned`. One that works in another way, as those
that read the reference pictures at every generation, sets `way = ITS_WAY` on its registered class.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from ..bases import Base
from ..concept import Concept
from ..methods import learn, method_named
from ..methods.registry import settings_for
from ..methods.zero_shot import ZeroShotMethod, weights_hash
from ..subject import Subject
from .recipes import NamedRecipe

ConceptOf = Callable[[str], Concept]


class Way(ABC):
    """How one recipe knows its subjects.

    Attributes:
        prepares: whether something is computed once for each subject and kept in a folder.
    """

    prepares: ClassVar[bool] = False

    def __init__(self, named: NamedRecipe) -> None:
        self.named = named

    def settings(self, base: Base) -> dict[str, Any] | None:
        """What decides what is known of a subject, as JSON data: it enters the pictures' ids. None: nothing does.

        Raises:
            ConfigurationError: settings that do not exist or do not fit.
        """
        return None

    def keeps(self, base: Base) -> frozenset[str]:
        """The attributes of references that it can keep on demand ("pose", "background")."""
        return frozenset()

    def shared(self, base: Base, subject: Subject) -> str | None:
        """A name for what several subjects share and `share` computes once, as class pictures; None for nothing."""
        return None

    def share(self, base: Base, subject: Subject) -> None:  # noqa: B027
        """Compute it, where it is not kept yet; nothing by default."""

    def prepare(self, subject: Subject, base: Base, folder: Path, stop_after: float | None) -> None:  # noqa: B027
        """Compute what is kept, resumable; returns at once where it is there.

        Raises:
            Stopped: by a signal or after `stop_after` seconds.
        """

    @abstractmethod
    def keywords(self, base: Base, subjects: Mapping[str, Subject], concept_of: ConceptOf) -> dict[str, Any]:
        """What `generate` is given beside the sentence.

        Args:
            base: the model.
            subjects: by placeholder.
            concept_of: the concept kept for the subject of a name, loaded and checked.
        """


class Plain(Way):
    """The base alone: the class noun stands for the subject."""

    def keywords(self, base: Base, subjects: Mapping[str, Subject], concept_of: ConceptOf) -> dict[str, Any]:
        return {"subject": dict(subjects)} if subjects else {}


class Learned(Way):
    """By `methods.learn`: a concept, learned once for each subject."""

    prepares = True

    def __init__(self, named: NamedRecipe) -> None:
        super().__init__(named)
        assert named.recipe.method is not None
        self.method: str = named.recipe.method.name
        self.given: dict[str, Any] = dict(named.recipe.method.values)

    def _full(self, base: Base) -> Any:
        return settings_for(method_named(self.method), base, self.given, self.named.preset)

    def settings(self, base: Base) -> dict[str, Any]:
        chosen, full = method_named(self.method), self._full(base)
        found = dict(chosen.decisive(full))
        if issubclass(chosen, ZeroShotMethod):  # other weights of its own are another recipe
            found["weights_hash"] = weights_hash(self.method, str(getattr(full, "weights", "") or ""))
        return json.loads(json.dumps(found))

    def keeps(self, base: Base) -> frozenset[str]:
        return method_named(self.method).can_keep(self._full(base))

    def shared(self, base: Base, subject: Subject) -> str | None:
        full = self._full(base)
        count = getattr(full, "prior_pictures", 0)
        return f"{count} pictures of {subject.noun!r}, {full.prior_steps} steps" if count else None

    def share(self, base: Base, subject: Subject) -> None:
        from ..methods.tuning import prior_latents

        prior_latents(base, subject, self._full(base), False)

    def prepare(self, subject: Subject, base: Base, folder: Path, stop_after: float | None) -> None:
        learn(
            self.method, subject, base, folder=folder, progress=False, stop_after=stop_after,
            preset=self.named.preset, **self.given,
        )  # fmt: skip

    def keywords(self, base: Base, subjects: Mapping[str, Subject], concept_of: ConceptOf) -> dict[str, Any]:
        return {"concept": {slot: concept_of(subject.name) for slot, subject in subjects.items()}} if subjects else {}


def way_of(named: NamedRecipe) -> Way:
    """How a recipe knows its subjects."""
    if named.recipe.method is None:
        return Plain(named)
    way = getattr(method_named(named.recipe.method.name), "way", Learned)
    return way(named)
