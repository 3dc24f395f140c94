"""Pose bias: do pictures of a subject keep the pose of its reference pictures where the sentence asks for another?

After figure 2 of "Harmonizing Visual and Textual Embeddings for Zero-Shot Text-to-Image Customization" (arXiv
2403.14155): features of many pictures of one sentence and of the references, two principal components, the peaks of the
density. The figure is looked at; here are numbers beside it, of which each can be computed without any label:

    fit_plane, find_peaks    the plane, the peaks, how far each is from the nearest reference
    nearness                 how often a reference is nearer than as many of the plain base's pictures of the sentence
    answer                   how far the words move the pictures, measured by how far they move the plain base's

Nearness alone is no bias: a faithful picture of the subject is near its references too. The verdict needs the answer,
or poses that were read from the pictures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from ..errors import UserError
from .density import Density, Peak, find_peaks, fit_density
from .plane import Plane, fit_plane, unit

Kind = Literal["generated", "plain", "neutral", "plain_neutral"]
Verdict = Literal["pose bias", "words lost", "follows", "unclear"]
HALF = 0.5
RESAMPLES = 1000
FEWEST = 4  # pictures: below that neither a density nor an interval says anything
SIGNAL = 2.0  # times its own noise that the plain base's answer must reach, to measure by it


@dataclass(frozen=True)
class NearPeak:
    """A peak of the generated pictures, and the nearest reference that shows another pose than the asked one.

    Args:
        peak: in the plane.
        reference: its number.
        distance: to it, in spreads.
    """

    peak: Peak
    reference: int
    distance: float


@dataclass(frozen=True)
class Answer:
    """How far the words moved the pictures: 0 not at all, 1 as far as the plain base's.

    Args:
        value: may lie beyond both.
        low, high: 95 % interval, over the seeds of the generated pictures; the base's own movement is taken as known.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Poses:
    """Poses read from the pictures.

    Args:
        asked: by the sentence.
        references: what each reference shows.
        generated, plain: counts by pose.
        neutral, plain_neutral: the same for the pictures without the words; empty where those were not read.
        excess: share of the generated pictures in a reference's pose that was not asked, less the plain base's.
        low, high: 95 % interval of it.
    """

    asked: str
    references: tuple[str, ...]
    generated: Mapping[str, int]
    plain: Mapping[str, int]
    excess: float
    low: float
    high: float
    neutral: Mapping[str, int] = field(default_factory=dict)
    plain_neutral: Mapping[str, int] = field(default_factory=dict)

    @property
    def others(self) -> frozenset[str]:
        """Poses of the references that the sentence does not ask for."""
        return frozenset(self.references) - {self.asked}

    def share(self, which: Kind, poses: Sequence[str] | frozenset[str]) -> float:
        counts: Mapping[str, int] = getattr(self, which)
        return sum(counts.get(pose, 0) for pose in poses) / max(sum(counts.values()), 1)


@dataclass(frozen=True, eq=False)
class PoseBias:
    """What was measured.

    Args:
        plane: fitted on all three kinds of pictures.
        generated, plain, references: (n, 2), their places in it.
        density: of the generated pictures.
        spread: root mean square distance of the plain base's pictures from their middle, in the plane: the unit of
            distances.
        peaks: the largest first.
        tempting: for each reference whether it shows another pose than the asked one.
        nearness: mean chance, 0 to 1, that a tempting reference is nearer to a generated picture than all of as many
            random pictures of the plain base; None where no reference is tempting.
        plain_nearness: the same for the plain base's own pictures, each against the others.
        answer: None where the plain base itself hardly moves, or no pictures without the words were given.
        poses: None where nobody read them.
    """

    plane: Plane
    generated: np.ndarray
    plain: np.ndarray
    references: np.ndarray
    density: Density
    spread: float
    peaks: tuple[NearPeak, ...]
    tempting: tuple[bool, ...]
    nearness: float | None
    plain_nearness: float | None
    answer: Answer | None
    poses: Poses | None = None

    @property
    def verdict(self) -> Verdict:
        """From the poses where they were read, else from the answer, else unclear.

        Poses: bias where the excess is certainly over 0; else followed where the asked pose is at least half as
        frequent as with the plain base. Answer: followed where it is certainly over a half; where it is certainly
        under, bias if the pictures are nearer to a reference than to the plain base's more often than not.
        """
        if self.poses is not None and self.poses.others:
            if self.poses.low > 0:
                return "pose bias"
            kept = self.poses.share("generated", [self.poses.asked])
            return "follows" if kept >= HALF * self.poses.share("plain", [self.poses.asked]) else "words lost"
        if self.answer is None or self.answer.low < HALF <= self.answer.high:
            return "unclear"
        if self.answer.low >= HALF:
            return "follows"
        return "pose bias" if self.nearness is not None and self.nearness >= HALF else "words lost"

    @property
    def sentence(self) -> str:
        """The verdict for a person, with the numbers behind it."""
        said = {
            "pose bias": "Pose bias: the pictures keep a reference's pose instead of following the words",
            "words lost": "No pose bias, but the words are not followed either",
            "follows": "No pose bias: the pictures follow the words",
            "unclear": "Unclear",
        }[self.verdict]
        return f"{said} ({'; '.join(self._reasons())})."

    def _reasons(self) -> list[str]:
        reasons = []
        if (poses := self.poses) is not None:
            reasons.append(
                f"read as {poses.asked}: {poses.share('generated', [poses.asked]):.0%}, "
                f"plain base {poses.share('plain', [poses.asked]):.0%}"
            )
            if poses.others:
                reasons.append(
                    f"in a reference's other pose: {poses.share('generated', poses.others):.0%}, "
                    f"plain base {poses.share('plain', poses.others):.0%}"
                )
            if poses.others and poses.neutral:
                reasons.append(
                    f"in it without the words: {poses.share('neutral', poses.others):.0%}, "
                    f"plain base {poses.share('plain_neutral', poses.others):.0%}"
                )
        if self.answer is not None:
            reasons.append(
                f"answer to the words {self.answer.value:.2f} ({self.answer.low:.2f} to {self.answer.high:.2f})"
            )
        else:
            reasons.append("the answer to the words cannot be measured with this encoder and these pictures")
        if self.nearness is not None:
            reasons.append(f"nearest to a reference {self.nearness:.0%}, plain base {self.plain_nearness:.0%}")
        return reasons

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        poses = None if self.poses is None else {**asdict(self.poses), "references": list(self.poses.references)}
        return {
            "verdict": self.verdict,
            "sentence": self.sentence,
            "answer": None if self.answer is None else asdict(self.answer),
            "nearness": self.nearness,
            "plain_nearness": self.plain_nearness,
            "poses": poses,
            "spread": self.spread,
            "peaks": [
                {
                    "at": list(each.peak.at),
                    "share": each.peak.share,
                    "nearest_reference": each.reference,
                    "distance_in_spreads": each.distance,
                    "members": list(each.peak.members),
                }
                for each in self.peaks
            ],
            "explained": list(self.plane.explained),
            "tempting": list(self.tempting),
            "places": {
                kind: np.round(getattr(self, kind), 6).tolist() for kind in ("generated", "plain", "references")
            },
        }


