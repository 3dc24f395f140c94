"""Semantic collapse: has a learned word lost the meaning of its class, so that what stands around it is no longer read?

Bui et al., arXiv 2506.22685, section 3. Part of the paper -> function:

    d(P_V*, P_c), d(P_V*, P_V*), d(P_V*, P_simple), d(P_simple, P_c)   `measure`
    norm and angle of V* beside its class word                         `Rows`, `Vocabulary`
    drift of the whole prompt (DreamBooth)                             `prompt_drift`: `concept_gap`, `encoder_drift`
    "it collapses while it learns" (ours: with intervals)              `over_training`
    the finished word beside its class word (ours)                     `beside_class`

Everything here is of numbers alone; `collapse_experiment` asks a base for them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tokens import TokenSpans
from . import collapse_distances as d

RESAMPLES = 400
LEAST = 0.02  # of the class's spread: less than that is no change that matters
FEWEST_TIMES = 5  # with fewer, even a perfect order is no news: 1 of 4! orders is over 1 in 20
ORDERS = 4000
Word = Literal["collapsed", "not collapsed", "cannot tell"]
State = Literal["seen", "absent", "unclear"]


@dataclass(frozen=True, eq=False)
class Sets:
    """Features of the sentences with one word. context: (n, width), simple: (m, width), float64."""

    context: Tensor
    simple: Tensor


@dataclass(frozen=True, eq=False)
class Ruler:
    """How distances are taken.

    Args:
        fixed: the covariance of Mahalanobis distances; None for the paper's, each set's own.
        temperature: of KL.
        floor: added to probabilities in KL: 1e-8 in the official code.
    """

    fixed: d.Reference | None
    temperature: float = d.TEMPERATURE
    floor: float = 0.0


@dataclass(frozen=True)
class Value:
    """A number, with its 95 % bootstrap interval over sentences, where there is one."""

    value: float
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        return {"value": self.value, "low": self.low, "high": self.high}


def measure(word: Sets, noun: Sets, ruler: Ruler, *, resamples: int = RESAMPLES) -> dict[str, dict[str, Value]]:
    """All set distances of a word at one time.

    Args:
        word: P_V* and P_simple, of the word.
        noun: P_c, index-aligned with P_V*; and its own simple sentences, index-aligned with P_simple.
        ruler: how to measure.
        resamples: for intervals; 0: none.

    Returns:
        By pair and distance. The order of arguments is in `ORDER`: Mahalanobis and KL are not symmetric. There is no KL
        of sets of different sizes.
    """
    pairs = {
        "between": _two(noun.context, word.context, ruler, resamples, aligned=True),
        "within": _one(word.context, ruler, resamples),
        "to_simple": _two(word.context, word.simple, ruler, resamples),
        "simple_to_class": _two(word.simple, noun.context, ruler, resamples),
        "class_within": _one(noun.context, ruler, resamples),
        "class_to_simple": _two(noun.context, noun.simple, ruler, resamples),
    }
    return pairs


ORDER = {
    "between": ("P_c", "P_V*"),
    "within": ("P_V*", "P_V*"),
    "to_simple": ("P_V*", "P_simple"),
    "simple_to_class": ("P_simple", "P_c"),
    "class_within": ("P_c", "P_c"),
    "class_to_simple": ("P_c", "P_simple with the class word"),
}


def _two(p: Tensor, q: Tensor, ruler: Ruler, resamples: int, *, aligned: bool = False) -> dict[str, Value]:
    a = d.draws(len(p), resamples) if resamples else None
    b = (a if aligned else d.draws(len(q), resamples, seed=1)) if resamples else None
    own = ruler.fixed is None
    found = {
        "l2": _value(d.l2(p, q), d.l2(p, q, a, b) if a is not None else None),
        "hausdorff": _value(d.hausdorff(p, q), d.hausdorff(p, q, a, b) if a is not None else None),
        "mahalanobis": _value(
            d.mahalanobis(p, q, ruler.fixed),
            d.mahalanobis(p, q, ruler.fixed, a, b) if a is not None and not own else None,
        ),
    }
    if len(p) == len(q):
        t = ruler.temperature
        found["kl"] = _value(
            d.kl(p, q, t, floor=ruler.floor), d.kl(p, q, t, a, floor=ruler.floor) if a is not None else None
        )
    if aligned:
        found["paired"] = _value(d.paired(p, q), d.paired(p, q, a) if a is not None else None)
        found["paired_cosine"] = _value(d.paired_cosine(p, q), d.paired_cosine(p, q, a) if a is not None else None)
    return found


def _one(p: Tensor, ruler: Ruler, resamples: int) -> dict[str, Value]:
    a = d.draws(len(p), resamples) if resamples else None
    own, t = ruler.fixed is None, ruler.temperature
    return {
        "l2": _value(d.l2_within(p), d.l2_within(p, a) if a is not None else None),
        "l2_with_itself": _value(d.l2_within(p, itself=True)),
        "hausdorff": _value(d.hausdorff_within(p), d.hausdorff_within(p, a) if a is not None else None),
        "mahalanobis": _value(
            d.mahalanobis(p, p, ruler.fixed),
            d.mahalanobis(p, p, ruler.fixed, a, a) if a is not None and not own else None,
        ),
        "spread_of_cosines": _value(d.spread_of_cosines(p, t), d.spread_of_cosines(p, t, a) if a is not None else None),
    }


def _value(value: Tensor, resampled: Tensor | None = None) -> Value:
    return Value(float(value)) if resampled is None else Value(float(value), *d.interval(resampled))


# --- the verdict ---


@dataclass(frozen=True)
class Signal:
    """One of the three things that collapse does.

    Args:
        name: "between", "within", "to_simple".
        change: how far, in the direction of collapse, in shares of the class's spread (L2 within P_c).
        low, high: 95 % bootstrap interval over sentences.
        p: share of random orders of the same times that rise as much; None where nothing is compared over time.
        state: seen (surely more than nothing, and at least `LEAST`), absent (surely less than `LEAST`), or unclear.
        half: step by which half of the change was there; None where not over time.
    """

    name: str
    change: float
    low: float
    high: float
    p: float | None
    state: State
    half: int | None = None


@dataclass(frozen=True)
class Verdict:
    """Args: basis: "training" (late beside early), or "class word" (the finished word beside the class word)."""

    basis: str
    word: Word
    signals: tuple[Signal, ...]

    @property
    def collapsed(self) -> bool:
        return self.word == "collapsed"

    def to_dict(self) -> dict[str, Any]:
        return {"basis": self.basis, "verdict": self.word, "signals": [vars(each) for each in self.signals]}


SIGNS = {"between": 1, "within": -1, "to_simple": -1}  # which way collapse goes


def over_training(times: Mapping[int, Sets], noun: Sets, *, resamples: int = RESAMPLES) -> Verdict | None:
    """Late beside early: the last third of the times against the first time, which is before any learning.

    Collapsed: sentences have left those with the class word (L2, sentence by sentence), lie closer together (L2
    within), and nearer to those that show nothing but the subject (L2). All three must be seen: the interval over
    sentences off 0, at least `LEAST`, and in an order in time (rank correlation) that chance gives to less than 1 in
    20. Most of it may happen early: nothing needs to rise all the time.

    Args:
        times: features by step.
        noun: of the class word, under the untouched base.

    Returns:
        None with fewer than `FEWEST_TIMES`.
    """
    steps = sorted(times)
    if len(steps) < FEWEST_TIMES:
        return None
    curves = [_three(times[step], noun, resamples) for step in steps]  # by step: name -> (1 + resamples,)
    third = max(len(steps) // 3, 1)
    unit = _spread(noun, resamples)
    signals = []
    for name, sign in SIGNS.items():
        table = torch.stack([curve[name] for curve in curves]) * sign / unit  # (times, 1 + resamples)
        change = table[-third:].mean(0) - table[0]
        low, high = d.interval(change[1:])
        signals.append(_signal(name, float(change[0]), low, high, _order(table[:, 0]), _half(table[:, 0], steps)))
    return Verdict("training", _word(signals), tuple(signals))


def beside_class(word: Sets, noun: Sets, *, resamples: int = RESAMPLES) -> Verdict:
    """The finished word beside its class word: sentences differ, vary less, and lie nearer to the simple ones."""
    ours, theirs, unit = _three(word, noun, resamples), _three(noun, noun, resamples), _spread(noun, resamples)
    signals = []
    for name, sign in SIGNS.items():
        change = (ours[name] - theirs[name]) * sign / unit
        signals.append(_signal(name, float(change[0]), *d.interval(change[1:]), None))
    return Verdict("class word", _word(signals), tuple(signals))


def _three(word: Sets, noun: Sets, resamples: int) -> dict[str, Tensor]:
    """The three numbers of the verdict, (1 + resamples,): the first as they are, the others resampled. Sentence i of
    the word and of the noun are always drawn together, and the same ones at all times."""
    a, b = d.draws(len(word.context), resamples), d.draws(len(word.simple), resamples, seed=1)
    a, b = (torch.cat([torch.ones(1, each.shape[1], dtype=each.dtype), each]) for each in (a, b))
    return {
        "between": d.paired(noun.context, word.context, a),
        "within": d.l2_within(word.context, a),
        "to_simple": d.l2(word.context, word.simple, a, b),
    }


def _spread(noun: Sets, resamples: int) -> float:
    return max(float(d.l2_within(noun.context)), 1e-12)


def _signal(name: str, change: float, low: float, high: float, p: float | None, half: int | None = None) -> Signal:
    state: State = "unclear"
    if high < LEAST:
        state = "absent"
    elif low > 0 and change >= LEAST and (p is None or p < 0.05):
        state = "seen"
    return Signal(name, change, low, high, p, state, half if state == "seen" else None)


def _word(signals: Sequence[Signal]) -> Word:
    if all(each.state == "seen" for each in signals):
        return "collapsed"
    return "not collapsed" if any(each.state == "absent" for each in signals) else "cannot tell"


def _order(values: Tensor) -> float:
    """Share of random orders that rise with time as much as the one seen, itself counted; by ranks (Spearman)."""
    ranks = values.argsort().argsort().double()
    generator = torch.Generator().manual_seed(0)
    shuffled = ranks[torch.rand(ORDERS, len(values), generator=generator).argsort(1)]
    times = torch.arange(len(values), dtype=torch.float64)
    return float(((shuffled @ times >= ranks @ times - 1e-9).sum() + 1) / (ORDERS + 1))


def _half(values: Tensor, steps: Sequence[int]) -> int:
    """The first step from which on the values stay on the late side of the middle between first and last."""
    middle = (values[0] + values[-1]) / 2
    late = (values >= middle).tolist()
    first = len(steps) - next((n for n, is_late in enumerate(reversed(late)) if not is_late), len(steps))
    return steps[min(first, len(steps) - 1)]


# --- norm and direction ---


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Rows of one text encoder's vocabulary. norms: (words,), cosines: to the anchor's row, (words,), of those that
    count: no marks, no added tokens, no rows of (nearly) zero."""

    norms: Tensor
    cosines: Tensor
    anchor: Tensor  # (width,)
    marks: dict[str, float]  # norms of the start and end marks, and of the words nearest to the anchor

    @property
    def anchor_norm(self) -> float:
        return float(self.anchor.norm())


