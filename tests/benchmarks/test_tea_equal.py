"""TEA's extensions at equal identity. Oracle: curves whose value at every identity is known."""

import pytest
import tea_equal
from evaluation.synthetic import picture, row


@pytest.mark.parametrize(
    ("identity", "found"),
    [(0.9, 0.1), (0.5, 0.5), (0.7, 0.3), (0.1, 0.9), (0.95, None), (0.05, None)],
)
def test_a_line_is_read_between_its_points(identity, found):
    assert tea_equal.at([(0.9, 0.1), (0.5, 0.5), (0.1, 0.9)], identity) == (found and pytest.approx(found))


def test_a_curve_that_turns_back_gives_its_highest():
    assert tea_equal.at([(0.8, 0.2), (0.9, 0.4), (0.8, 0.9)], 0.85) == pytest.approx(0.65)
    assert tea_equal.at([(0.8, 0.2), (0.8, 0.6)], 0.8) == 0.6


def planted(over, toys=8):
    """A sweep on which each toy's following is its own number minus half its identity; an extension `over` it."""
    rows = {"a": [], "b": [], "extension": []}
    for toy in range(toys):
        for label, identity, more in (("a", 0.8, 0.0), ("b", 0.4, 0.0), ("extension", 0.5 + 0.01 * toy, over)):
            values = {"identity": identity, "follow": 0.9 + 0.01 * toy - identity / 2 + more}
            rows[label].append(row(label, f"toy-{toy}", "case", 0, values))
    return rows


@pytest.mark.parametrize("over", [0.07, 0.0, -0.07])
def test_what_is_over_the_curve_is_the_gain(over):
    found, outside = tea_equal.gains(planted(over), ["a", "b"], "extension", "follow", "identity")
    assert outside == 0 and len(found) == 8
    assert all(value == pytest.approx(over) for value in found.values())


def test_toys_outside_of_the_sweep_are_counted():
    rows = planted(0.1)
    rows["extension"][0] = row("extension", "toy-0", "case", 0, {"identity": 0.3, "follow": 0.9})
    found, outside = tea_equal.gains(rows, ["a", "b"], "extension", "follow", "identity")
    assert outside == 1 and "toy-0" not in found


def test_the_verdict_is_by_the_common_rule():
    named = {"more": "extension", "not run": "other"}
    text = tea_equal.section(planted(0.07), ["a", "b"], named, [("followed", "follow")], "identity")
    said = [each for each in text if each.startswith("| more")]
    assert len(said) == 1 and said[0].endswith("**seen** |") and "+0.070" in said[0]
    assert not tea_equal.section(planted(0.07), ["a", "missing"], named, [("followed", "follow")], "identity")


def test_pictures_that_nothing_was_done_to_are_counted(tmp_path):
    rows = {"plain": [], "auto": [], "norm": []}
    for seed in range(3):
        same = picture(tmp_path / f"{seed}.png", "red")
        other = picture(tmp_path / f"{seed}-other.png", "blue")
        for label, image, value in (("plain", same, 0.4), ("auto", other if seed else same, 0.4), ("norm", other, 0.6)):
            rows[label].append(row(label, "toy", "case", seed, {"follow": value}, image=image))
    (said, _) = tea_equal.unchanged(rows, "auto", "plain", "norm", "follow", "followed")
    assert said.startswith("In 1 of 3 pictures `auto` is the same as `plain`") and "0.40, by `norm` 0.60" in said
    assert not tea_equal.unchanged(rows, "norm", "plain", "auto", "follow", "followed")