def measure(
    generated: np.ndarray,
    references: np.ndarray,
    plain: np.ndarray,
    *,
    neutral: np.ndarray | None = None,
    plain_neutral: np.ndarray | None = None,
    tempting: Sequence[bool] | None = None,
    poses: Poses | None = None,
) -> PoseBias:
    """All numbers, from features of pictures. Rows are brought to unit length first.

    Args:
        generated: (n, d) of the subject's pictures of the sentence.
        references: (r, d) of its reference pictures.
        plain: (m, d) of the plain base's pictures of the sentence, with seeds of their own.
        neutral: (4 to n, d) of the subject's pictures of the sentence without the asked pose, with the seeds of the
            first `generated` ones, in their order.
        plain_neutral: the same of the plain base, with the seeds of `plain`.
        tempting: for each reference whether it shows another pose than the asked one; all of them by default.
        poses: as read from the pictures.

    Raises:
        UserError: fewer than 4 generated or plain pictures, no reference, widths or numbers that do not fit together.
    """
    given = {"generated": generated, "references": references, "plain": plain}
    given |= {"neutral": neutral} if neutral is not None else {}
    given |= {"plain_neutral": plain_neutral} if plain_neutral is not None else {}
    rows = {name: np.asarray(each, np.float64) for name, each in given.items()}
    _check(rows, None if tempting is None else len(tempting))
    rows = {name: unit(each) for name, each in rows.items()}
    bait = np.ones(len(references), bool) if tempting is None else np.asarray(tempting, bool)
    plane = fit_plane(np.concatenate([rows[name] for name in ("generated", "plain", "references")]))
    places = {name: plane.place(rows[name]) for name in ("generated", "plain", "references")}
    spread = _spread(places["plain"])
    density = fit_density(places["generated"])
    answer = None
    if neutral is not None and plain_neutral is not None:
        moved, plain_moved = (
            rows[words][: len(rows[without])] - rows[without]
            for words, without in (("generated", "neutral"), ("plain", "plain_neutral"))
        )
        answer = measure_answer(moved, plain_moved)
    return PoseBias(
        plane=plane,
        generated=places["generated"],
        plain=places["plain"],
        references=places["references"],
        density=density,
        spread=spread,
        peaks=tuple(_near(peak, places["references"], bait, spread) for peak in find_peaks(density)),
        tempting=tuple(bool(each) for each in bait),
        nearness=measure_nearness(rows["generated"], rows["references"][bait], rows["plain"]) if bait.any() else None,
        plain_nearness=_plain_nearness(rows["plain"], rows["references"][bait]) if bait.any() else None,
        answer=answer,
        poses=poses,
    )


