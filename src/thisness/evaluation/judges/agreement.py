"""Is a judge worth asking? How far it agrees with other raters, and whether it ranks methods as they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...errors import UserError


def krippendorff_alpha(ratings: Sequence[Sequence[float | None]]) -> float:
    """Krippendorff's alpha for interval data: 1 full agreement, 0 that of chance, below 0 worse than chance.

    Args:
        ratings: (raters, units); None where a rater did not rate a unit. Units with fewer than two ratings say nothing.

    Raises:
        UserError: raters with different numbers of units, nothing to compare, or all ratings equal (alpha is not
            defined then).

    Source: K. Krippendorff, Computing Krippendorff's Alpha-Reliability (2011); alpha = 1 - observed disagreement /
    expected disagreement, with squared differences.
    """
    if len({len(row) for row in ratings}) != 1:
        raise UserError("raters must have rated the same units: give None where one did not")
    table = np.array([[np.nan if value is None else value for value in row] for row in ratings], dtype=np.float64)
    counts = (~np.isnan(table)).sum(0)
    table, counts = table[:, counts >= 2], counts[counts >= 2]
    values = table[~np.isnan(table)]
    if values.size == 0:
        raise UserError("no unit has two ratings: there is nothing to compare")
    # sum over pairs of squared differences = 2 n (sum of squared deviations from the mean)
    deviations = np.nansum((table - np.nanmean(table, axis=0)) ** 2, axis=0)
    observed = float((2 * counts * deviations / (counts - 1)).sum()) / values.size
    expected = 2 * float(((values - values.mean()) ** 2).sum()) / (values.size - 1)
    if expected == 0:
        raise UserError("all ratings are equal: agreement beyond chance is not defined")
    return 1 - observed / expected


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-b between two lists of values, in [-1, 1]; ties are accounted for.

    Raises:
        UserError: lists of different lengths, fewer than two values, or a list in which all are equal.

    Source: M. Kendall, The treatment of ties in ranking problems (1945).
    """
    if len(first) != len(second) or len(first) < 2:
        raise UserError(f"ranks of {len(first)} and {len(second)} values: expected two lists of one length, 2 or more")
    above = np.triu_indices(len(first), 1)
    signs = [np.sign(np.subtract.outer(values, values))[above] for values in map(np.asarray, (first, second))]
    untied = [float((sign != 0).sum()) for sign in signs]
    if 0 in untied:
        raise UserError("all values of a list are equal: it ranks nothing")
    return float((signs[0] * signs[1]).sum()) / float(np.sqrt(untied[0] * untied[1]))


def rank_agreement(judge: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Kendall's tau-b between two judges' means of the same methods.

    Args:
        judge, other: mean value by the method's name; methods that only one of them knows are left out.

    Raises:
        UserError: fewer than two methods in common, or one of them finds all equal.
    """
    common = sorted(judge.keys() & other.keys())
    if len(common) < 2:
        raise UserError(f"{len(common)} methods in common: ranks need two or more")
    return kendall_tau([judge[name] for name in common], [other[name] for name in common])