@dataclass(frozen=True)
class Rows:
    """A learned word's rows beside its class word; lists with a number for each row.

    Attributes:
        norm: of each row.
        angle: to the class word's row, in degrees.
        cosine: the same as a cosine.
        percentile: share of the vocabulary with a smaller norm, in percent.
        log_ratio: log(norm / norm of the class word's row).
    """

    norm: list[float]
    angle: list[float]
    cosine: list[float]
    percentile: list[float]
    log_ratio: list[float]


def vocabulary(table: Tensor, anchor: Tensor, special: Sequence[int], marks: Mapping[str, int]) -> Vocabulary:
    """What a word's rows are compared with.

    Args:
        table: (words, width).
        anchor: (width,), the class word's.
        special: numbers that do not count: marks, added tokens.
        marks: numbers whose norms are shown, by name.
    """
    table, anchor = table.double(), anchor.double()
    norms = table.norm(dim=1)
    counts = norms >= 1e-3
    counts[[number for number in special if number < len(table)]] = False
    cosines = F.cosine_similarity(table, anchor[None], eps=1e-12)
    shown = {name: float(norms[number]) for name, number in marks.items()}
    return Vocabulary(norms[counts], cosines[counts], anchor, shown)


def rows_beside(rows: Tensor, known: Vocabulary) -> Rows:
    """rows: (tokens, width) of a learned word."""
    rows = rows.double()
    norms = rows.norm(dim=1)
    unit, anchor = F.normalize(rows, dim=1, eps=1e-12), F.normalize(known.anchor, dim=0, eps=1e-12)
    angles = 2 * torch.atan2((unit - anchor).norm(dim=1), (unit + anchor).norm(dim=1))
    percentile = [float((known.norms < norm).double().mean()) * 100 for norm in norms]
    ratio = (norms.clamp(min=1e-12) / known.anchor_norm).log()
    return Rows(norms.tolist(), torch.rad2deg(angles).tolist(), angles.cos().tolist(), percentile, ratio.tolist())


