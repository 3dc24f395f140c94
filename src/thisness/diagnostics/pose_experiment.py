"""The pictures that pose bias is measured on: of the subject and of the plain base, with the words and without them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from ..bases import Base
from ..concept import Concept
from ..errors import ConfigurationError, PromptError
from ..files import write_json
from ..generation import Generation, generate
from ..prompt import Prompt
from ..sampling import SamplingOptions
from ..subject import Subject
from .pose_bias import FEWEST, PoseBias, Poses, compare_poses, measure
from .pose_reading import asked_pose, read_poses

CONTROLS = 16
KINDS = {
    "generated": "the subject, with the words",
    "plain": "the plain base, with the words",
    "neutral": "the subject, without the words",
    "plain-neutral": "the plain base, without the words",
}
"""The four sets of pictures; also the names of their folders."""


class ImageEncoder(Protocol):
    """What is needed of an encoder."""

    identity: dict[str, Any]

    def images(self, images: list[Image.Image]) -> Tensor:
        """(n, d) float32."""
        ...


@dataclass(frozen=True, eq=False)
class PoseDiagnosis:
    """What was made and what was measured.

    Args:
        bias: the numbers.
        sets: pictures by their kind, see `KINDS`.
        subject: with its references.
        prompt, neutral: the sentences with their placeholder.
        encoder: identity of the encoder.
    """

    bias: PoseBias
    sets: dict[str, Generation]
    subject: Subject
    prompt: str
    neutral: str
    encoder: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        made = self.sets["generated"].record
        return {
            "format": "thisness-pose-bias",
            "version": 1,
            "prompt": self.prompt,
            "neutral": self.neutral,
            "base": made["base"],
            "concepts": made["concepts"],
            "subject": {"name": self.subject.name, "noun": self.subject.noun, "hash": self.subject.hash},
            "references": list(self.subject.files),
            "seeds": {kind: each.record["seeds"] for kind, each in self.sets.items()},
            "encoder": self.encoder,
            "features": "of unit length; the plane: PCA of generated, plain and reference pictures, each counted once",
            **self.bias.to_dict(),
        }

    def save(self, folder: Path) -> list[Path]:
        """Write `pose-bias.png`, `pose-bias.json`, and each set of pictures in a folder of its own.

        Returns:
            The paths of the two files.
        """
        from ..images import save_png
        from .pose_sheet import draw

        for kind, each in self.sets.items():
            each.save(folder / kind)
        picture, numbers = folder / "pose-bias.png", folder / "pose-bias.json"
        save_png(draw(self), picture)
        write_json(numbers, self.to_dict())
        return [picture, numbers]


def diagnose_pose_bias(
    base: Base,
    prompt: str,
    subject: Subject,
    encoder: ImageEncoder,
    *,
    concept: Concept | None = None,
    adjust: Sequence[Any] = (),
    interventions: Sequence[Any] = (),
    neutral: str = "",
    seeds: Sequence[int] = tuple(range(32)),
    controls: int = CONTROLS,
    shows_asked: Collection[str] = (),
    reference_poses: Sequence[str] = (),
    read: bool = False,
    options: SamplingOptions | None = None,
    batch_size: int = 4,
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> PoseDiagnosis:
    """Make the four sets of pictures and measure.

    The plain base has seeds of its own: pictures of one seed share a composition, which would make them near each other
    for no reason that matters here.

    Args:
        base: the model.
        prompt: with one placeholder, asking for a pose: "a {subject} sleeping".
        subject: its references; its noun is what the plain base draws.
        encoder: that sees poses; one that was trained to look through them, as an identity encoder, is blind here.
        concept: what was learned; None looks at the plain base itself, whose answer is near 1.
        adjust, interventions: what the subject's pictures are made with, as for `generate`; not the plain base's.
        neutral: the sentence without the pose; by default it ends with the placeholder.
        seeds: of the generated pictures, 4 at least.
        controls: pictures in each of the other three sets, 4 at least and at most as many as seeds.
        shows_asked: names of reference files that show the asked pose already.
        reference_poses: what each reference shows in the Playroom's words; ().
        read: read poses from the pictures by the embedded judge, where references' poses are given.
        options, batch_size: as for `generate`.
        progress: bars on stderr.
        say: called with one line before each set.

    Raises:
        UserError: the prompt, the numbers or the names do not fit; before anything is computed.
    """
    seeds = list(dict.fromkeys(int(seed) for seed in seeds))
    neutral = check_question(prompt, neutral, seeds, controls)
    asked = asked_pose(prompt) if reference_poses else ""
    tempting = _tempting(subject.files, shows_asked, reference_poses, asked)
    controls = min(controls, len(seeds))
    plan = {
        "generated": (prompt, concept, seeds),
        "plain": (prompt, None, _other_seeds(seeds, controls)),
        "neutral": (neutral, concept, seeds[:controls]),
        "plain-neutral": (neutral, None, _other_seeds(seeds, controls)),
    }
    sets: dict[str, Generation] = {}
    for number, (kind, (sentence, learned, chosen)) in enumerate(plan.items(), 1):
        say(f"{number}/{len(plan)} {len(chosen)} pictures of {KINDS[kind]}: {sentence}")
        sets[kind] = generate(
            base,
            sentence,
            subject=subject,
            concept=learned,
            adjust=adjust if learned is not None else (),
            interventions=interventions if learned is not None else (),
            seeds=chosen,
            options=options,
            batch_size=batch_size,
            progress=progress,
        )
    features = {kind: _features(encoder, each.images) for kind, each in sets.items()}
    poses: Poses | None = None
    if read and asked and reference_poses:
        poses = compare_poses(asked, reference_poses, *(read_poses(each.images) for each in sets.values()))
    bias = measure(
        features["generated"],
        _features(encoder, list(subject.images)),
        features["plain"],
        neutral=features["neutral"],
        plain_neutral=features["plain-neutral"],
        tempting=tempting,
        poses=poses,
    )
    return PoseDiagnosis(bias, sets, subject, prompt, neutral, dict(encoder.identity))


def neutral_of(prompt: str) -> str:
    """The sentence up to its placeholder: "a {subject} sleeping" -> "a {subject}"."""
    (slot,) = Prompt(prompt).slots
    return prompt[: prompt.rindex(f"{{{slot}}}")] + f"{{{slot}}}"


def check_question(prompt: str, neutral: str, seeds: Sequence[int], controls: int) -> str:
    """The neutral sentence, when prompt and numbers fit.

    Raises:
        UserError: they do not.
    """
    slots = Prompt(prompt).slots
    if len(slots) != 1:
        raise PromptError(
            f'the prompt {prompt[:200]!r} has {len(slots)} placeholders: write one, "a {{subject}} sleeping"'
        )
    neutral = neutral or neutral_of(prompt)
    if Prompt(neutral).slots != slots:
        raise PromptError(f"the neutral sentence {neutral[:200]!r} must have the placeholder {{{slots[0]}}} too")
    if " ".join(neutral.split()) == " ".join(prompt.split()):
        raise PromptError(f"{prompt[:200]!r} is also the neutral sentence: give one without the pose (--neutral)")
    if min(len(seeds), controls) < FEWEST:
        raise ConfigurationError(
            f"{len(seeds)} seeds and {controls} controls: {FEWEST} of each are needed, 32 and 16 are usual"
        )
    return neutral


def _tempting(
    files: Sequence[str], shows_asked: Collection[str], poses: Sequence[str], asked: str
) -> tuple[bool, ...] | None:
    """Which references show another pose than the asked one; None: nobody knows, so all may."""
    if unknown := [name for name in shows_asked if name not in files]:
        raise ConfigurationError(f"{', '.join(unknown)}: no such reference picture: there are {', '.join(files)}")
    if shows_asked:
        return tuple(name not in shows_asked for name in files)
    return tuple(pose != asked for pose in poses) if poses and asked else None


def _other_seeds(seeds: Collection[int], count: int) -> list[int]:
    """The first numbers that are not among them."""
    taken = set(seeds)
    return [seed for seed in range(len(taken) + count) if seed not in taken][:count]


def _features(encoder: ImageEncoder, images: list[Image.Image]) -> np.ndarray:
    return encoder.images(images).double().cpu().numpy()