def measure_nearness(pictures: np.ndarray, references: np.ndarray, others: np.ndarray) -> float:
    """Mean chance that the nearest of the references and of as many of the others, drawn at random, is a reference.

    Drawing as many makes it fair: the nearest of a hundred is nearer than the nearest of four for no other reason. The
    chance is exact: with k references and c of the m others nearer than the nearest reference it is
    C(m - c, k) / C(m, k), with k at most m.

    Args:
        pictures: (n, d).
        references: (k, d), at least one.
        others: (m, d), at least one.
    """
    own = _distances(pictures, references).min(1)
    closer = (_distances(pictures, others) < own[:, None]).sum(1)
    count, drawn = len(others), min(len(references), len(others))
    return float(np.mean([math.comb(count - int(each), drawn) / math.comb(count, drawn) for each in closer]))


def measure_answer(moved: np.ndarray, plain_moved: np.ndarray, seed: int = 0) -> Answer | None:
    """How far the words move the pictures along the direction in which they move the plain base's.

    With D the base's mean movement, each picture's is <movement, D> / (|D|^2 - noise), where the noise is what chance
    adds to |D|^2: the sum of the variances of the movements over their number.

    Args:
        moved: (n, d) features with the words less those without them, seed by seed.
        plain_moved: (m, d) the same of the plain base, other seeds.
        seed: of the resampling.

    Returns:
        None where |D|^2 is not even twice its noise.
    """
    direction = plain_moved.mean(0)
    noise = float(plain_moved.var(0, ddof=1).sum()) / len(plain_moved)
    length = float(direction @ direction)
    if length < SIGNAL * noise or length == 0:
        return None
    each = moved @ direction / (length - noise)
    rng = np.random.default_rng(seed)
    means = each[rng.integers(0, len(each), (RESAMPLES, len(each)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Answer(float(each.mean()), float(low), float(high))


def compare_poses(
    asked: str,
    references: Sequence[str],
    generated: Sequence[str],
    plain: Sequence[str],
    neutral: Sequence[str] = (),
    plain_neutral: Sequence[str] = (),
) -> Poses:
    """Counts of poses, and how much more often the generated pictures show a reference's other pose.

    The interval of the difference of the two shares is Newcombe's (of Wilson's intervals).
    """
    others = frozenset(references) - {asked}
    hits = [sum(pose in others for pose in read) for read in (generated, plain)]
    (p, p_low, p_high), (q, q_low, q_high) = (
        _wilson(hit, len(read)) for hit, read in zip(hits, (generated, plain), strict=True)
    )
    return Poses(
        asked=asked,
        references=tuple(references),
        generated=_counts(generated),
        plain=_counts(plain),
        neutral=_counts(neutral),
        plain_neutral=_counts(plain_neutral),
        excess=p - q,
        low=p - q - math.hypot(p - p_low, q_high - q),
        high=p - q + math.hypot(p_high - p, q - q_low),
    )


def _counts(poses: Sequence[str]) -> dict[str, int]:
    return {pose: list(poses).count(pose) for pose in sorted(set(poses))}


def _wilson(hits: int, count: int, z: float = 1.96) -> tuple[float, float, float]:
    """A share and the ends of its 95 % interval."""
    share = hits / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return share, middle - half, middle + half


def _plain_nearness(plain: np.ndarray, references: np.ndarray) -> float:
    """Nearness of each plain picture against the other plain ones."""
    return float(np.mean([measure_nearness(plain[[i]], references, np.delete(plain, i, 0)) for i in range(len(plain))]))


def _near(peak: Peak, references: np.ndarray, tempting: np.ndarray, spread: float) -> NearPeak:
    """Among all references where none is tempting."""
    candidates = np.flatnonzero(tempting) if tempting.any() else np.arange(len(references))
    apart = np.linalg.norm(references[candidates] - np.array(peak.at), axis=1)
    return NearPeak(peak, int(candidates[apart.argmin()]), float(apart.min() / spread))


def _spread(places: np.ndarray) -> float:
    return max(float(np.sqrt(((places - places.mean(0)) ** 2).sum(1).mean())), 1e-12)


def _distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(n, d), (m, d) -> (n, m), squared."""
    return ((left[:, None] - right[None]) ** 2).sum(-1)


def _check(rows: Mapping[str, np.ndarray], flags: int | None) -> None:
    widths = {each.shape[1] if each.ndim == 2 else -1 for each in rows.values()}
    if len(widths) > 1:
        raise UserError(f"features of different widths: {', '.join(f'{n} {e.shape}' for n, e in rows.items())}")
    for name in ("generated", "plain"):
        if len(rows[name]) < FEWEST:
            raise UserError(f"{len(rows[name])} {name} pictures: pose bias needs {FEWEST} at least, 32 are usual")
    if not len(rows["references"]):
        raise UserError("no reference picture: pose bias compares with them")
    for name, like in (("neutral", "generated"), ("plain_neutral", "plain")):
        if name in rows and not FEWEST <= len(rows[name]) <= len(rows[like]):
            found, most = len(rows[name]), len(rows[like])
            raise UserError(f"{found} {name} pictures for {most} {like}: give {FEWEST} to {most} of the same seeds")
    if flags is not None and flags != len(rows["references"]):
        raise UserError(f"{flags} flags for {len(rows['references'])} references: give one for each")
