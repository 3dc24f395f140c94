"""Recipes by name and the plan. Oracles: the grammar spelt out; what must and must not change an id."""

from __future__ import annotations

from dataclasses import replace

import pytest
from evaluation import toys

from thisness.errors import ConfigurationError
from thisness.evaluation.plan import Settled, batches_of, make_plan, narrowed, plan_text
from thisness.evaluation.recipes import parse_recipe, parse_recipes, resolved, split_recipes
from thisness.recipe import Spec

HASHES = {"rex": "1" * 64, "mia": "2" * 64}
SAMPLING = {"steps": 2, "guidance": 7.5}


def settled(text: str, learning=None, **sampling) -> Settled:
    return Settled(parse_recipe(text), learning, {**SAMPLING, **sampling})


@pytest.fixture
def bench(tmp_path):
    return toys.benchmark(tmp_path)


def planned(bench, recipes, hashes=HASHES, signature="s", batch_size=2):
    return make_plan(bench, recipes, hashes, signature, batches_of(bench.seeds, batch_size))


@pytest.mark.parametrize(
    ("seeds", "kept", "found"),
    [
        ((0, 1, 2), (), [(0, 1), (2,)]),
        ((0, 1, 2), [(0,)], [(0,), (1, 2)]),
        ((3, 0, 2, 1, 4), [(0, 2)], [(0, 2), (3, 1), (4,)]),
        ((0, 1), [(0, 2)], [(0, 1)]),
    ],
)
def test_seeds_that_were_made_together_stay_together(seeds, kept, found):
    assert batches_of(seeds, 2, kept) == found


@pytest.mark.parametrize(
    "typed, found",
    [
        (["base,dreambooth-lora"], ["base", "dreambooth-lora"]),
        (["base", "detex,tea"], ["base", "detex", "tea"]),
        (["a:x=1,y=2,b,c:z=3"], ["a:x=1,y=2", "b", "c:z=3"]),
        (["a:x=1,y=2+p:q=3,r=4,b"], ["a:x=1,y=2+p:q=3,r=4", "b"]),
        (["a+p,b"], ["a+p", "b"]),
        (["one=a,two=b"], ["one=a", "two=b"]),
        (["a:x=1;two=b:y=1e+5"], ["a:x=1", "two=b:y=1e+5"]),
        (['a:x="1,2;3",b'], ['a:x="1,2;3"', "b"]),
        ([" a , ,b; "], ["a", "b"]),
    ],
)
def test_lists_of_recipes(typed, found):
    assert split_recipes(typed) == found


def test_the_parts_of_a_recipe():
    found = parse_recipe(
        'long=dreambooth-lora:steps=200,preset=small+tea:alpha=0.2+sampling:scheduler=dpm+++swap:t="a+b"'
    )
    assert (found.label, found.preset) == ("long", "small")
    assert found.recipe.method == Spec.of("dreambooth-lora", steps=200)
    assert found.recipe.sampling == Spec.of("sampling", scheduler="dpm++")
    assert found.recipe.adjustments == (Spec.of("tea", alpha=0.2), Spec.of("swap", t="a+b"))
    assert parse_recipe("base").recipe.method is None
    assert parse_recipe("dreambooth-lora:lr=1e+3").recipe.method.values == {"lr": 1000.0}
    assert parse_recipe("dreambooth-lora:steps=200+tea:alpha=0.2").label == "dreambooth-lora-steps-200-tea-alpha-0-2"


@pytest.mark.parametrize(
    "typed, says",
    [
        (["base:steps=3"], "base learns nothing"),
        (["a=base,a=base+sampling:steps=2"], "two recipes are called 'a'"),
        (["../x=base"], "the recipe's label '../x'"),
        ([""], "no recipe"),
        (["a:x"], "not of the form key=value"),
        (["base+sampling:steps=1+sampling:steps=2"], "sampling stands there twice"),
    ],
)
def test_what_is_no_recipe_is_said(typed, says):
    with pytest.raises(ConfigurationError, match=says):
        parse_recipes(typed)


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ConfigurationError, match="did you mean 'dreambooth-lora'"):
        resolved(parse_recipe("dreambooth-lore"))
    with pytest.raises(ConfigurationError, match="did you mean 'sampling'"):
        resolved(parse_recipe("base+samplin:steps=2"))
    with pytest.raises(ConfigurationError, match="did you mean 'steps'"):
        resolved(parse_recipe("base+sampling:stepz=2"))


def test_a_recipes_own_sampling_wins():
    found = resolved(parse_recipe("base+sampling:steps=3"), {"steps": 9, "guidance": 2.0})
    assert found.recipe.sampling.values == {"steps": 3, "guidance": 2.0}


