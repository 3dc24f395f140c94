"""What the commands read from the line. Oracle: values worked out by hand, and the words of the messages."""

from dataclasses import MISSING, dataclass, field
from typing import Literal

import pytest

from thisness.cli.options import fields, parse_pairs, parse_seeds
from thisness.errors import ConfigurationError, UserError
from thisness.recipe import build_settings


@dataclass(frozen=True)
class Settings:
    steps: int = 100
    lr: float = 1e-3
    prior: bool = True
    rank: int | None = None
    noise: Literal["gaussian", "uniform"] = "gaussian"
    targets: tuple[str, ...] = ("to_q", "to_v")
    betas: tuple[float, float] = (0.9, 0.999)
    word: str = field(default="sks", metadata={"help": "the rare word"})
    sizes: list[int] = field(default_factory=lambda: [1, 2])


@pytest.mark.parametrize(
    "text, seeds",
    [
        ("0", (0,)),
        ("0-3,7", (0, 1, 2, 3, 7)),
        (" 5 , 1-2 ", (5, 1, 2)),
        ("3,1-4", (3, 1, 2, 4)),
        (str(2**63 - 1), (2**63 - 1,)),
        ("0-9999", tuple(range(10_000))),
    ],
)
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "neither a seed nor a range"),
        ("1,,2", "neither a seed nor a range"),
        ("-1", "neither a seed nor a range"),
        ("1.5", "neither a seed nor a range"),
        ("a", "write e.g. 0-3,7"),
        ("7-3", "write 3-7"),
        (str(2**63), "too large"),
        ("0-10000", "more than 10000"),
        ("0-9998,20000-20001", "more than 10000"),
        ("0-99999999999999", "more than 10000"),
    ],
)
def test_seeds_that_are_none(text, says):
    with pytest.raises(UserError, match=says):
        parse_seeds(text)


@pytest.mark.parametrize(
    "pair, value",
    [
        ("steps=20", 20),
        ("lr=5e-4", 5e-4),
        ("lr=1", 1),
        ("prior=false", False),
        ("prior=True", True),
        ("rank=none", None),
        ("rank=8", 8),
        ("noise=uniform", "uniform"),
        ("word=a=b", "a=b"),
        ('word="5"', "5"),
    ],
)
def test_values(pair, value):
    (found,) = parse_pairs([pair]).values()
    assert found == value and type(found) is type(value)


def test_a_repeated_setting_has_its_last_value_and_dashes_are_underscores():
    assert parse_pairs(["steps=1", "steps=2"]) == {"steps": 2}


def test_lists_are_written_with_commas():
    given = parse_pairs(["targets=to_k, to_v", "betas=0.5,0.6"])
    settings = build_settings(given, Settings, "it")
    assert settings.targets == ("to_k", "to_v") and settings.betas == (0.5, 0.6)


def test_everything_of_another_form_is_said_at_once():
    with pytest.raises(ConfigurationError) as error:
        parse_pairs(["prior", "steps=3", "rank=", "=2"])
    message = str(error.value)
    assert all(f"{word!r} is not of the form key=value" in message for word in ("prior", "rank=", "=2"))
    assert "\n" not in message


def test_fields_with_defaults_and_meanings():
    known = fields(Settings)
    assert known["word"] == (str, "sks", "the rare word")
    assert known["sizes"][1] == [1, 2]

    @dataclass
    class Needs:
        width: int

    assert fields(Needs)["width"][1] is MISSING
