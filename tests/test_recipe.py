"""Oracle: what is written is what is read; all that is wrong is said at once, with the nearest name (SAFETY 10)."""

import json
import pickle
from dataclasses import dataclass, field
from typing import Literal

import pytest

from thisness.errors import ConfigurationError
from thisness.recipe import Known, Recipe, Spec, build_settings, parse_spec, settings_problems, validate


@dataclass(frozen=True)
class Tea:
    alpha: float = 0.2
    beta: float | None = None
    positions: Literal["all", "content"] = "all"
    layers: tuple[int, ...] = ()
    size: tuple[int, int] = (1, 2)
    steps: int = 10
    on: bool = True
    anchor: str = ""
    hidden: int = field(default=0, init=False)

    def __post_init__(self):
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha}: expected 0 ... 1")


@dataclass(frozen=True)
class Needy:
    rank: int


KNOWN = Known(methods={"dreambooth": Needy}, adjustments={"tea": Tea}, attachments={"swap": Tea}, sampling=Tea)


def test_specs_are_read():
    spec = parse_spec(
        ' tea:alpha=0.2, steps=10,on=true,beta=none,anchor=teddy bear,layers="1,2",x=-1e-3,flag-name=False '
    )
    assert spec.name == "tea"
    assert spec.values == {
        "alpha": 0.2,
        "steps": 10,
        "on": True,
        "beta": None,
        "anchor": "teddy bear",
        "layers": "1,2",
        "x": -0.001,
        "flag_name": False,
    }
    assert parse_spec("tea") == Spec("tea")


@pytest.mark.parametrize(
    "value",
    [1, -3, 0.1, 1e-9, 1e300, True, None, "text", "two words", "1", "true", "none", "a,b", "1.5", "", "a=b", "é:"],
)
def test_what_is_written_is_read_again(value):
    spec = Spec.of("tea", {"key": value, "other": 1})
    again = parse_spec(str(spec))
    assert again == spec and type(again.values["key"]) is type(value)


@pytest.mark.parametrize(
    "text", ["", ":", "Tea", "tea:", "tea:alpha", "tea:=1", "tea:a=1,,b=2", 'tea:a="1', "tea:a=1,a=2", "a/b"]
)
def test_specs_of_another_form(text):
    with pytest.raises(ConfigurationError, match="^adjustment .*write name:key=value,key=value") as caught:
        parse_spec(text, "adjustment")
    assert "\n" not in str(caught.value)


def test_recipes_survive_json_and_pickle():
    recipe = Recipe(
        Spec.of("dreambooth", rank=8),
        (Spec.of("tea", alpha=0.2, layers=[1, 2]), Spec.of("tea")),
        (Spec.of("swap", size=(3, 4)),),
        Spec.of("sampling", steps=20),
    )
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    assert len({recipe, Recipe.from_dict(recipe.to_dict())}) == 1
    assert Recipe.from_dict({}) == Recipe() and Recipe.from_dict(Recipe().to_dict()) == Recipe()
    assert Recipe.from_dict({"adjustments": ["tea:alpha=0.5"]}).adjustments == (Spec.of("tea", alpha=0.5),)


def test_data_that_are_no_recipe():
    with pytest.raises(ConfigurationError) as caught:
        Recipe.from_dict(
            {
                "adjustmens": [],
                "method": {"name": "x", "alpha": 1},
                "adjustments": "tea",
                "attachments": [{"nme": "swap"}, "swap:1", {"name": "swap", "settings": {"a": {}}}],
                "sampling": 3,
            }
        )
    message = str(caught.value)
    assert message.startswith("recipe: 7 problems: ") and "\n" not in message
    for part in (
        "unknown key 'adjustmens' (did you mean 'adjustments'?)",
        "method 'x': unknown key 'alpha' (its settings go under 'settings')",
        "adjustments must be a list, not str",
        "{'nme': 'swap'} is not {name, settings}",
        "'1' is not of the form",
        "attachment 'swap': the value of a is not a number",
        "sampling must be an object",
    ):
        assert part in message
    with pytest.raises(ConfigurationError, match="a recipe is an object"):
        Recipe.from_dict([1])


def test_valid_recipes_pass():
    validate(Recipe(), KNOWN)
    validate(
        Recipe(Spec.of("dreambooth", rank=8), (Spec.of("tea", alpha=1, layers=[1, 2], size="3,4", beta=2),)), KNOWN
    )  # whole numbers are numbers; lists may be written as text


def test_all_errors_of_a_recipe_at_once():
    recipe = Recipe(
        Spec.of("dreambuth"),
        (Spec.of("tea", alpah=1, positions="al", steps=1.5, on=1, layers="1,b", size="1"), Spec.of("tea", alpha=3)),
        (Spec.of("tea"),),
        Spec.of("sampling", steps=True, alpha=float("nan")),
    )
    with pytest.raises(ConfigurationError) as caught:
        validate(recipe, KNOWN)
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "11 problems: ",
        "unknown method 'dreambuth' (did you mean 'dreambooth'?); known: dreambooth",
        "tea has no setting 'alpah' (did you mean 'alpha'?)",
        "tea.positions is al: expected one of all, content",
        "tea.steps is 1.5: expected a whole number",
        "tea.on is 1: expected true or false",
        'tea.layers is "1,b": expected a list of a whole number',
        "tea.size is",
        "tea: alpha is 3.0: expected 0 ... 1",
        "unknown attachment 'tea'; known: swap",
        "sampling.steps is true: expected a whole number",
        "sampling.alpha is nan: expected a finite number",
    ):
        assert part in message


def test_missing_settings():
    assert settings_problems({}, Needy, "dreambooth") == ["dreambooth.rank is not set: expected a whole number"]
    with pytest.raises(ConfigurationError, match="hidden"):
        build_settings({"hidden": 1}, Tea, "tea")


def test_settings_arrive_in_the_types_of_their_fields():
    built = build_settings({"alpha": 1, "layers": "3,1", "size": [5, 6], "beta": 2}, Tea, "tea")
    assert built == Tea(alpha=1.0, layers=(3, 1), size=(5, 6), beta=2)
    assert type(built.alpha) is float and type(built.layers) is tuple and type(built.size) is tuple
    assert build_settings({"layers": 4}, Tea, "tea").layers == (4,)
