"""Measures of semantic collapse. Oracles: 22 to 24 of the spec; numbers by other means; planted drift."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from thisness.diagnostics import collapse_distances as d
from thisness.diagnostics.collapse import (
    Ruler,
    Sets,
    Signal,
    Verdict,
    beside_class,
    concluded,
    measure,
    over_training,
    rows_beside,
    vocabulary,
    warnings_of,
)
from thisness.errors import ThisnessError


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- oracle 22: Mahalanobis ---


@pytest.mark.parametrize("count", [5, 60, 100])
def test_the_papers_mahalanobis_within_a_set_tells_nothing(count):
    for data in (normal(count, 100), normal(count, 100) * torch.logspace(-2, 2, 100).double() + 7):
        found = d.mahalanobis(data, data, None)
        assert float(found) == pytest.approx((count - 1) / math.sqrt(count), rel=1e-6)


def test_mahalanobis_with_a_fixed_covariance_is_linear_under_contraction():
    data = normal(60, 100)
    fixed = d.reference(data)
    one = d.mahalanobis(data, data, fixed)
    for scale in (0.5, 0.1, 3.0):
        moved = data.mean(0) + scale * (data - data.mean(0)) + 5
        assert float(d.mahalanobis(moved, moved, fixed)) == pytest.approx(scale * float(one), rel=1e-9)


def test_mahalanobis_is_that_of_the_shrunk_covariance_written_out():
    p, q, base = normal(7, 5), normal(9, 5, seed=1) + 2, normal(30, 5, seed=2)
    s = np.cov(base.numpy().T)
    s = 0.9 * s + 0.1 * np.trace(s) / 5 * np.eye(5)
    away = p.numpy() - q.numpy().mean(0)
    wanted = np.mean([np.sqrt(row @ np.linalg.solve(s, row)) for row in away])
    assert float(d.mahalanobis(p, q, d.reference(base))) == pytest.approx(wanted, rel=1e-10)


# --- oracle 23: the other distances ---


def test_hausdorff():
    p, q = normal(6, 4), normal(9, 4, seed=1)
    assert torch.equal(d.hausdorff(p, q), d.hausdorff(q, p)) and float(d.hausdorff(p, q)) > 0
    assert float(d.hausdorff(p, p[torch.randperm(6)])) == 0
    assert float(d.hausdorff(torch.cat([p, p[:2]]), p)) == 0
    line = torch.tensor([[0.0], [1.0], [5.0]]).double()
    assert float(d.hausdorff(line[:2], line)) == 4 and float(d.hausdorff_within(line)) == 4


def test_l2_with_and_without_itself():
    p = normal(11, 4)
    pairs = [float((p[i] - p[j]).norm()) for i in range(11) for j in range(11) if i != j]
    assert float(d.l2_within(p)) == pytest.approx(np.mean(pairs), rel=1e-12)
    assert float(d.l2_within(p)) == pytest.approx(11 / 10 * float(d.l2_within(p, itself=True)), rel=1e-12)


def test_kl():
    p, q = normal(8, 4), normal(8, 4, seed=1)
    assert float(d.kl(p, p)) == 0 and float(d.kl(p, q)) > 0
    lengths = torch.linspace(0.1, 9, 8).double()[:, None]
    assert float(d.kl(p * lengths, q)) == pytest.approx(float(d.kl(p, q)), rel=1e-9)
    with pytest.raises(ThisnessError, match="8 and 7"):
        d.kl(p, q[:7])
    u, v = (each.numpy() / np.linalg.norm(each.numpy(), axis=1, keepdims=True) for each in (p, q))
    rows = []
    for i in range(8):
        a, b = (np.exp(s[i] @ s.T) / np.exp(s[i] @ s.T).sum() for s in (u, v))
        rows.append((a * np.log((a + 1e-8) / (b + 1e-8))).sum())
    assert float(d.kl(p, q, 1.0, floor=1e-8)) == pytest.approx(np.mean(rows), rel=1e-6)


def test_spread_of_cosines_grows_with_their_spread():
    assert float(d.spread_of_cosines(normal(1, 6).expand(9, 6))) == pytest.approx(0, abs=1e-12)
    assert float(d.spread_of_cosines(torch.eye(9, dtype=torch.float64))) == pytest.approx(0, abs=1e-12)
    middle = torch.zeros(6, dtype=torch.float64)
    middle[0] = 4
    values = [float(d.spread_of_cosines(middle + s * normal(40, 6))) for s in (0.0, 0.3, 0.6, 1.2)]
    assert values == sorted(values) and values[-1] > 10 * values[1] > 0


COUNTED = {
    "l2": lambda p, q, c: d.l2(p, q, c, c),
    "l2_within": lambda p, q, c: d.l2_within(p, c),
    "hausdorff": lambda p, q, c: d.hausdorff(p, q, c, c),
    "hausdorff_within": lambda p, q, c: d.hausdorff_within(p, c),
    "mahalanobis": lambda p, q, c: d.mahalanobis(p, q, d.reference(normal(30, 4, seed=5)), c, c),
    "kl": lambda p, q, c: d.kl(p, q, 0.3, c),
    "spread_of_cosines": lambda p, q, c: d.spread_of_cosines(p, 0.3, c),
    "paired": lambda p, q, c: d.paired(p, q, c),
    "paired_cosine": lambda p, q, c: d.paired_cosine(p, q, c),
}


@pytest.mark.parametrize("name", COUNTED)
def test_counting_every_sentence_once_or_leaving_some_out(name):
    """Counts of 1 are the set itself; counts of 0 and 1 the smaller set; counts of 2 everywhere change nothing where
    pairs of a sentence with itself do not count."""
    p, q, which = normal(9, 4), normal(9, 4, seed=1), [0, 2, 3, 7]
    some = torch.zeros(9).double()
    some[which] = 1
    counts = torch.stack([torch.ones(9).double(), some, 2 * torch.ones(9).double()])
    found = COUNTED[name](p, q, counts)
    assert float(found[0]) == pytest.approx(float(COUNTED[name](p, q, None)), rel=1e-9)
    assert float(found[1]) == pytest.approx(float(COUNTED[name](p[which], q[which], None)), rel=1e-9)
    if name not in ("kl", "spread_of_cosines"):
        assert float(found[2]) == pytest.approx(float(found[0]), rel=1e-9)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Mean distance of pairs one apart in each of 4 directions, plus noise: 200 sets of 30."""
    inside = 0
    for seed in range(200):
        p = normal(30, 4, seed=seed)
        q = p + 0.3 * normal(30, 4, seed=1000 + seed)
        low, high = d.interval(d.paired(p, q, d.draws(30, 300)))
        truth = 0.3 * math.sqrt(2) * math.gamma(2.5) / math.gamma(2)
        inside += low <= truth <= high
    assert 0.88 <= inside / 200 <= 0.98


