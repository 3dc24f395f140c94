"""The experiment on DETEX. Oracle: rows of chosen numbers, and the verdict that they must give."""

import detex
import pytest

from thisness.evaluation.items import Scored

NOUNS = {f"toy-{number}": "dog" if number % 2 else "teapot" for number in range(6)}


def rows(recipe, family, **values):
    """One row a toy; each value is given for all toys, or as one for each."""
    return [
        Scored(
            f"{recipe}-{family}-{toy}", recipe, toy, "case", family, 0, "a dog",
            {name.replace("__", ":"): each[at] if isinstance(each, list) else each for name, each in values.items()},
            None, "", 0.0,
        )
        for at, toy in enumerate(NOUNS)
    ]  # fmt: skip


def test_chance_is_that_of_a_toys_own_poses():
    assert detex.chance("dog", "oracle:pose") == pytest.approx(1 / 6)
    assert detex.chance("teapot", "oracle:pose") == pytest.approx(1 / 3)
    assert detex.chance("teapot", "oracle:background") == pytest.approx(1 / 10)


def test_what_is_kept_counts_over_chance():
    at_chance = [detex.chance(noun, "oracle:pose") for noun in NOUNS.values()]
    kept = rows("detex", "keep-pose", oracle__pose=1.0, oracle__background=0.1)
    found = detex.kept_lines([*kept, *rows("detex", "alone", oracle__pose=at_chance)], NOUNS)
    said = {line.split("|")[1].strip(): line.split("**")[1] for line in found}
    assert said == {
        "[P] of a picture brings back its pose": "seen",
        "... while the place is followed": "not seen",
        "[V] alone: the asked pose": "not seen",
    }


def test_the_drop_is_what_the_references_backgrounds_gave():
    found = detex.with_drop(rows("detex", "alone", **{"dino-i": 0.8, "dino-i-fg": 0.7}))
    assert found[0].values["drop"] == pytest.approx(0.1)
    assert detex.with_drop(rows("detex", "alone", **{"dino-i": 0.8, "dino-i-fg": None}))[0].values["drop"] is None


def test_claims_are_about_recipes_that_are_run_and_families_that_there_are():
    from thisness.evaluation.benchmarks.playroom_prompts import CONTROL

    labels = {entry.partition("=")[0] for entry in detex.ABLATIONS}
    for claims, there in ((detex.MAIN_CLAIMS, set(detex.MAIN.split(","))), (detex.ABLATION_CLAIMS, labels)):
        assert {side for claim in claims for side in (claim.first, claim.second)} <= there
        assert {family for claim in claims for family in claim.families} <= set(CONTROL)
    assert labels - {side for claim in detex.ABLATION_CLAIMS for side in (claim.first, claim.second)} == set()
