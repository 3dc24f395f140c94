"""Side by side. Oracle: `generate` called by hand for each cell; pixels of the sheet."""

import numpy as np
import pytest
from PIL import Image

import tiny
from thisness.errors import ConfigurationError, PromptError
from thisness.evaluation.compare import Column, compare, recipe_column, sentence_for
from thisness.evaluation.recipes import parse_recipe, resolved
from thisness.generation import generate
from thisness.prompt import Prompt
from thisness.sampling import SamplingOptions

QUICK = SamplingOptions(steps=2, guidance=3.0)
PROMPTS = ["a {subject} sleeping", "a {subject} in the snow"]


@pytest.fixture(scope="module")
def base():
    return tiny.base()


def same(one, other):
    return np.array_equal(np.asarray(one), np.asarray(other))


def test_each_cell_is_what_generate_makes(base):
    columns = [Column("plain", noun="dog"), Column("louder", tiny.Louder())]
    found = compare(base, columns, PROMPTS, seeds=(3, 5), options=QUICK, tile=32)
    for number, prompt in enumerate(PROMPTS):
        plain = generate(base, prompt.replace("{subject}", "dog"), seeds=(3, 5), options=QUICK)
        louder = generate(base, prompt, concept=tiny.Louder(), seeds=(3, 5), options=QUICK)
        for seed in range(2):
            row = found.pictures[2 * number + seed]
            assert same(row[0], plain.images[seed]) and same(row[1], louder.images[seed])
    assert not same(found.pictures[0][0], found.pictures[0][1])
    assert [each["column"] for each in found.record["records"]] == ["plain", "louder"] * 2
    assert found.record["records"][1]["record"]["sentence"] == "a sks dog sleeping"


def test_the_sheet_shows_them_where_they_belong(base):
    found = compare(base, [Column("a", noun="dog"), Column("b", noun="cat")], PROMPTS[:1], options=QUICK, tile=64)
    sheet = np.asarray(found.image)
    places = []
    for picture in found.pictures[0]:  # 16 pixels, enlarged exactly four times
        large = np.asarray(picture.resize((64, 64), Image.Resampling.NEAREST))
        places.append(
            next(
                (x, y)
                for y in range(sheet.shape[0] - 63)
                for x in range(sheet.shape[1] - 63)
                if (sheet[y, x] == large[0, 0]).all() and np.array_equal(sheet[y : y + 64, x : x + 64], large)
            )
        )
    assert places[0][1] == places[1][1] and places[0][0] < places[1][0]


def test_a_recipe_learns_once_and_samples_by_its_own_settings(base, tmp_path):
    text = "textual-inversion:steps=1+sampling:steps=1"
    named = resolved(parse_recipe(text), {"guidance": 2.0})
    column = recipe_column(named, base, tiny.toy(), tmp_path / "learned", SamplingOptions(steps=7, guidance=3.0))
    assert (column.options.steps, column.options.guidance) == (1, 2.0) and column.concept.method == "textual-inversion"
    before = (tmp_path / "learned" / "COMPLETE.json").stat().st_mtime_ns
    assert recipe_column(named, base, tiny.toy(), tmp_path / "learned").concept.hash == column.concept.hash
    assert (tmp_path / "learned" / "COMPLETE.json").stat().st_mtime_ns == before
    plain = recipe_column(resolved(parse_recipe("base")), base, tiny.toy(), tmp_path / "none", QUICK)
    found = compare(base, [column, plain], PROMPTS[:1], tile=32)
    assert same(found.pictures[0][1], generate(base, "a dog sleeping", options=QUICK).images[0])
    assert found.record["records"][0]["record"]["recipe"]["sampling"]["steps"] == 1


def test_a_sentence_with_the_noun_in_its_place():
    assert sentence_for(Prompt("my {toy} on the {toy}"), "red dog") == "my red dog on the red dog"


@pytest.mark.parametrize(
    "columns, prompts, seeds, said",
    [
        ([], PROMPTS, (0,), "no column"),
        ([Column("a", noun="dog")] * 2, PROMPTS, (0,), "two columns are called 'a'"),
        ([Column("a")], PROMPTS, (0,), "column 'a': the plain base needs the class noun"),
        ([Column("a", noun="dog")], PROMPTS, (), "no seed"),
        ([Column("a", noun="dog")], PROMPTS[:1] * 2, (0,), "stands there twice"),
        ([Column("a", noun="dog")], PROMPTS, range(5000), "10000 pictures are more than a sheet can show"),
    ],
)
def test_what_does_not_fit_is_refused(base, columns, prompts, seeds, said):
    with pytest.raises(ConfigurationError, match=said):
        compare(base, columns, prompts, seeds=seeds)


@pytest.mark.parametrize(
    "prompts, said",
    [([], "no sentence"), (["a dog"], "no placeholder"), (["a {a} and {b}", "{"], "3 problems|2 problems")],
)
def test_sentences_need_one_placeholder(base, prompts, said):
    with pytest.raises(PromptError, match=said):
        compare(base, [Column("a", noun="dog")], prompts)