# --- oracle 24: a planted collapse ---


def planted(steps: int = 10, count: int = 40, width: int = 32, to: float = 0.8) -> tuple[dict[int, Sets], Sets]:
    """p_i(s) = (1-s) a_i + s V, s from 0 to 0.8; V 4 spreads from the mean. The simple sentences lie about V."""
    a, simple = normal(count, width), normal(count, width, seed=1) * 0.3
    spread = float(d.l2_within(a))
    v = torch.zeros(width, dtype=torch.float64)
    v[0] = 4 * spread
    times = {}
    for n in range(steps):
        s = to * n / (steps - 1)
        times[10 * n] = Sets((1 - s) * a + s * v, simple + v)
    return times, Sets(a, simple + v / 2)


def test_planted_collapse_late_minus_early():
    times, noun = planted()
    ruler = Ruler(d.reference(noun.context))
    early, late = (measure(times[step], noun, ruler, resamples=50) for step in (0, 90))
    for pair, name, sign in [("between", "l2", 1), ("within", "l2", -1), ("to_simple", "l2", -1),
                             ("between", "hausdorff", 1), ("within", "hausdorff", -1),
                             ("within", "mahalanobis", -1), ("between", "mahalanobis", 1)]:  # fmt: skip
        assert sign * (late[pair][name].value - early[pair][name].value) > 0, (pair, name)
        assert late[pair][name].low <= late[pair][name].value <= late[pair][name].high
    paired = [float(d.paired(noun.context, times[step].context)) for step in sorted(times)]
    assert all(b > a for a, b in zip(paired, paired[1:], strict=False))  # where L2 over all pairs may dip first