HIGH_NORM, LOW_COSINE = 99.5, 0.2  # from where on a word's row is unlike any word


def warnings_of(rows: Mapping[int | None, Rows]) -> list[str]:
    """The first time at which a row left what words look like. By step; None: the finished word."""
    found = []
    for number in range(max((len(each.norm) for each in rows.values()), default=0)):
        which = f"row {number + 1}: " if number else ""
        for said, is_out in (
            (f"norm above {HIGH_NORM} % of the vocabulary", lambda r, n: r.percentile[n] > HIGH_NORM),
            (f"cosine to the class word below {LOW_COSINE}", lambda r, n: r.cosine[n] < LOW_COSINE),
        ):
            out = [step for step, each in rows.items() if is_out(each, number)]
            if out:
                at = "" if out[0] is None else f" from step {out[0]} on" if None in out else f" at step {out[0]}"
                found.append(f"{which}{said}{at}")
    return found


# --- the whole prompt, position by position ---


def prompt_drift(
    ours: Tensor, theirs: Tensor, spans: Sequence[TokenSpans], partners: Sequence[Sequence[int]]
) -> dict[str, dict[str, float]]:
    """How far encoded sentences are from others, position by position.

    Args:
        ours, theirs: (n, length, width).
        spans: of ours.
        partners: for each sentence and position of ours the position in theirs; -1 for none.

    Returns:
        By place (word: the subject's own tokens; context: the other words after it; end; padding; all) the means of L2,
        of the cosine, and of the ratio of norms. What stands before the word is left out: it cannot know of it.
    """
    sums: dict[str, list[Tensor]] = {}
    for row, (said, places) in enumerate(zip(spans, partners, strict=True)):
        first = min(said.of("subject"))
        here = [position for position in range(first, len(places)) if places[position] >= 0]
        one = ours[row, here].double()
        other = theirs[row, [places[position] for position in here]].double()
        numbers = torch.stack(
            [
                (one - other).norm(dim=1),
                F.cosine_similarity(one, other, dim=1, eps=1e-12),
                one.norm(dim=1) / other.norm(dim=1).clamp(min=1e-12),
            ],
            1,
        )
        own = set(said.of("subject"))
        for position, values in zip(here, numbers, strict=True):
            place = "word" if position in own else {"eos": "end", "pad": "padding"}.get(said.roles[position], "context")
            sums.setdefault(place, []).append(values)
            sums.setdefault("all", []).append(values)
    found = {}
    for place in ("word", "context", "end", "padding", "all"):
        if place in sums:
            l2, cosine, ratio = torch.stack(sums[place]).mean(0).tolist()
            found[place] = {"l2": l2, "cosine": cosine, "norm_ratio": ratio}
    return found


