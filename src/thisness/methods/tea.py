"""Mitigating Semantic Collapse in Generative Personalization with Test-Time Embedding Adjustment (TEA).

Bui et al., arXiv 2506.22685. Equation -> function:

    eq. 1, v^ = sin((1-a)t)/sin(t) v~ + sin(a t)/sin(t) c~      `rotate`, `adjust`
        v~ = r v/|v|, c~ = r c/|c|; r = beta |c|                 `radius`, norm="ratio"
        r = (1-gamma)|v| + gamma |c| (the official code)         `radius`, norm="blend"
    eq. 1 on the rows of a learned word (Textual Inversion)     `adjust`, `rotate_together`; anchor: `anchor_row`
    eq. 2, the same on every position of the encoded sentence   `adjust_sequence`; which with which: `positional`,
                                                                `aligned`, for other tokenizers `aligned_ids`

The paper calls the rotation alpha and the norm's factor beta; the official code's `rho` is alpha, its `alpha` is gamma.
Everything here is pure; `tea_adjustment` puts it to work on a base.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigurationError, ThisnessError
from ..prompt import TokenSpans

Norm = Literal["blend", "ratio", "keep", "anchor"]
Several = Literal["mean", "first", "last"]
Span = tuple[int, int]
ZERO = 1e-8  # a vector of this norm or less has no direction
NONE = -1  # partner of a position that has none


class Rotated(NamedTuple):
    """What `rotate` did. All but `vectors` are (...), float32 or float64.

    Attributes:
        vectors: (..., D), in the number format of v.
        angle: between v and c before, in radians; 0 where one of them is zero.
        radius: the norm of the result.
        zero: bool; v or c has no direction: v is returned as it was.
        opposite: bool; v and c point apart, so there is no plane to rotate in: v keeps its direction.
    """

    vectors: Tensor
    angle: Tensor
    radius: Tensor
    zero: Tensor
    opposite: Tensor


def adjust(
    v: Tensor,
    c: Tensor,
    alpha: float | Tensor,
    gamma: float = 0.5,
    beta: float | None = None,
    norm: Norm | None = None,
    *,
    weights: Tensor | None = None,
    extrapolate: bool = False,
) -> Tensor:
    """Turn vectors toward their anchors, and set their norms: eq. 1. See `rotate`, which also tells what was skipped.

    Warns once where vectors point apart (UserWarning, with their indices).

    Returns:
        (..., D), in the number format and on the device of v; v itself is not changed.
    """
    done = rotate(v, c, alpha, gamma, beta, norm, weights=weights, extrapolate=extrapolate)
    if bool(done.opposite.any()):
        where = done.opposite.nonzero().tolist()[:8] if done.opposite.ndim else "the vector"
        warnings.warn(f"TEA: opposite to the anchor, so not rotated: {where}", stacklevel=2)
    return done.vectors


def rotate(
    v: Tensor,
    c: Tensor,
    alpha: float | Tensor,
    gamma: float = 0.5,
    beta: float | None = None,
    norm: Norm | None = None,
    *,
    weights: Tensor | None = None,
    extrapolate: bool = False,
) -> Rotated:
    """Eq. 1, in float32 (float64 for float64).

    The result is at alpha times the angle from v, in the plane of v and c, and has the norm of the rule. Positions
    where nothing is to be done (alpha 0 or v equal to c, and the norm as it is) are v to the bit.

    Args:
        v: (..., D) what was learned.
        c: (..., D) the anchors; broadcast against v.
        alpha: 0 keeps the direction, 1 takes that of c; one number, or (...).
        gamma: of the rule "blend", r = (1-gamma)|v| + gamma|c|.
        beta: of the rule "ratio", r = beta|c|; above 0.
        norm: "blend", "ratio", "keep" (r = |v|) or "anchor" (r = |c|); "ratio" where beta is given, else "blend".
        weights: (..., D) at least 0, broadcast against v: how far each dimension goes, alpha_d = alpha w_d / mean(w),
            at most 1. Equal weights are plain TEA. Not in the paper.
        extrapolate: allow alpha outside of 0 ... 1.

    Raises:
        ConfigurationError: alpha outside of its range, beta not above 0, or a rule that gives no positive norm.
    """
    check_alpha(alpha, extrapolate)
    v, c = torch.broadcast_tensors(v, c)
    kind = torch.float64 if v.dtype == torch.float64 else torch.float32
    near = 1e-4 if kind is torch.float32 else 1e-7
    full_v, full_c = v.to(kind), c.to(kind)
    norm_v, norm_c = (torch.linalg.vector_norm(each, dim=-1) for each in (full_v, full_c))
    zero = (norm_v <= ZERO) | (norm_c <= ZERO)
    r = radius(norm_v, norm_c, gamma, beta, norm)
    if bool(((r <= 0) & ~zero).any()):
        raise ConfigurationError(f"TEA: gamma={gamma} gives a norm of 0 or less: take it nearer to 0 ... 1")
    u = full_v / norm_v.masked_fill(zero, 1)[..., None]
    w = full_c / norm_c.masked_fill(zero, 1)[..., None]

    theta = angle(u, w).masked_fill(zero, 0)
    opposite = torch.pi - theta < near
    share = torch.as_tensor(alpha, dtype=kind, device=v.device).expand(theta.shape)[..., None]
    if weights is not None:
        share = _shares(share, weights.to(v.device, kind), extrapolate)
    wide, flat = theta[..., None], ((theta < near) | opposite)[..., None]
    sine = wide.sin().masked_fill(flat, 1)
    of_v = torch.where(flat, 1 - share, ((1 - share) * wide).sin() / sine).masked_fill(opposite[..., None], 1)
    of_c = torch.where(flat, share, (share * wide).sin() / sine).masked_fill(opposite[..., None], 0)
    made = torch.addcmul(of_v * u, of_c, w)
    length = torch.linalg.vector_norm(made, dim=-1)
    made = (made * (r / length.masked_fill(length == 0, 1))[..., None]).to(v.dtype)

    still = zero | _untouched(v, c, norm_v, norm_c, alpha, gamma, beta, norm)
    if bool(still.any()):
        made, r = torch.where(still[..., None], v, made), torch.where(still, norm_v, r)
    return Rotated(made, theta, r, zero, opposite)


def radius(norm_v: Tensor, norm_c: Tensor, gamma: float, beta: float | None, norm: Norm | None) -> Tensor:
    """The norm of the result. See `rotate`.

    Raises:
        ConfigurationError: the rule "ratio" without a beta above 0.
    """
    rule = norm or ("ratio" if beta is not None else "blend")
    if rule == "ratio":
        if beta is None or not beta > 0:
            raise ConfigurationError(f"TEA: beta is {beta}: the norm is beta times the anchor's, so give one above 0")
        return beta * norm_c
    if rule == "blend":
        return norm_v if gamma == 0 else norm_c if gamma == 1 else (1 - gamma) * norm_v + gamma * norm_c
    return {"keep": norm_v, "anchor": norm_c}[rule]


def angle(u: Tensor, w: Tensor) -> Tensor:
    """Between vectors of length 1, in radians: (..., D), (..., D) -> (...). Accurate near 0 and near pi, too."""
    difference = u - w
    apart = torch.linalg.vector_norm(difference, dim=-1)
    along = torch.linalg.vector_norm(difference.add_(w, alpha=2), dim=-1)
    return 2 * torch.atan2(apart, along)


def check_alpha(alpha: float | Tensor, extrapolate: bool = False) -> None:
    """Refuse a rotation outside of 0 ... 1.

    Raises:
        ConfigurationError: it is, and `extrapolate` is off; or it is not finite.
    """
    values = torch.as_tensor(alpha, dtype=torch.float64)
    low, high = float(values.min()), float(values.max())
    if not (extrapolate or 0 <= low <= high <= 1) or not bool(values.isfinite().all()):
        wrong = low if not low >= 0 else high
        raise ConfigurationError(
            f"alpha {wrong:g} is not in 0 ... 1 (0 keeps the learned direction, 1 takes the anchor's): "
            "choose one, or extrapolate=true"
        )


def rotate_together(
    v: Tensor,
    c: Tensor,
    alpha: float,
    gamma: float = 0.5,
    beta: float | None = None,
    norm: Norm | None = None,
    *,
    extrapolate: bool = False,
) -> Rotated:
    """Rotate several vectors as one body: by the rotation that takes their mean direction to where eq. 1 takes it.

    The angles between them stay. The norm rule acts on each. For one vector the same as `rotate`.

    Args:
        v: (n, D).
        c: (D,).
        alpha, gamma, beta, norm, extrapolate: as in `rotate`.
    """
    check_alpha(alpha, extrapolate)
    single = rotate(v, c, 0.0, gamma, beta, norm)  # norms, and what has no direction
    kind = torch.float64 if v.dtype == torch.float64 else torch.float32
    full = torch.where(single.zero[:, None], torch.zeros_like(v), v).to(kind)
    mean, anchor = full.mean(0), c.to(kind)
    lengths = torch.linalg.vector_norm(mean), torch.linalg.vector_norm(anchor)
    if min(float(each) for each in lengths) <= ZERO:
        return single
    e1, w = mean / lengths[0], anchor / lengths[1]
    theta = angle(e1, w)
    near = 1e-4 if kind is torch.float32 else 1e-7
    if not near <= float(theta) <= torch.pi - near:
        return single
    e2 = w - (w @ e1) * e1
    e2 = e2 / torch.linalg.vector_norm(e2)
    turn = alpha * theta
    along, across = full @ e1, full @ e2
    new_along = turn.cos() * along - turn.sin() * across
    new_across = turn.sin() * along + turn.cos() * across
    turned = full + torch.outer(new_along - along, e1) + torch.outer(new_across - across, e2)
    length = torch.linalg.vector_norm(turned, dim=-1).clamp(min=ZERO)
    made = (turned * (single.radius / length)[:, None]).to(v.dtype)
    still = single.zero if alpha else torch.ones_like(single.zero)
    return single._replace(vectors=torch.where(still[:, None], single.vectors, made))


def anchor_row(rows: Tensor, several: Several = "mean") -> Tensor:
    """One vector for a class phrase of several tokens. rows: (tokens, D) -> (D,).

    "mean": the direction is the mean of the tokens' directions, the norm the mean of their norms. "first", "last": that
    token's row.

    Raises:
        ConfigurationError: the rows have no direction, alone or together.
    """
    if len(rows) == 1 or several != "mean":
        chosen = rows[0] if several == "first" else rows[-1]
    else:
        norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        mean = (rows / norms.clamp(min=ZERO)).mean(0)
        chosen = mean / torch.linalg.vector_norm(mean).clamp(min=ZERO) * norms.mean()
    if float(torch.linalg.vector_norm(chosen)) <= ZERO:
        raise ConfigurationError(
            "the anchor's row in the vocabulary is zero, so it has no direction: name another noun"
        )
    return chosen


# --- prompt level: eq. 2 ---


def adjust_sequence(
    source: Tensor,
    target: Tensor,
    partners: Sequence[int],
    alpha: float,
    gamma: float = 0.5,
    beta: float | None = None,
    norm: Norm | None = None,
    *,
    widths: Sequence[int] = (),
    weights: Tensor | None = None,
    extrapolate: bool = False,
) -> Rotated:
    """Eq. 2: each position of an encoded sentence is turned toward its partner in the class's sentence.

    For any encoder: CLIP's positions, T5's, and, as sequences of one, pooled vectors.

    Args:
        source: (L, D) of the sentence with the learned word.
        target: (M, D) of the same sentence with the class's word.
        partners: (L,) positions in the target; -1 leaves a position as it is.
        widths: where D is made of several encoders' blocks (SDXL: 768, 1280), their widths: each is turned by itself,
            for their scales differ. What is left over (SD3's padding) stays. Empty: one block.
        weights: (D,), see `rotate`; in each block their mean counts.
        alpha, gamma, beta, norm, extrapolate: as in `rotate`.

    Returns:
        vectors (L, D); angle, radius, zero, opposite (L, blocks).

    Raises:
        ThisnessError: partners or widths do not fit.
    """
    if len(partners) != len(source) or not all(NONE <= each < len(target) for each in partners):
        raise ThisnessError(f"{len(partners)} partners for {len(source)} positions, in a target of {len(target)}")
    widths = list(widths) or [source.shape[-1]]
    if sum(widths) > source.shape[-1] or source.shape[-1] != target.shape[-1]:
        raise ThisnessError(f"blocks {widths} in widths {source.shape[-1]} and {target.shape[-1]}: they do not fit")
    index = torch.tensor(partners, device=source.device)
    alone = (index == NONE)[:, None] if NONE in partners else None
    paired = target.to(source.device).index_select(0, index.clamp(min=0))
    if alone is not None:
        paired = torch.where(alone, source, paired)
    parts, start = [], 0
    for width in widths:
        at = slice(start, start + width)
        own = weights[..., at] if weights is not None else None
        parts.append(
            rotate(source[:, at], paired[:, at], alpha, gamma, beta, norm, weights=own, extrapolate=extrapolate)
        )
        start += width
    rest = [source[:, start:]] if start < source.shape[-1] else []
    vectors = torch.cat([*(part.vectors for part in parts), *rest], -1) if parts[1:] or rest else parts[0].vectors
    if alone is not None:
        vectors = torch.where(alone, source, vectors)
    return Rotated(vectors, *(torch.stack(each, -1) for each in list(zip(*parts, strict=True))[1:]))


def positional(source: int, target: int) -> tuple[int, ...]:
    """Position i with position i, as paper and code do; over the target's end its last one."""
    return tuple(min(position, target - 1) for position in range(source))


def aligned(
    source: TokenSpans, target: TokenSpans, places: Sequence[tuple[tuple[int, int], tuple[int, int]]]
) -> tuple[int, ...]:
    """Partners by what the tokens are: the class's sentence is the same but for the places of the subjects.

    Tokens around the places meet themselves. In a place tokens are matched from its end; what is before (a rare word
    before the noun) meets the target's first. End meets end, padding meets padding, over the target's end its last.

    Args:
        source, target: the tokenized sentences.
        places: for each place of a subject its first and last-but-one character in the source and in the target, in
            order.

    Returns:
        (length of the source,); -1 where the target has nothing in a place. Sentences whose tokens differ outside of
        the places ("a", "an") are matched by `aligned_ids`.
    """
    at_source, at_target = _first(source), _first(target)
    partners = list(range(at_source))
    ends = ((len(source.text), len(source.text)), (len(target.text), len(target.text)))
    for (start, end), (other_start, other_end) in [*places, ends]:
        stop_source, stop_target = _reach(source, start), _reach(target, other_start)
        if source.ids[at_source:stop_source] != target.ids[at_target:stop_target]:
            return aligned_ids(source.ids, target.ids, source.end, target.end)
        partners += range(at_target, stop_target)
        at_source, at_target = _reach(source, end), _reach(target, other_end)
        partners += _matched_from_end(at_source - stop_source, stop_target, at_target - stop_target)
    return (*partners, *_tail(len(source.ids) - source.end, target.end, len(target.ids)))


def aligned_ids(source: Sequence[int], target: Sequence[int], source_end: int, target_end: int) -> tuple[int, ...]:
    """Partners by the token numbers alone, for tokenizers whose pieces need not fit the words (T5's).

    Args:
        source, target: (L,), (M,) token numbers, with padding.
        source_end, target_end: positions of the end marks.

    Returns:
        (L,), as `aligned`.
    """
    partners: list[int] = []
    matcher = difflib.SequenceMatcher(a=list(source[:source_end]), b=list(target[:target_end]), autojunk=False)
    for _, start, end, other_start, other_end in matcher.get_opcodes():
        partners += _matched_from_end(end - start, other_start, other_end - other_start)
    return (*partners, *_tail(len(source) - source_end, target_end, len(target)))


def _matched_from_end(count: int, start: int, given: int) -> list[int]:
    """`count` positions against `given` ones from `start`: from the end, the extra ones with the first."""
    if not given:
        return [NONE] * count
    return [start + max(given - count + number, 0) for number in range(count)]


def _tail(count: int, end: int, length: int) -> list[int]:
    """End mark and padding."""
    return [min(end + number, length - 1) for number in range(count)]


def _first(spans: TokenSpans) -> int:
    """The first token after the mark at the beginning."""
    return 1 if spans.roles and spans.roles[0] == "bos" else 0


def _reach(spans: TokenSpans, character: int) -> int:
    """The first token that begins at a character or after it."""
    inside = range(_first(spans), spans.end)
    return next((at for at in inside if spans.offsets[at][0] >= character), spans.end)


def _shares(share: Tensor, weights: Tensor, extrapolate: bool) -> Tensor:
    """alpha_d = alpha w_d / mean(w), at most 1."""
    if not bool(weights.isfinite().all()) or bool((weights < 0).any()):
        raise ConfigurationError("TEA: weights must be at least 0 and finite")
    mean = weights.mean(-1, keepdim=True)
    relative = torch.where(mean > 0, weights / torch.where(mean > 0, mean, torch.ones_like(mean)), 0 * weights)
    return share * relative if extrapolate else (share * relative).clamp(0, 1)


def _untouched(
    v: Tensor, c: Tensor, norm_v: Tensor, norm_c: Tensor, alpha: float | Tensor, gamma: float, beta: float | None,
    norm: Norm | None,
) -> Tensor:  # fmt: skip
    """Where neither direction nor norm is to change."""
    rule = norm or ("ratio" if beta is not None else "blend")
    if rule == "keep" or (rule == "blend" and gamma == 0):
        same_norm = torch.ones_like(norm_v, dtype=torch.bool)
    elif rule == "ratio" and beta != 1:
        same_norm = torch.zeros_like(norm_v, dtype=torch.bool)
    else:
        same_norm = norm_v == norm_c
    if not bool(same_norm.any()) or (not isinstance(alpha, Tensor) and alpha == 0):
        return same_norm
    return same_norm & ((torch.as_tensor(alpha, device=v.device) == 0) | (v == c).all(-1))
