"""`thisness diagnose concept`. Oracles: what it must write on tiny models; the same again; refusals in one line."""

import json
import re

import pytest

from thisness import cli


@pytest.fixture(scope="module")
def tracked(base_folder, photos, tmp_path_factory):
    """A word learned by the command itself, in six steps, looked at in each."""
    folder = tmp_path_factory.mktemp("tracked") / "rex"
    words = ["learn", "textual-inversion", str(photos), "--noun", "dog", "--base", str(base_folder), "--steps", "6"]
    words += ["--track-collapse", "--keep-meaning", "0.1", "--out", str(folder)]
    assert cli.run(words) == 0
    return folder


def test_a_page_a_picture_numbers_and_a_verdict(tracked, base_folder, tmp_path, capsys):
    words = ["diagnose", "concept", str(tracked), "--base", str(base_folder), "--count", "12"]
    written = []
    for out in (tmp_path / "one", tmp_path / "again"):
        assert cli.run([*words, "--out", str(out)]) == 0
        said = capsys.readouterr().out.splitlines()
        written.append([(out / f"collapse.{end}").read_bytes() for end in ("html", "png", "json")])
    assert written[0] == written[1]
    data = json.loads(written[0][2])
    assert [each["step"] for each in data["training"]] == list(range(7))
    assert data["sentences"] == said[-3:-1] and data["concept"]["tokens"][0] == "<rex>"
    assert re.match(r"rex, while it learned: (collapsed|not collapsed|cannot tell): ", said[-3])
    assert re.match(r'rex, beside "dog": (collapsed|not collapsed|cannot tell): .* %', said[-2])
    assert data["conclusion"] == said[-1] and said[-1].startswith("Conclusion: ") and "rex" in said[-1]
    page = written[0][0].decode()
    assert (
        "<svg" in page
        and "<script" not in page
        and "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    )
    assert all(line.replace('"', "&quot;").replace("'", "&#x27;") in page for line in said[-3:])


def test_as_the_papers_code_measures(tracked, base_folder, tmp_path):
    words = ["diagnose", "concept", str(tracked), "--base", str(base_folder), "--count", "12", "--paper"]
    assert cli.run([*words, "--out", str(tmp_path / "out")]) == 0
    data = json.loads((tmp_path / "out" / "collapse.json").read_text())
    assert data["settings"]["pool"] == "last" and data["settings"]["temperature"] == 1
    count = data["settings"]["context"]
    assert data["distances"]["within"]["mahalanobis"]["value"] == pytest.approx(
        data["distances"]["class_within"]["mahalanobis"]["value"], rel=0.05
    )
    assert data["distances"]["within"]["mahalanobis"]["value"] <= (count - 1) / count**0.5 + 1e-6


def test_a_concept_without_words_of_its_own_and_nothing_recorded(concept_folder, base_folder, tmp_path, capsys):
    words = ["diagnose", "concept", str(concept_folder), "--base", str(base_folder), "--count", "12"]
    assert cli.run([*words, "--out", str(tmp_path / "out")]) == 0
    data = json.loads((tmp_path / "out" / "collapse.json").read_text())
    assert data["training"] == [] and len(data["verdicts"]) == 1
    assert data["touched"] == bool(data["concept"]["tokens"])
    assert data["sentences"][0] in capsys.readouterr().out


def test_tracking_that_came_too_late_is_said(base_folder, concept_folder, photos, capsys):
    words = ["learn", "dreambooth-lora", str(photos), "--noun", "dog", "--base", str(base_folder), "--steps", "2"]
    words += ["--set", "prior_pictures=0", "--out", str(concept_folder), "--track-collapse"]
    assert cli.run(words) == 0
    assert "--fresh learns it anew" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, said",
    [
        (["nowhere"], "nowhere is not there"),
        (["CONCEPT", "--anchor", "\u00e9"], "no token for"),
        (["CONCEPT", "--pool", "middle"], "expected eos, last or mean"),
        (["CONCEPT", "--temperature", "0"], "--temperature 0.0"),
        (["CONCEPT", "--prompts", "nowhere.txt"], "nowhere.txt is not there"),
        (["CONCEPT", "--out", "FILE"], "is a file: name a folder"),
    ],
)
def test_what_does_not_fit_is_refused(refused, tracked, base_folder, tmp_path, words, said):
    (tmp_path / "file").write_text("mine")
    given = {"CONCEPT": tracked, "FILE": tmp_path / "file"}
    assert said in refused("diagnose", "concept", *[given.get(w, w) for w in words], "--base", base_folder)