# --- in words ---


def sentence(name: str, noun: str, verdict: Verdict) -> str:
    """The verdict in one line, with its numbers."""
    late = verdict.basis == "training"
    only = "sentences that only show it by"
    said = {
        "between": (f'its sentences left those with "{noun}" by', f'its sentences neared those with "{noun}" by'),
        "within": ("they vary less by", "they vary more by"),
        "to_simple": (f"they came nearer to {only}", f"they left {only}"),
    }
    if not late:
        said["between"] = (f'its sentences differ from those with "{noun}" by',) * 2
        said["to_simple"] = (f"they are nearer to {only}", f"they are farther from {only}")
    parts = []
    for each in verdict.signals:
        back = each.change < 0
        sign, ends = (-1, (each.high, each.low)) if back else (1, (each.low, each.high))
        low, high = (_percent(sign * end) for end in ends)
        more = {"seen": "", "absent": "", "unclear": ", unclear"}[each.state]
        parts.append(f"{said[each.name][back]} {_percent(sign * each.change)} ({low} to {high}{more})")
    half = [each.half for each in verdict.signals if each.name == "within" and each.half is not None]
    when = f"; half of the loss of variety by step {half[0]}" if half else ""
    basis = "while it learned" if late else f'beside "{noun}"'
    return f"{name}, {basis}: {verdict.word}: {'; '.join(parts)}{when}"


def concluded(name: str, noun: str, verdicts: Sequence[Verdict], touched: bool) -> str:
    """All verdicts in one plain line: whether, when, how far, and what to do.

    Args:
        name: of the concept.
        noun: the class word.
        verdicts: the first one counts most.
        touched: whether anything that the text encoder reads was learned.
    """
    if not touched:
        return f"Conclusion: {name} has not collapsed: it has no word of its own to lose a meaning."
    seen = [each for each in verdicts if each.collapsed]
    chosen = seen[0] if seen else verdicts[0]
    less = next((each for each in chosen.signals if each.name == "within"), None)
    beside = f'those with "{noun}"' if chosen.basis == "class word" else "they did when it began to learn"
    far = ""
    if less is not None:
        far = f": its sentences vary {_percent(abs(less.change))} {'less' if less.change > 0 else 'more'} than {beside}"
        far += f", half of it by step {less.half}" if less.half is not None and seen else ""
    if seen:
        return f"Conclusion: {name} has collapsed{far}. --adjust tea turns it back toward {noun!r}."
    if any(each.word == "cannot tell" for each in verdicts):
        return f"Conclusion: whether {name} has collapsed cannot be told{far}; look at the page."
    return f"Conclusion: {name} has not collapsed{far}."


def _percent(share: float) -> str:
    text = f"{share * 100:.1f} %" if abs(share) < 0.1 else f"{share * 100:.0f} %"
    return "0 %" if math.isclose(share, 0, abs_tol=5e-5) else text
