"""Claims against numbers. Oracle: planted differences whose sign is known, and what the rule says in words."""

import claims
import pytest
from claims import NONE, NOT_SEEN, OPPOSITE, SEEN, Claim, judged, verdict
from evaluation.synthetic import row


@pytest.mark.parametrize(
    ("low", "high", "expects", "said"),
    [
        (0.01, 0.2, "higher", SEEN), (-0.01, 0.2, "higher", NOT_SEEN), (-0.2, -0.01, "higher", OPPOSITE),
        (0.01, 0.2, "lower", OPPOSITE), (-0.01, 0.2, "lower", NOT_SEEN), (-0.2, -0.01, "lower", SEEN),
        (-0.01, 0.3, "kept", SEEN), (-0.01, -0.005, "kept", SEEN), (-0.05, 0.1, "kept", NOT_SEEN),
        (-0.3, -0.05, "kept", OPPOSITE), (None, None, "higher", NONE), (0.0, 0.1, "higher", NOT_SEEN),
    ],
)  # fmt: skip
def test_the_rule(low, high, expects, said):
    assert verdict(low, high, expects, 0.02) == said


def planted(difference, toys=8, family="pose"):
    """Two recipes on the same cases; the first is `difference` higher, give or take."""
    rows = {"a": [], "b": []}
    for toy in range(toys):
        for seed in range(3):
            rows["b"].append(row("b", f"toy-{toy}", "case", seed, {"clip-t": 0.3 + 0.01 * toy}, family=family))
            value = 0.3 + 0.01 * toy + difference + 0.002 * (-1) ** toy
            rows["a"].append(row("a", f"toy-{toy}", "case", seed, {"clip-t": value}, family=family))
    return rows


@pytest.mark.parametrize(("difference", "said"), [(0.05, SEEN), (-0.05, OPPOSITE), (0.0, NOT_SEEN)])
def test_a_planted_difference_is_told(difference, said):
    answer = judged(Claim("x", "clip-t", "a", "b"), planted(difference))
    assert answer[0] == said and float(answer[1].split()[0]) == pytest.approx(difference, abs=6e-4)
    turned = judged(Claim("x", "clip-t", "a", "b", "lower"), planted(difference))
    assert turned[0] == {SEEN: OPPOSITE, OPPOSITE: SEEN}.get(said, said)


def test_few_toys_are_no_verdict_and_other_families_do_not_count():
    for toys, said in ((1, NONE), (5, NONE), (6, SEEN)):
        assert judged(Claim("x", "clip-t", "a", "b"), planted(0.5, toys=toys))[0] == said
    assert judged(Claim("x", "clip-t", "a", "b", families=("style",)), planted(0.5)) == (NONE, "-", "-")
    assert claims.lines([Claim("x", "clip-t", "a", "nobody")], planted(0.5)) == []


def test_numbers_of_toys():
    assert claims.over_toys([0.1, 0.2, 0.15] * 2, "higher")[0] == SEEN
    assert claims.over_toys([0.1, -0.2, 0.15] * 2, "higher")[0] == NOT_SEEN
    assert claims.over_toys([0.1] * 5, "higher")[0] == NONE and claims.over_toys([], "higher")[0] == NONE
