"""`thisness train`. Oracles: what was typed, in the folder that is written; the one line of what is refused."""

import json

import pytest
from things import coco, draw_thing, draw_things, vis

from thisness import cli
from thisness.files import read_json

QUICK = ("--steps", "2", "--batch-size", "2", "--preview-every", "0")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    draw_things(root / "things")
    coco(root / "coco")
    vis(root / "vis")
    return root


def coco_word(root):
    return f"coco:{root}/coco/annotations/instances_train2014.json,{root}/coco/train2014"


def test_several_data_become_a_folder_that_generate_reads(base_folder, places, tmp_path, capsys):
    out = tmp_path / "mine"
    given = [places / "things", coco_word(places), f"youtube-vis:{places}/vis/instances.json,{places}/vis/JPEGImages"]
    words = ["train", "ezigen", *map(str, given), "--base", str(base_folder), "--out", str(out), *QUICK, "--lr", "0.01"]
    words += ["--set", "least=100", "--set", "gate_lr=0.5", "--seed", "3"]
    assert cli.run(words) == 0
    said = capsys.readouterr()
    assert f"--method ezigen:weights={out}" in said.out and "things: 2 things" in said.err
    told = read_json(out / "training.json")
    kept = [told["settings"][key] for key in ("steps", "lr", "batch_size", "seed", "least", "gate_lr")]
    assert kept == [2, 0.01, 2, 3, 100, 0.5] and len(told["data"]) == 3
    assert json.loads((out / "log.jsonl").read_text().splitlines()[-1])["step"] == 2
    written = (out / "model.safetensors").stat().st_mtime_ns
    assert cli.run(words) == 0 and (out / "model.safetensors").stat().st_mtime_ns == written
    picture = places / "things" / "rex" / "0.png"
    method = f"ezigen:weights={out},max_loops=0,min_loops=0,share=1"
    words = ["generate", "a {subject}", "--subject", str(picture), "--noun", "dog", "--method", method, "--seeds", "0"]
    assert cli.run([*words, "--base", str(base_folder), "--steps", "2", "--out", str(tmp_path / "pictures")]) == 0
    assert list((tmp_path / "pictures").glob("*.png"))


@pytest.mark.parametrize(
    "words, says",
    [
        (["coca:a,b"], "no form of data 'coca' (did you mean 'coco'?)"),
        (["coco:a"], "expected coco:INSTANCES.json,PICTURES[,CAPTIONS.json]"),
        (["coco:none.json,none"], "2 problems"),
        (["nothing"], "nothing: no such folder: data are"),
        ([], "the pairs to be trained on are missing"),
        (["THINGS", "--set", "stepz=3"], "did you mean 'steps'?"),
        (["THINGS", "--steps", "5", "--set", "steps=6"], "--steps 5 and --set steps=6: say it once"),
        (["THINGS", "--set", "drop_both=0.9"], "drop_both 0.9"),
        (["BARE"], "2.png: no mask (NAME_mask.png beside NAME.png, or transparency)"),
        (["SINGLE"], "no thing with two pictures (one)"),
        (["SILENT"], "what kind of thing is it"),
    ],
)
def test_refusals_are_one_line(refused, base_folder, places, tmp_path, words, says):
    if not (places / "bare").exists():
        draw_thing(places / "bare", (9, 9, 9), noun="dog", masks=False)
        draw_thing(places / "single" / "one", (9, 9, 9), noun="dog", count=1)
        draw_thing(places / "silent", (9, 9, 9))
    names = {"THINGS": "things", "BARE": "bare", "SINGLE": "single", "SILENT": "silent"}
    words = [str(places / names[word]) if word in names else word for word in words]
    out = tmp_path / "mine"
    assert says in refused("train", "ezigen", *words, "--base", base_folder, "--out", out)
    assert not out.exists() and not (tmp_path / "mine.training").exists()


def test_methods_and_bases_that_do_not_fit_are_said(refused, base_folder, places, tmp_path):
    things = places / "things"
    assert "did you mean 'ezigen'?" in refused("train", "ezigan", things, "--base", base_folder)
    said = refused("train", "ominicontrol", things, "--base", base_folder, "--out", tmp_path / "x")
    assert "FLUX" in said and "--base flux-dev" in said


def test_settings_are_listed_with_their_meaning(capsys):
    from thisness.methods.pair_training import TRAININGS, training_named

    for name in TRAININGS:
        assert cli.run(["train", name, "--settings"]) == 0
        said = capsys.readouterr().out
        assert all(f"  {key} = " in said for key in training_named(name).Settings.__dataclass_fields__)
