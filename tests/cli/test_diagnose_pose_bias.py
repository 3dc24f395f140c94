"""`thisness diagnose pose-bias`. Oracle: what it must write on tiny models; input that must be refused in one line."""

import json

import pytest
from evaluation.rulers import save_vit

from thisness import cli

QUICK = ("--steps", "1", "--guidance", "0", "--seeds", "0-4", "--controls", "4")
PROMPT = "a {subject} sleeping"


def test_a_page_and_numbers_and_the_same_again(base_folder, concept_folder, photos, tmp_path, capsys):
    words = ["diagnose", "pose-bias", PROMPT, "--concept", str(concept_folder), "--subject", str(photos)]
    words += ["--base", str(base_folder), "--encoder", str(save_vit(tmp_path / "vit")), "--asked", "1.png", *QUICK]
    assert cli.run([*words, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    data = json.loads((tmp_path / "out" / "pose-bias.json").read_text())
    assert data["sentence"] in said and data["poses"] is None
    assert data["subject"]["noun"] == "dog" and data["tempting"] == [True, False, True, True]
    assert data["seeds"]["generated"] == [0, 1, 2, 3, 4] and data["seeds"]["plain"] == [5, 6, 7, 8]
    assert (tmp_path / "out" / "pose-bias.png").is_file() and "<rex>" not in data["neutral"]
    assert len(list((tmp_path / "out" / "plain").glob("*-seed-*.png"))) == 4


@pytest.mark.parametrize(
    "words, said",
    [
        (["--noun", "dog"], "--subject"),
        (["--subject", "photos"], "--noun"),
        (["--subject", "photos", "--noun", "dog", "--seeds", "0-2"], "3 seeds"),
        (["--subject", "photos", "--noun", "dog", "--neutral", "a dog"], "placeholder"),
        (["--subject", "nowhere", "--noun", "dog"], "nowhere is not there"),
        (["--subject", "photos", "--noun", "dog"], "--encoder"),
        (["--subject", "photos", "--noun", "dog", "--encoder", "playroom-clap"], "playroom-clip"),
        (["--subject", "photos", "--noun", "dog", "--asked", "9.png", "--encoder", "vit"], "9.png"),
    ],
)
def test_what_does_not_fit_is_refused(refused, base_folder, photos, tmp_path, words, said):
    given = {"photos": photos, "vit": tmp_path / "vit"}
    if "vit" in words:
        save_vit(tmp_path / "vit")
    words = [given.get(word, word) for word in words]
    assert said in refused("diagnose", "pose-bias", PROMPT, "--base", base_folder, *words)