def test_one_row_for_each_picture_and_every_id_once(bench):
    rows = planned(bench, [settled("base"), settled("textual-inversion", {"steps": 2})])
    pictures = [row for row in rows if row.role == "picture"]
    assert len({row.id for row in rows}) == len(rows)
    assert sum(row.recipe == "base" for row in pictures) == 2 * (4 + 1)  # seeds x (cases with a subject + drift)
    assert sum(row.recipe == "textual-inversion" for row in pictures) == 2 * (4 + 2)  # drift once for each subject
    assert {row.sentence for row in pictures if row.case == "mia-beach"} == {"a cat on the beach"}
    assert plan_text(rows) == plan_text(planned(bench, [settled("base"), settled("textual-inversion", {"steps": 2})]))


def test_ids_follow_from_all_that_decides_a_picture_and_from_nothing_else(bench):
    def ids(recipe=None, bench=bench, **changes):
        rows = planned(bench, [recipe or settled("x=textual-inversion", {"steps": 2})], **changes)
        return {(row.subject, row.case, row.seed): row.id for row in rows if row.role == "picture"}

    before = ids()
    assert ids(settled("other-label=textual-inversion", {"steps": 2})) == before
    different = [
        ids(settled("x=textual-inversion", {"steps": 3})),
        ids(settled("x=dreambooth-lora", {"steps": 2})),
        ids(settled("x=textual-inversion+tea:alpha=1", {"steps": 2})),
        ids(settled("x=textual-inversion", {"steps": 2}, guidance=1.0)),
        ids(signature="t"),
        ids(batch_size=1),
    ]
    for after in different:
        assert not set(after.values()) & set(before.values())
    other = ids(hashes={**HASHES, "mia": "3" * 64})
    assert {key for key in before if other[key] != before[key]} == {key for key in before if key[0] == "mia"}
    text = replace(bench, cases=(replace(bench.cases[0], text="a {subject} in the snow"), *bench.cases[1:]))
    changed = ids(bench=text)
    assert {key for key in before if changed[key] != before[key]} == {k for k in before if k[1] == bench.cases[0].id}


def test_baselines_are_the_base_recipes_own_where_there_is_one(bench):
    both = planned(bench, [settled("base"), settled("textual-inversion", {})])
    by_id = {row.id: row for row in both}
    assert all(row.role == "picture" for row in both)
    for row in both:
        other = by_id[row.baseline]
        assert (other.recipe, other.sentence, other.seed) == ("base", row.sentence, row.seed)
    alone = planned(bench, [settled("textual-inversion", {})])
    added = [row for row in alone if row.role == "baseline"]
    assert [(row.case, row.seed, row.slots) for row in added] == [("drift-hat", 0, ()), ("drift-hat", 1, ())]
    assert {row.baseline for row in alone if row.family == "drift" and row.role == "picture"} == {r.id for r in added}
    assert {row.id for row in added} <= {row.id for row in both}, "made under the same name by whatever plan"


def test_baselines_are_sampled_alike(bench):
    rows = planned(bench, [settled("base"), settled("textual-inversion", {}, guidance=1.0)])
    learned = [row for row in rows if row.recipe == "textual-inversion" and row.role == "picture"]
    made = {row.id for row in rows if row.role == "baseline"}
    assert all((row.baseline in made) == (row.family == "drift") for row in learned)


def test_twice_the_same_is_refused(bench):
    with pytest.raises(ConfigurationError, match="'two' and 'one' are the same"):
        planned(bench, [settled("one=base"), settled("two=base")])


def test_a_part_of_a_benchmark(bench):
    part = narrowed(bench, subjects=("mia",), families=("pose",), seeds=(5,))
    assert [case.id for case in part.cases] == ["mia-sleeping"] and part.seeds == (5,)
    assert [each.name for each in part.subjects] == ["mia"]
    with pytest.raises(ConfigurationError, match="did you mean 'mia'.*did you mean 'pose'"):
        narrowed(bench, subjects=("mya",), families=("poses",))
    with pytest.raises(ConfigurationError, match="nothing of toy is left"):
        narrowed(replace(bench, cases=bench.cases[:1]), subjects=("mia",))


def test_what_keeps_something_is_asked_only_of_recipes_that_can(bench):
    case = bench.cases[0]
    kept = replace(case, id="kept", keep=("pose:1", "background:0"))
    more = replace(bench, cases=(*bench.cases, kept))
    knows = replace(settled("b=detex"), keeps=frozenset({"pose", "background"}))
    half = replace(settled("c=detex:x=1", {"x": 1}), keeps=frozenset({"pose"}))
    rows = planned(more, [settled("base"), knows, half])
    assert {row.recipe for row in rows if row.case == "kept"} == {"b"}
    same = {row.case: row.id for row in rows if row.recipe == "b" and row.seed == bench.seeds[0]}
    assert same["kept"] != same[case.id] and {row.keep for row in rows if row.case == case.id} == {()}
    without = replace(more, cases=(*bench.cases, replace(kept, keep=("pose:1",))))
    assert {row.recipe for row in planned(without, [knows, half]) if row.case == "kept"} == {"b", "c"}
    assert {row.id for row in planned(without, [knows])} != {row.id for row in planned(more, [knows])}
