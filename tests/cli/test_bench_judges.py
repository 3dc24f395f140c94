"""`thisness bench ratings`, `agreement`, `fit-proxy`. Oracles: sums by hand, alpha from its definition over pairs, the
isotonic map of chosen points."""

import hashlib
import json
from itertools import combinations

import pytest
from evaluation.synthetic import picture

from thisness import cli
from thisness.evaluation.judges.proxy import ProxyMap
from thisness.evaluation.metrics import make_metrics
from thisness.evaluation.results import FORMAT, VERSION, identity_hash, line_of

RECIPES = ("base", "lora", "detex")
JUDGED = [[0.0, 0.25, 0.25, 0.5], [0.5, 0.5, 0.75, 1.0], [0.25, 0.5, 0.5, 0.75]]  # base < detex < lora
PEOPLE = [[1, 1, 1, 1], [2, 3, 3, 4], [3, 3, 4, 4]]  # base < lora < detex


@pytest.fixture
def run_folder(tmp_path):
    """Three recipes, four pictures each, judged; `copy-pose` grows with people's ratings, but for one tie."""
    folder = tmp_path / "run"
    (folder / "images").mkdir(parents=True)
    (metric,) = make_metrics(["copy-pose:by=silhouette"])
    identities = {
        "oracle:follow": {"judge": "oracle"},
        "copy-pose:by=silhouette": metric.identity,
        "clip-t": {"metric": "clip-t", "encoder": {"model": "gone"}},
    }
    hashes = {name: identity_hash(each) for name, each in identities.items()}
    plan, lines, ratings = [], [], []
    for number, recipe in enumerate(RECIPES):
        for at in range(4):
            name = f"{recipe}-{at}"
            about = {"recipe": recipe, "subject": "toy", "case": f"c{at}", "family": "pose", "seed": 0}
            plan.append({"id": name, "role": "picture", "sentence": "a toy", **about})
            picture(folder / "images" / f"{name}.png")
            values = {"oracle:follow": JUDGED[number][at], "clip-t": 0.5}
            values["copy-pose:by=silhouette"] = 0.1 * PEOPLE[number][at]
            lines.append({"kind": "picture", "id": name, "sha256": name, "seconds": 1.0})
            lines.append({"kind": "score", "id": name, "image": name, "of": "", "identities": hashes, "values": values})
            ratings.append({"id": name, "column": "pf", "pass": 1, "score": PEOPLE[number][at]})
    text = "".join(json.dumps(row) + "\n" for row in plan)
    about = {"format": FORMAT, "version": VERSION, "benchmark": {"name": "toys", "subjects": {}}, "environment": {}}
    about |= {"recipes": {r: {"text": r} for r in RECIPES}, "base": {"name": "tiny"}, "metrics": identities}
    about |= {"command": "", "plan": hashlib.sha256(text.encode()).hexdigest()}
    (folder / "plan.jsonl").write_text(text)
    (folder / "run.json").write_text(json.dumps(about))
    (folder / "results.jsonl").write_bytes(b"".join(line_of(line) for line in lines))
    (tmp_path / "people.jsonl").write_text("".join(json.dumps(each) + "\n" for each in ratings))
    return folder


def alpha_of(one, other):
    """1 - mean squared difference within pictures / mean squared difference of all pairs of ratings."""
    within = sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) / len(one)
    pairs = list(combinations([*one, *other], 2))
    return 1 - within / (sum((a - b) ** 2 for a, b in pairs) / len(pairs))


def test_a_judge_and_people_are_compared_on_pictures_and_ranks(run_folder, tmp_path, capsys, refused):
    words = ["bench", "agreement", str(run_folder), "--judge", "oracle:follow"]
    people = ["--ratings", str(tmp_path / "people.jsonl")]
    assert cli.run([*words, *people, "--json", str(tmp_path / "a.json")]) == 0
    said, found = capsys.readouterr().out, json.loads((tmp_path / "a.json").read_text())
    expected = alpha_of([4 * v for row in JUDGED for v in row], [float(v) for row in PEOPLE for v in row])
    assert found["alpha"] == pytest.approx(expected) and found["shared"] == 12
    assert found["ranks"][0]["tau"] == pytest.approx(1 / 3)  # two of three pairs of recipes in one order
    assert f"alpha {expected:.3f} over 12 pictures" in said and "tau-b 0.333 of 3 recipes" in said
    assert "two raters" in refused(*words)
    assert "did you mean 'oracle:follow'" in refused("bench", "agreement", run_folder, "--judge", "oracle:folow")
    assert "rates none of the pictures" in refused(*words, *people, "--column", "cp")
    assert "expected cp or pf" in refused(*words, *people, "--column", "both")


def test_a_proxy_is_fitted_to_a_runs_metric_and_kept(run_folder, tmp_path, capsys, refused):
    words = ["bench", "fit-proxy", str(run_folder), "--column", "pf", "--out", str(tmp_path / "map.json")]
    people = ["--ratings", str(tmp_path / "people.jsonl")]
    assert cli.run([*words, "--metric", "copy-pose:by=silhouette", *people]) == 0
    assert "12 pictures, Kendall's tau-b 1.000" in capsys.readouterr().out
    made = ProxyMap.load(tmp_path / "map.json")
    assert made.metric == "copy-pose:by=silhouette" and made.column == "pf"
    assert [made(0.1), made(0.25), made(0.4)] == pytest.approx([1, 2.5, 4])
    assert "did you mean 'clip-t'" in refused(*words, "--metric", "clip-tt", *people)
    assert "cannot be made again" in refused(*words, "--metric", "clip-t", *people)
    assert "one of the two" in refused(*words, "--metric", "clip-t")
    assert "one of the two" in refused(*words, "--metric", "clip-t", *people, "--judge", "oracle:follow")


def test_the_table_of_a_file_of_ratings(tmp_path, capsys):
    rows = [
        {"id": "a", "column": "cp", "category": "animal", "pass": 1, "score": 4},
        {"id": "a", "column": "cp", "category": "animal", "pass": 2, "score": 2},
        {"id": "b", "column": "cp", "category": "object", "pass": 1, "score": None},
        {"id": "b", "column": "cp", "category": "object", "pass": 2, "score": 1},
        {"id": "a", "column": "pf", "category": "animal", "pass": 1, "score": 2},
        {"id": "a", "column": "pf", "category": "animal", "pass": 2, "score": 2},
    ]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.run(["bench", "ratings", str(tmp_path / "r.jsonl"), "--json", str(tmp_path / "t.json")]) == 0
    said, table = capsys.readouterr().out, json.loads((tmp_path / "t.json").read_text())
    assert table["overall"]["cp"]["mean"] == pytest.approx((4 + 2 + 0 + 1) / 16)
    assert table["by_category"]["cp"]["object"]["mean"] == pytest.approx(1 / 8)
    assert table["product"] == pytest.approx(7 / 16 * 0.5) and f"CP x PF {7 / 32:.3f}" in said
    assert table["overall"]["cp"]["failures"] == 1 and "animal" in said


def test_a_file_that_is_no_ratings_is_one_line(tmp_path, refused):
    (tmp_path / "r.jsonl").write_text("{}\n")
    assert "line 1 is not an object with id" in refused("bench", "ratings", tmp_path / "r.jsonl")
    assert "cannot be read" in refused("bench", "ratings", tmp_path / "none.jsonl")