def test_planted_collapse_is_found_and_shuffled_in_time_it_is_not():
    times, noun = planted()
    verdict = over_training(times, noun, resamples=100)
    assert verdict.collapsed and {each.state for each in verdict.signals} == {"seen"}
    for signal in verdict.signals:
        assert 0 < signal.low < signal.change < signal.high and signal.p < 0.01
    within = next(each for each in verdict.signals if each.name == "within")
    assert within.half == 50  # half of 0.8 is 0.4, between the steps 40 and 50
    found = 0
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(len(times))
        shuffled = {step: times[10 * int(n)] for step, n in zip(sorted(times), order, strict=True)}
        found += over_training(shuffled, noun, resamples=50).collapsed
    assert found <= 2  # 1 in 20 is what the test allows itself


def test_no_collapse_backwards_too_few_times_and_noise():
    times, noun = planted()
    backwards = over_training(dict(zip(times, reversed(times.values()), strict=True)), noun, resamples=50)
    assert backwards.word == "not collapsed"
    assert over_training({step: times[step] for step in (0, 10, 20, 90)}, noun) is None
    quiet = {n: Sets(noun.context + 1e-3 * normal(40, 32, seed=n), noun.simple) for n in range(8)}
    assert over_training(quiet, noun, resamples=50).word == "not collapsed"


def test_a_finished_word_beside_its_class():
    times, noun = planted()
    nearer = Sets(times[50].context, noun.simple * 0 + times[50].context.mean(0))
    assert beside_class(nearer, noun, resamples=100).word == "collapsed"
    assert beside_class(noun, noun, resamples=100).word == "not collapsed"


# --- norm and direction ---


def test_rows_beside_the_vocabulary():
    table = torch.zeros(203, 3)
    table[:200, 0] = torch.arange(1, 201) / 200  # norms 0.005 ... 1
    table[200] = torch.tensor([0.0, 50.0, 0.0])  # a mark; 201, 202: zero, as some real rows are
    known = vocabulary(table, torch.tensor([0.5, 0.0, 0.0]), [200], {"end": 200})
    assert len(known.norms) == 200 and known.marks == {"end": 50.0}
    found = rows_beside(torch.tensor([[0.0, 0.7525, 0.0], [1.0, 1.0, 0.0]]), known)
    assert found.percentile == [75.0, 100.0]
    assert found.angle == pytest.approx([90, 45]) and found.cosine == pytest.approx([0, math.sqrt(0.5)], abs=1e-7)
    assert found.log_ratio[0] == pytest.approx(math.log(0.7525 / 0.5), rel=1e-6)


def test_the_first_step_outside_of_what_words_look_like():
    known = vocabulary(torch.eye(4)[:, :3].repeat(50, 1) + 0.01, torch.tensor([1.0, 0, 0]), [], {})
    drifting = {step: rows_beside(torch.tensor([[1.0, step / 10, 0.0]]), known) for step in range(0, 100, 10)}
    said = warnings_of(drifting | {None: drifting[90]})
    assert said == ["norm above 99.5 % of the vocabulary from step 10 on",
                    "cosine to the class word below 0.2 from step 50 on"]  # fmt: skip


def test_the_conclusion_says_whether_when_how_far_and_what_to_do():
    """One line, whatever the verdicts; a word that has collapsed by any of them is said to have."""

    def verdict(basis, word, change, half=None):
        signals = [
            Signal(name, change, change - 0.1, change + 0.1, None, "seen", half) for name in ("between", "within")
        ]
        return Verdict(basis, word, tuple(signals))

    told = verdict("training", "cannot tell", 0.1)
    for verdicts, words in (
        ([verdict("training", "collapsed", 0.34, 120)], ["has collapsed", "34 % less", "step 120", "--adjust tea"]),
        ([told, verdict("class word", "collapsed", 0.5)], ["has collapsed", "50 % less", '"dog"', "--adjust tea"]),
        ([told, verdict("class word", "not collapsed", -0.2)], ["cannot be told"]),
        ([verdict("class word", "not collapsed", -0.2)], ["has not collapsed", "20 % more"]),
    ):
        said = concluded("rex", "dog", verdicts, touched=True)
        assert all(word in said for word in words) and "\n" not in said, said
    assert "no word of its own" in concluded("rex", "dog", [told], touched=False)
