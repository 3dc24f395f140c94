"""Oracles: hand-computed numbers, the published table of DreamBench++, textbook values of agreement; a strict reader of
answers; bad input in one line."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from thisness.errors import ArtefactError, ConfigurationError, UserError
from thisness.evaluation.items import Item, Picture
from thisness.evaluation.judges import (
    Rated,
    kendall_tau,
    krippendorff_alpha,
    make_judge,
    make_judges,
    protocol_table,
    rank_agreement,
    read_recorded,
)
from thisness.evaluation.judges.answers import Answer, Answers
from thisness.evaluation.judges.protocol import PROMPTS, VARIANTS, Protocol, parse_score
from thisness.evaluation.judges.proxy import ProxyColumn, ProxyMap, fit_proxy, isotonic


def picture(shade: int, size=(8, 8)) -> Picture:
    return Picture(Image.new("RGB", size, (shade, 255 - shade, 7)))


def item(name: str, **changes) -> Item:
    given = {
        "recipe": "r", "subject": "rex", "case": "c", "seed": 0, "picture": picture(len(name)), "noun": "dog",
        "references": (picture(200),), "sentence": "a dog on the beach",
    }  # fmt: skip
    return Item(id=name, **{**given, **changes})


# --- reading answers ---


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("Score: 3", 3),
        ("The ball is missing.\n\n**Score: 2**", 2),
        ("**Score:** 4.", 4),
        ("score = 0", 0),
        ("Score: 3/4", 3),
        ("Score: 1 out of 4", 1),
        ("I would score it highly.\nScore: 4", 4),
        ("2", 2),
        (" **1**\n", 1),
        ("Score: 3 (nearly the same)", 3),
    ],
)
def test_one_score_is_read(answer, score):
    assert parse_score(answer) == score


@pytest.mark.parametrize(
    "answer",
    ["", "Score: 5", "Score: -1", "Score: 3.5", "Score: 2,5", "Score: 14", "Score: 3-4", "Score: 3 or 4", "Score: 3/10",
     "Score: 3\nScore: 3", "Score: 2. Score: 3", "Score: n", "three", "Both have 4 legs.", "3 4", "4 of 4 parts", "10"],
)  # fmt: skip
def test_all_else_is_no_score(answer):
    with pytest.raises(ValueError):
        parse_score(answer)


# --- questions ---


def test_a_question_has_three_turns_and_its_pictures_in_order():
    one = item("x", sentence="a {picture} of a dog")
    cp = Protocol().question("cp", one, one.references[0])
    assert [turn.role for turn in cp.turns] == ["user", "assistant", "user"]
    assert cp.pictures == [one.references[0], one.picture]
    pf = Protocol().question("pf", one)
    assert pf.pictures == [one.picture]
    assert any("a {picture} of a dog" in str(part) for part in pf.turns[2].parts), "the sentence goes in as it is"
    assert "Score: n" in pf.turns[0].parts[0]


def test_styles_are_asked_other_questions_by_their_category_alone():
    def task(category, **changes):
        return Protocol().question("cp", item("x", category=category, **changes), picture(1)).turns[0].parts[0]

    assert "Brushwork" in task("style")
    assert "Brushwork" not in task("object", subject="style-03", noun="style")
    assert "Brushwork" not in task("live-style")


def test_variants_differ_in_one_thing():
    def text(variant, column="cp", **options):
        return str(Protocol(variant).question(column, item("x"), picture(1), **options).turns[0].parts[0])

    assert len({text(variant) for variant in VARIANTS}) == len(VARIANTS)
    assert "pose" in text("human-prior") and "pose" not in text("full")
    assert text("human-prior", "pf") == text("full", "pf")
    assert "Texture" not in text("no-criteria") and "4: " not in text("no-scale")
    assert "nothing else" in text("full") and "nothing else" not in text("full", "pf")
    assert "nothing else" in text("full", "pf", directly=True)
    with pytest.raises(ConfigurationError, match="no variant 'fulll'"):
        Protocol("fulll")


def test_another_wording_is_another_protocol(tmp_path):
    words = json.loads(PROMPTS.read_text())
    words["intro"] = "Be strict."
    (tmp_path / "mine.json").write_text(json.dumps(words))
    mine = Protocol(prompts=tmp_path / "mine.json")
    assert mine.identity["wording"] != Protocol().identity["wording"]
    assert mine.question("pf", item("x")).turns[0].parts[0].startswith("Be strict.")
    del words["kinds"]["pf"]["plan"]
    words["kinds"]["cp-style"]["item"] = ["{picture}"]
    (tmp_path / "mine.json").write_text(json.dumps(words))
    with pytest.raises(ConfigurationError, match="kinds.pf.plan is missing"):
        Protocol(prompts=tmp_path / "mine.json")


# --- DreamBench++ arithmetic ---


def recorded(path, rows):
    keys = ("id", "column", "category", "kind", "pass", "score")
    path.write_text("".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in rows))
    return path


def test_recorded_scores_by_hand(tmp_path):
    """Four pictures, two passes. Traps: an object called "human statue", hyphens, a failure in a pass, a picture that
    lacks its second pass."""
    rows = [
        ("object-07-human-statue-0", "cp", "object", "style", 1, 4),
        ("object-07-human-statue-0", "cp", "object", "style", 2, 3),
        ("live-subject-human-02-old-man-0", "cp", "human", "photorealistic", 1, 1),
        ("live-subject-human-02-old-man-0", "cp", "human", "photorealistic", 2, 0),
        ("style-animal-print-0", "cp", "style", "photorealistic", 1, 2),
        ("style-animal-print-0", "cp", "style", "photorealistic", 2, None),
        ("dog", "cp", "animal", "imaginative", 1, 4),
        ("object-07-human-statue-0", "pf", "object", "style", 1, 4),
        ("object-07-human-statue-0", "pf", "object", "style", 2, 4),
        ("dog", "pf", "animal", "imaginative", 1, 2),
        ("dog", "pf", "animal", "imaginative", 2, 1),
    ]
    table = protocol_table(read_recorded(recorded(tmp_path / "r.jsonl", rows)))
    assert table.passes == 2
    # cp: pass 1 (4 + 1 + 2 + 4) / 16 = 11/16, pass 2 (3 + 0 + 0 + 0) / 16 = 3/16, mean 14/32
    assert table.overall["cp"].mean == pytest.approx(14 / 32, abs=1e-15)
    # pf: (4 + 2) / 8, (4 + 1) / 8, mean 11/16
    assert table.overall["pf"].mean == pytest.approx(11 / 16, abs=1e-15)
    assert table.product == pytest.approx(14 / 32 * 11 / 16, abs=1e-15)
    by_category = {name: share.mean for name, share in table.by_category["cp"].items()}
    assert by_category == pytest.approx({"object": 7 / 8, "human": 1 / 8, "style": 2 / 8, "animal": 4 / 8})
    assert table.by_kind["cp"]["photorealistic"].mean == pytest.approx(3 / 16)
    assert table.by_kind["cp"]["photorealistic"].pictures == 2
    assert set(table.failed) == {("style-animal-print-0", "cp", 2), ("dog", "cp", 2)}
    assert table.overall["cp"].failures == 2


PUBLISHED = """ti .236 .502 .358 .305 .358 .378 .671 .686 .437 .624
dreambooth .356 .640 .199 .488 .476 .494 .789 .775 .504 .721
dreambooth-lora .517 .751 .311 .543 .718 .598 .898 .895 .754 .865
ip-adapter .380 .667 .558 .504 .752 .593 .743 .632 .446 .640
ip-adapter-plus .344 .900 .845 .759 .912 .833 .502 .384 .279 .413
blip .271 .673 .557 .469 .507 .547 .581 .510 .303 .495
emu2 .364 .670 .546 .447 .454 .528 .732 .719 .560 .690
ominicontrol .435 .576 .217 .495 .324 .459 .979 .952 .876 .947
dsd .461 .580 .319 .591 .308 .514 .932 .879 .851 .896
aligngen .521 .653 .407 .700 .333 .598 .934 .863 .758 .871"""


@pytest.mark.parametrize("line", PUBLISHED.splitlines(), ids=lambda line: line.split()[0])
def test_the_published_table_follows_from_its_sub_scores(line):
    """Table 1 of AlignGen (arXiv 2505.21911): 45 animals, 20 humans, 65 objects, 20 styles, nine sentences each, 4
    photorealistic, 3 style, 2 imaginative. An arithmetic mean of category means would miss it by up to 0.08."""
    product, animal, human, objects, style, cp, photo, styled, imaginative, pf = map(float, line.split()[1:])
    means = {"animal": (45, animal), "human": (20, human), "object": (65, objects), "style": (20, style)}
    kinds = ["photorealistic"] * 4 + ["style"] * 3 + ["imaginative"] * 2
    follows = {"photorealistic": photo, "style": styled, "imaginative": imaginative}
    rows = []
    for category, (count, mean) in means.items():
        for subject in range(count):
            for number, kind in enumerate(kinds):
                name = f"{category}-{subject}-{number}"
                rows.append(Rated(name, "cp", (4 * mean,) * 3, category, kind))
                rows.append(Rated(name, "pf", (4 * follows[kind],) * 3, category, kind))
    table = protocol_table(rows)
    rounding = 0.0011  # of published sub-scores and of the fitted counts
    assert table.overall["cp"].pictures == 1350
    assert table.overall["cp"].mean == pytest.approx(cp, abs=rounding)
    assert table.overall["pf"].mean == pytest.approx(pf, abs=rounding)
    assert table.product == pytest.approx(product, abs=2 * rounding)
    assert table.by_category["cp"]["human"].mean == pytest.approx(human)


def test_ratings_of_another_form_are_refused(tmp_path):
    file = tmp_path / "r.jsonl"
    good = {"id": "a", "column": "cp", "pass": 1, "score": 1}
    for wrong, message in [
        ({"score": 5}, "a has score 5"),
        ({"score": "3"}, "line 1: score is '3'"),
        ({"score": True}, "line 1: score is True"),
        ({"score": float("nan")}, "a has score nan"),
        ({"pass": 0}, "line 1: pass is 0"),
        ({"pass": 10**9}, "line 1: pass is 1000000000"),
        ({"column": "dino"}, "a has column 'dino'"),
        ({"id": None}, "line 1: id, column"),
    ]:
        file.write_text(json.dumps({**good, **wrong}))
        with pytest.raises(ArtefactError, match=message) as told:
            protocol_table(read_recorded(file))
        assert "\n" not in str(told.value)
    file.write_text(json.dumps(good) + "\n" + json.dumps({**good, "score": 2}) + "\n{\n")
    with pytest.raises(ArtefactError, match=r"line 2: a, cp, pass 1 is there twice; line 3 is not an object"):
        read_recorded(file)
    with pytest.raises(ArtefactError, match="cannot be read"):
        read_recorded(tmp_path / "nothing.jsonl")
    with pytest.raises(ArtefactError, match="there are none"):
        protocol_table([])
    with pytest.raises(ArtefactError, match="a is there twice in cp"):
        protocol_table([Rated("a", "cp", (1,)), Rated("a", "cp", (2,))])


# --- recorded, constant, registry ---


def test_recorded_ratings_as_columns(tmp_path):
    rows = [
        ("a", "cp", "", "", 1, 4),
        ("a", "cp", "", "", 2, 2),
        ("b", "cp", "", "", 1, 1),
        ("b", "cp", "", "", 2, None),
    ]
    (column,) = make_judge(f"recorded:file={recorded(tmp_path / 'r.jsonl', rows)}")
    assert column.name == "recorded:cp"
    assert column.score([item("a"), item("b"), item("c")]) == [0.75, 0.125, 0.0]
    assert [(each.item, each.times, each.reason) for each in column.failures] == [
        ("b", 2, "recorded as failed"), ("c", 1, "not in the file"), ("c", 2, "not in the file")
    ]  # fmt: skip
    assert json.loads(json.dumps(column.identity)) == column.identity


def test_names_that_do_not_exist():
    with pytest.raises(ConfigurationError, match=r"no judge 'oracel' \(did you mean 'oracle'\?\)"):
        make_judge("oracel")
    with pytest.raises(ConfigurationError, match=r"no column 'folow' \(did you mean 'follow'\?\)"):
        make_judge("oracle:folow")
    with pytest.raises(ConfigurationError, match=r"no setting 'valeu' \(did you mean 'value'\?\)"):
        make_judge("constant:valeu=1")
    with pytest.raises(ConfigurationError, match="two columns are called 'constant:value'"):
        make_judges(["constant", "constant:value=1"])
    assert make_judge("constant:value=0.25")[0].score([item("a")] * 2) == [0.25, 0.25]


# --- answers on disk ---


def test_answers_outlive_torn_and_changed_lines(tmp_path):
    file = tmp_path / "deep" / "answers.jsonl"
    kept = Answers(file)
    for number in range(4):
        kept.add(Answer(f"key{number}", number, "Score\n" + "é" * number))
    kept.add(Answer("failed", None, "?", "no score"))
    lines = file.read_bytes().split(b"\n")
    lines[1] = lines[1].replace(b'"score": 1', b'"score": 4')  # somebody improved it
    file.write_bytes(b"\n".join(lines[:-1])[:-9])  # and the last line, the failure, is torn
    again = Answers(file)
    assert {answer.key: answer.score for answer in again} == {"key0": 0, "key2": 2, "key3": 3}
    assert again.damaged == 2
    again.add(Answer("key1", 1))
    assert {answer.key for answer in Answers(file)} == {"key0", "key1", "key2", "key3"}, "a torn line spoils no other"
    for score in (math.nan, 7, -1, True, "3", None):
        assert not Answer("k", score).valid
    with pytest.raises(UserError, match="cannot be"):
        Answers(tmp_path).add(Answer("k", 1))


# --- agreement ---


def test_krippendorff_alpha_of_the_textbook():
    """Krippendorff (2011), example C/D/E: four observers, twelve units; interval alpha .849."""
    nothing = None
    observers = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, nothing, nothing, nothing],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, nothing, 3],
        [nothing, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, nothing],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, nothing],
    ]
    assert krippendorff_alpha(observers) == pytest.approx(0.849, abs=0.0005)


def test_krippendorff_alpha_is_its_definition():
    """Against the sum over all pairs, written out."""
    rng = np.random.default_rng(0)
    table = rng.integers(0, 5, (3, 20)).astype(float).tolist()
    table[1][4] = table[2][4] = table[0][7] = None
    units = [[row[u] for row in table if row[u] is not None] for u in range(20)]
    units = [unit for unit in units if len(unit) > 1]
    values = [value for unit in units for value in unit]
    n = len(values)
    observed = sum(sum((a - b) ** 2 for a in unit for b in unit) / (len(unit) - 1) for unit in units) / n
    expected = sum((a - b) ** 2 for a in values for b in values) / (n * (n - 1))
    assert krippendorff_alpha(table) == pytest.approx(1 - observed / expected, abs=1e-12)
    assert krippendorff_alpha([[1, 2, 3], [1, 2, 3]]) == 1
    for wrong, message in [([[1, 1], [1, 1]], "all ratings are equal"), ([[1, None], [None, 2]], "no unit has two"),
                           ([[1], [1, 2]], "the same units")]:  # fmt: skip
        with pytest.raises(UserError, match=message):
            krippendorff_alpha(wrong)


def test_kendall_tau_of_the_textbook():
    assert kendall_tau([1, 2, 3, 4], [1, 2, 3, 4]) == 1
    assert kendall_tau([1, 2, 3, 4], [4, 3, 2, 1]) == -1
    assert kendall_tau([1, 2, 3, 4, 5], [3, 4, 1, 2, 5]) == pytest.approx((6 - 4) / 10)
    assert kendall_tau([12, 2, 1, 12, 2], [1, 4, 7, 1, 0]) == pytest.approx(-0.4714045, abs=1e-7)  # scipy's own example
    with pytest.raises(UserError, match="ranks nothing"):
        kendall_tau([1, 1], [1, 2])
    assert rank_agreement({"a": 0.1, "b": 0.2, "only": 9}, {"b": 0.9, "a": 0.3}) == 1
    with pytest.raises(UserError, match="1 methods in common"):
        rank_agreement({"a": 1}, {"a": 1})


# --- proxy ---


def test_isotonic_by_hand_and_by_its_definition():
    values, fitted = isotonic([1, 2, 3, 4, 5, 3], [1, 3, 2, 2, 4, 2])
    assert values.tolist() == [1, 2, 3, 4, 5]
    assert fitted.tolist() == pytest.approx([1, 2.25, 2.25, 2.25, 4])  # (3 + 2 + 2 + 2) / 4
    rng = np.random.default_rng(1)
    x, y = np.arange(30.0), rng.normal(size=30) + np.arange(30) / 8
    _, found = isotonic(x, y)
    # minimax formula of isotonic regression: max over i <= k of min over j >= k of mean(y[i..j])
    said = [max(min(y[i : j + 1].mean() for j in range(k, 30)) for i in range(k + 1)) for k in range(30)]
    assert found == pytest.approx(np.array(said))


class Brightness:
    name = "brightness"
    identity = {"metric": "brightness", "size": (8, 8)}

    def score(self, items):
        return [None if each.id == "none" else float(np.asarray(each.picture.image)[..., 0].mean()) for each in items]


def test_a_proxy_maps_its_metric(tmp_path, monkeypatch):
    metric = Brightness()
    shades = [10 * n for n in range(20)]
    ratings = [min(4, n // 4) for n in range(20)]
    ratings[3], ratings[9] = 2, 1  # noise
    fitted = fit_proxy(metric, [*shades, None], [*ratings, 4], "cp")
    assert 0.8 < fitted.tau < 1 and fitted.pairs == 20
    fitted.save(tmp_path / "map.json")
    loaded = ProxyMap.load(tmp_path / "map.json")
    _, levels = isotonic(shades, ratings)
    assert [loaded(shade) for shade in shades] == pytest.approx(levels.tolist()), "dropped points lie on the line"
    asked = []
    made = lambda names, **options: asked.append((names, options)) or [metric]  # noqa: E731
    monkeypatch.setattr("thisness.evaluation.metrics.make_metrics", made)
    (column,) = make_judge(f"proxy:map={tmp_path / 'map.json'}", device="meta", cache="kept")
    assert asked == [(["brightness"], {"device": "meta", "cache": "kept"})]
    assert column.name == "proxy:cp:brightness"
    values = column.score([item("a", picture=picture(0)), item("b", picture=picture(255)), item("none")])
    assert values == [pytest.approx(levels[0] / 4), pytest.approx(levels[-1] / 4), None]

    monkeypatch.setattr(Brightness, "identity", {"metric": "brightness", "size": (9, 9)})
    with pytest.raises(ConfigurationError, match=r"another brightness \(size differ\)"):
        ProxyColumn(loaded, metric, "file")
    with pytest.raises(UserError, match="2 ratings with a value of brightness"):
        fit_proxy(metric, [1, 2], [1, 2], "cp")
    with pytest.raises(UserError, match="ratings must be 0 ... 4"):
        fit_proxy(metric, shades, [9] * 20, "cp")
    damaged = json.loads((tmp_path / "map.json").read_text())
    damaged["scores"] = damaged["scores"][::-1]
    (tmp_path / "map.json").write_text(json.dumps(damaged))
    with pytest.raises(ArtefactError, match="is damaged"):
        ProxyMap.load(tmp_path / "map.json")
