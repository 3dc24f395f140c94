"""Loaders on small folders of the exact layout: good, slightly wrong, incomplete, hostile.

Oracle: the folders are written here from plain lists, which the loaders must give back.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from thisness.errors import ArtefactError
from thisness.evaluation.benchmarks import describe, load_benchmark
from thisness.evaluation.benchmarks import ds as ds_set
from thisness.images import load_mask

OBJECT = ["a {0} {1} in the jungle", "a red {0} {1}"]
LIVE = ["a {0} {1} on top of a dog\\'s bed", "a {0} {1} wearing a red hat", "a wet {0} {1}"]


def picture(path: Path, size: tuple[int, int] = (32, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(str(path))).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def mask(path: Path, size: tuple[int, int] = (32, 32)) -> None:
    Image.new("L", size, 255).save(path)


def refusal(name: str, folder: Path, **options: object) -> str:
    """The one line with which a copy is refused."""
    with pytest.raises(ArtefactError) as caught:
        load_benchmark(name, folder, **options)  # type: ignore[arg-type]
    said = str(caught.value)
    assert "\n" not in said
    return said


# --- DreamBench --------------------------------------------------------------


@pytest.fixture
def dreambench(tmp_path):
    root = tmp_path / "dreambooth" / "dataset"
    for name, count in {"dog2": 5, "bear_plushie": 6}.items():
        for number in range(count):
            picture(root / name / f"{number:02d}.jpg")
    quoted = [["'" + text + "'.format(unique_token, class_token)," for text in texts] for texts in (OBJECT, LIVE)]
    lines = ["Classes", "", "subject_name,class", "bear_plushie,stuffed animal", "dog2,dog", "", "Prompts", ""]
    lines += ["Object Prompts", "", "prompt_list = [", *quoted[0], "]", ""]
    lines += ["Live Subject Prompts", "", "prompt_list = [", *quoted[1], "]"]
    (root / "prompts_and_classes.txt").write_text("\n".join(lines))
    return root.parent


def test_dreambench_gives_back_what_was_written(dreambench):
    benchmark = load_benchmark("dreambench", dreambench)
    assert (benchmark.name, benchmark.seeds, benchmark.preset) == ("dreambench-dreambooth", (0, 1, 2, 3), "dreambooth")
    plushie, dog = benchmark.subjects
    assert (plushie.name, plushie.noun, plushie.live, plushie.category) == (
        "bear-plushie", "stuffed animal", False, "object",
    )  # fmt: skip
    assert (dog.noun, dog.live, len(dog.pictures), len(dog.load().images)) == ("dog", True, 5, 5)
    texts = {case.id: (case.text, case.family, case.context) for case in benchmark.cases}
    assert texts == {
        "bear-plushie-00": ("a {subject} in the jungle", "background", "in the jungle"),
        "bear-plushie-01": ("a red {subject}", "property", "red"),
        "dog2-00": ("a {subject} on top of a dog's bed", "background", "on top of a dog's bed"),
        "dog2-01": ("a {subject} wearing a red hat", "accessory", "wearing a red hat"),
        "dog2-02": ("a wet {subject}", "property", "wet"),
    }
    assert "2 subjects (published: 30)" in describe(benchmark)
    assert load_benchmark("dreambench", dreambench / "dataset").cases == benchmark.cases


def test_dreambench_as_detex_and_ezigen_measure_it(dreambench):
    detex = load_benchmark("dreambench", dreambench, size="detex")
    assert [len(each.pictures) for each in detex.subjects] == [4, 4] and len(detex.seeds) == 8
    assert [file.name for file in detex.subjects[0].pictures] == ["00.jpg", "01.jpg", "02.jpg", "03.jpg"]
    ezigen = load_benchmark("dreambench-ezigen", dreambench)
    assert [len(each.pictures) for each in ezigen.subjects] == [1, 1] and len(ezigen.seeds) == 6


def test_dreambench_slightly_wrong_is_told_all_at_once(dreambench):
    root = dreambench / "dataset"
    (root / "dog2").rename(root / "dogs2")
    for file in (root / "bear_plushie").iterdir():
        file.unlink()
    said = refusal("dreambench", dreambench)
    assert "dataset/dog2 is missing" in said and "'dogs2' is there" in said
    assert "no PNG, JPEG or WebP picture" in said and "the folder dogs2 has no class" in said
    (root / "prompts_and_classes.txt").rename(root / "prompts_and_clases.txt")
    said = refusal("dreambench", dreambench)
    assert "prompts_and_classes.txt is missing ('prompts_and_clases.txt' is there" in said
    assert "is not there" in refusal("dreambench", dreambench / "nowhere")


def test_dreambench_without_sentences_or_with_other_ones(dreambench):
    file = dreambench / "dataset" / "prompts_and_classes.txt"
    good = file.read_text()
    file.write_text(good.split("Live Subject Prompts")[0].replace("{0} {1} in", "{1} in"))
    said = refusal("dreambench", dreambench)
    assert "no sentences under 'Live Subject Prompts'" in said and "expected {0} {1}" in said
    file.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read as UTF-8" in refusal("dreambench", dreambench)


@pytest.mark.parametrize("hostile", ["../outside", "/etc", "dog2/../../outside", "con"])
def test_names_in_files_never_lead_out_of_the_copy(dreambench, hostile):
    picture(dreambench / "outside" / "00.jpg")
    file = dreambench / "dataset" / "prompts_and_classes.txt"
    file.write_text(file.read_text().replace("dog2,dog", f"{hostile},dog"))
    assert "not a plain relative path" in refusal("dreambench", dreambench)


def test_folders_that_are_links_are_refused(dreambench, tmp_path):
    picture(tmp_path / "elsewhere" / "00.jpg")
    (dreambench / "dataset" / "dog2").rename(tmp_path / "dog2")
    os.symlink(tmp_path / "elsewhere", dreambench / "dataset" / "dog2")
    assert "is a link" in refusal("dreambench", dreambench)


# --- DreamBench++ ------------------------------------------------------------


@pytest.fixture
def plus(tmp_path):
    root = tmp_path / "plus"
    subjects = {"animal/00": "kitten", "human/03": "human object animal", "object/11": "acoustic guitar"}
    subjects["style/07"] = "ink"
    for key, spoken in subjects.items():
        picture(root / "images" / f"{key}.jpg")
        sentences = [f"a {spoken} in scene {number}" for number in range(9)]
        (root / "captions" / key).parent.mkdir(parents=True, exist_ok=True)
        (root / "captions" / f"{key}.txt").write_text("\n".join([spoken, *sentences]) + "\n\n")
    return root


def test_dreambench_plus_keeps_categories_in_fields(plus):
    benchmark = load_benchmark("dreambench++", plus)
    assert benchmark.seeds == (0,) and benchmark.preset == "dreambench++" and len(benchmark.cases) == 36
    found = [(each.name, each.noun, each.category, each.live, len(each.pictures)) for each in benchmark.subjects]
    assert found == [
        ("animal-00-kitten", "kitten", "animal", True, 1),
        ("human-03-human-object-animal", "human object animal", "human", True, 1),
        ("object-11-acoustic-guitar", "acoustic guitar", "object", False, 1),
        ("style-07-ink", "ink", "style", False, 1),
    ]
    families = [case.family for case in benchmark.cases[:9]]
    assert families == ["photorealistic"] * 4 + ["style"] * 3 + ["imaginative"] * 2
    assert benchmark.cases[18].text == "a {subject} in scene 0" and benchmark.cases[18].context == "in scene 0"
    assert load_benchmark("dreambench++", plus).cases == benchmark.cases
    (plus.parent / "up").mkdir()
    plus.rename(plus.parent / "up" / "data")
    assert [case.id for case in load_benchmark("dreambench++", plus.parent / "up").cases] == [
        case.id for case in benchmark.cases
    ]


def test_dreambench_plus_sentences_that_do_not_name_the_subject_are_counted(plus):
    file = plus / "captions" / "object" / "11.txt"
    file.write_text(file.read_text().replace("a acoustic guitar in scene 3", "guitars in scene 3"))
    benchmark = load_benchmark("dreambench++", plus)
    assert benchmark.cases[21].text == "{subject} in scene 3"
    assert any("1 sentences do not name the subject" in note and "guitar-3" in note for note in benchmark.notes)


def test_dreambench_plus_slightly_wrong(plus):
    (plus / "captions" / "style" / "07.txt").unlink()
    (plus / "images" / "human" / "03.jpg").unlink()
    (plus / "captions" / "object" / "11.txt").write_text("guitar\none\ntwo\n")
    (plus / "images" / "animal").rename(plus / "images" / "animals")
    (plus / "captions" / "animal").rename(plus / "captions" / "animals")
    said = refusal("dreambench++", plus)
    assert "images/style/07 has no captions/style/07.txt" in said
    assert "captions/human/03.txt has no picture" in said
    assert "captions/object/11.txt has 3 filled lines" in said
    assert "'animals' is no category (did you mean 'animal'?)" in said
    (plus / "captions").rename(plus / "caption")
    assert "'caption' is there" in refusal("dreambench++", plus)


# --- CustomConcept101 --------------------------------------------------------


def record(folder: str, noun: str, prompts: str) -> dict[str, str]:
    return {
        "instance_prompt": f"photo of a <new1> {noun}",
        "class_prompt": noun,
        "instance_data_dir": f"./benchmark_dataset/{folder}",
        "class_data_dir": f"./regularization/{folder}",
        "prompt_filename": f"prompts/{prompts}.txt",
    }


@pytest.fixture
def concepts(tmp_path):
    root = tmp_path / "customconcept101"
    for name in ("pet_cat1", "furniture_chair3"):
        for number in range(3):
            picture(root / "benchmark_dataset" / name / f"photo {number}.jpeg")
    (root / "prompts").mkdir()
    (root / "prompts" / "cat.txt").write_text("Photo of a {}.\n{} swimming in a pool. \n\nno place here\n")
    (root / "prompts" / "chair.txt").write_text("A {} on a beach.\n")
    (root / "prompts" / "pet_furniture.txt").write_text("{0} sitting on {1}.\nonly {0}\nThe {1} near {0}")
    cat, chair = record("pet_cat1", "cat", "cat"), record("furniture_chair3", "chair", "chair")
    (root / "dataset.json").write_text(json.dumps([cat, chair]))
    sofa = record("furniture_chair3", "sofa", "sofa")  # the published pairs hold such a slip
    together = {"prompt_filename_compose": "prompts/pet_furniture.txt"}
    (root / "dataset_multiconcept.json").write_text(json.dumps([[cat, chair, together], [cat, sofa, together]]))
    return root


def test_customconcept_single(concepts):
    benchmark = load_benchmark("customconcept101", concepts)
    assert [(each.name, each.noun, each.category, each.live) for each in benchmark.subjects] == [
        ("pet-cat1", "cat", "pet", True),
        ("furniture-chair3", "chair", "furniture", None),
    ]
    assert [(case.id, case.text, case.context) for case in benchmark.cases] == [
        ("pet-cat1-00", "Photo of a {subject}.", ""),
        ("pet-cat1-01", "{subject} swimming in a pool.", "swimming in a pool"),
        ("furniture-chair3-00", "A {subject} on a beach.", "on a beach"),
    ]
    assert any("prompts/cat.txt:4" in note for note in benchmark.notes)
    assert len(benchmark.subjects[0].load().images) == 3


def test_customconcept_pairs(concepts):
    benchmark = load_benchmark("customconcept101-multi", concepts)
    assert [(each.name, each.noun) for each in benchmark.subjects] == [
        ("pet-cat1", "cat"),
        ("furniture-chair3", "chair"),
        ("furniture-chair3-2", "sofa"),
    ]
    assert [(case.id, case.text) for case in benchmark.cases] == [
        ("pair-001-00", "{subject} sitting on {second}."),
        ("pair-001-01", "The {second} near {subject}"),
        ("pair-002-00", "{subject} sitting on {second}."),
        ("pair-002-01", "The {second} near {subject}"),
    ]
    assert benchmark.cases[3].subjects == (("subject", "pet-cat1"), ("second", "furniture-chair3-2"))
    assert any("pet_furniture.txt:2" in note for note in benchmark.notes)


def test_customconcept_slightly_wrong(concepts):
    (concepts / "prompts" / "cat.txt").rename(concepts / "prompts" / "cats.txt")
    (concepts / "benchmark_dataset" / "furniture_chair3").rename(concepts / "benchmark_dataset" / "furniture_chair")
    data = json.loads((concepts / "dataset.json").read_text())
    del data[0]["class_prompt"]
    (concepts / "dataset.json").write_text(json.dumps([*data, record("pet_cat1", "cat", "cat")]))
    said = refusal("customconcept101", concepts)
    assert "record 1 has no class_prompt" in said and "'cats.txt' is there" in said
    assert "furniture_chair3 is missing (named in dataset.json) ('furniture_chair' is there" in said
    (concepts / "dataset.json").write_text("{")
    assert "not readable JSON" in refusal("customconcept101", concepts)
    (concepts / "dataset_multiconcept.json").write_text(json.dumps([[data[1]], 3]))
    said = refusal("customconcept101-multi", concepts)
    assert "pair 1 is not two concepts" in said and "pair 2 is not two concepts" in said


@pytest.mark.parametrize("hostile", ["../../outside", "/etc/passwd", "./../outside", "a\\..\\b"])
def test_customconcept_paths_stay_inside(concepts, hostile):
    picture(concepts.parent / "outside" / "0.jpg")
    (concepts.parent / "outside" / "x.txt").write_text("a {}")
    data = [record("pet_cat1", "cat", "cat") | {"instance_data_dir": hostile, "prompt_filename": f"{hostile}/x.txt"}]
    (concepts / "dataset.json").write_text(json.dumps(data))
    assert refusal("customconcept101", concepts).count("not a plain relative path") == 2


# --- DreamEditBench ----------------------------------------------------------


@pytest.fixture
def edits(tmp_path):
    root = tmp_path / "edit" / "data"
    for kind in ("dog", "duck_toy"):
        picture(root / "replacement_source" / kind / "found0.jpg")
        mask(root / "replacement_source" / kind / "found0_mask.png")
        picture(root / "addition_source" / kind / "found0.jpg", (64, 32))
        (root / "addition_source" / kind / "bbox.json").write_text(json.dumps({"found0.jpg": [128, 256, 384, 512]}))
    for name in ("dog8", "duck_toy"):
        picture(root / "subjects" / name / "00.jpg")
    return root.parent


def test_dreameditbench_sources_and_masks(edits):
    benchmark = load_benchmark("dreameditbench", edits)
    assert [(each.name, each.noun) for each in benchmark.subjects] == [("dog8", "dog"), ("duck-toy", "duck toy")]
    assert [(case.id, case.family) for case in benchmark.cases] == [
        ("dog8-replacement-found0", "replacement"),
        ("dog8-addition-found0", "addition"),
        ("duck-toy-replacement-found0", "replacement"),
        ("duck-toy-addition-found0", "addition"),
    ]
    replaced, added = benchmark.cases[0].edit, benchmark.cases[1].edit
    assert replaced is not None and replaced[1].name == "found0_mask.png"
    assert added is not None
    box = load_mask(added[1], (64, 32))  # corners 128...384, 256...512 of 512 in a picture of 64 x 32
    expected = np.zeros((32, 64), np.float32)
    expected[16:32, 16:48] = 1
    assert (box == expected).all()
    only = load_benchmark("dreameditbench", edits, size="addition")
    assert {case.family for case in only.cases} == {"addition"} and only.seeds == tuple(range(6))


@pytest.mark.parametrize(
    "box", [[384, 0, 128, 64], [0, 64, 64, 64], [0, 0, 64, 513], [0, 0, 64], [0, 0, 64, 1.5], "all"]
)
def test_dreameditbench_boxes_that_are_none(edits, box):
    (edits / "data" / "addition_source" / "dog" / "bbox.json").write_text(json.dumps({"found0.jpg": box}))
    assert "addition_source/dog/bbox.json: found0.jpg needs" in refusal("dreameditbench", edits)


def test_dreameditbench_slightly_wrong(edits):
    (edits / "data" / "replacement_source" / "dog" / "found0_mask.png").unlink()
    boxes = edits / "data" / "addition_source"
    (boxes / "dog" / "bbox.json").write_text(json.dumps({"found0.jpg": [384, 0, 128, 600]}))
    (boxes / "duck_toy" / "bbox.json").rename(boxes / "duck_toy" / "box.json")
    picture(edits / "data" / "subjects" / "zebra" / "00.jpg")
    said = refusal("dreameditbench", edits)
    assert "replacement_source/dog: 1 of 1 pictures have no mask (add found0_mask.png" in said
    assert "[left, top, right, bottom]" in said and "'box.json' is there" in said and "subjects/zebra has no" in said


# --- DS ----------------------------------------------------------------------


@pytest.fixture
def copies(tmp_path):
    for name in ds_set.DREAMBENCH:
        for number in range(3):
            picture(tmp_path / "dreambooth" / "dataset" / name / f"{number:02d}.jpg")
    for name in ds_set.CUSTOMCONCEPT:
        for number in range(2):
            picture(tmp_path / "cc" / "benchmark_dataset" / name / f"{number}.jpg")
    return tmp_path / "dreambooth", tmp_path / "cc"


def test_ds_is_38_pictures_by_manifest(copies, tmp_path):
    manifest = ds_set.write_manifest(*copies, tmp_path / "ds.json")
    benchmark = load_benchmark("ds", manifest)
    assert len(benchmark.subjects) == 38 and len(benchmark.cases) == 38 * 11 and benchmark.preset == "harmonizing"
    assert all(len(each.pictures) == 1 and each.live for each in benchmark.subjects)
    by_animal = [each.pictures[0].parent.name for each in benchmark.subjects]
    everyone = sorted([*ds_set.DREAMBENCH, *ds_set.CUSTOMCONCEPT])
    assert by_animal == everyone + everyone[:18]
    assert {each.noun for each in benchmark.subjects} == {"cat", "dog"}
    assert any("ours" in note and "11 pose sentences" in note for note in benchmark.notes)
    assert load_benchmark("ds", tmp_path).cases == benchmark.cases


def test_ds_manifest_that_cannot_be_written_by_command(copies, tmp_path):
    words = [sys.executable, "-m", "thisness.evaluation.benchmarks", *map(str, copies), str(tmp_path / "ds.json")]
    (copies[0] / "dataset" / "dog5").rename(copies[0] / "dataset" / "dog_5")
    (copies[1] / "benchmark_dataset" / "pet_cat4" / "1.jpg").unlink()
    refused = subprocess.run(words, capture_output=True, text=True)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and not (tmp_path / "ds.json").exists()
    assert "dog5 is missing ('dog_5' is there" in refused.stderr and "pet_cat4 has 1 pictures" in refused.stderr


def test_ds_manifest_that_no_longer_fits(copies, tmp_path):
    manifest = ds_set.write_manifest(*copies, tmp_path / "ds.json")
    data = json.loads(manifest.read_text())
    picture(copies[0] / "dataset" / "cat" / "00.jpg", (40, 32))
    data["pictures"][1]["picture"] = "../../../etc/passwd"
    data["prompts"][0] = "a dog"
    manifest.write_text(json.dumps(data))
    said = refusal("ds", manifest)
    assert "another picture than when" in said and "not a plain relative path" in said
    assert "needs one {subject}" in said
    assert "evaluation.benchmarks DREAMBENCH" in refusal("ds", tmp_path / "dreambooth")


# --- people, and anybody's folder --------------------------------------------


def test_identities(tmp_path):
    for name in ("342", "124"):
        picture(tmp_path / name / "a.png")
    (tmp_path / "nouns.csv").write_text("name,noun\n342,man\n")
    benchmark = load_benchmark("celeba", tmp_path)
    assert [(each.name, each.noun) for each in benchmark.subjects] == [("124", "person"), ("342", "man")]
    assert len(benchmark.cases) == 2 * 17 and len(benchmark.seeds) == 50 and benchmark.preset == "tea"
    assert {case.context.split(" and ")[0] for case in benchmark.cases} == {"wearing glasses"}
    (tmp_path / "nouns.csv").write_text("name,noun\n343,man\n")
    assert "no folder '343' (did you mean '342'?)" in refusal("celeba", tmp_path)
    (tmp_path / "nouns.csv").write_text("identity,noun\n342,man\n")
    assert "missing: name" in refusal("celeba", tmp_path)


@pytest.fixture
def own(tmp_path):
    for name in ("rufus", "My Mug"):
        picture(tmp_path / "own" / name / "1.png")
    mask(tmp_path / "own" / "rufus" / "1_mask.png")
    (tmp_path / "own" / "subjects.csv").write_text("name,noun,live,category\nrufus,dog,yes,pets\nMy Mug,mug,no,\n")
    text = "# families before a bar\npose | a {subject} sleeping\na {subject} on the beach\na red cat\n"
    (tmp_path / "own" / "prompts.txt").write_text(text)
    (tmp_path / "own" / "My Mug" / "prompts.txt").write_text("a {subject} full of tea\n")
    return tmp_path / "own"


def test_own_folder(own):
    benchmark = load_benchmark("folder", own)
    rufus, mug = benchmark.subjects
    assert (rufus.live, rufus.category, mug.live, mug.name) == (True, "pets", False, "my-mug")
    assert rufus.load().masks[0] is not None and mug.masks == ()
    assert [(case.id, case.text, case.family, case.subjects) for case in benchmark.cases] == [
        ("rufus-00", "a {subject} sleeping", "pose", (("subject", "rufus"),)),
        ("rufus-01", "a {subject} on the beach", "", (("subject", "rufus"),)),
        ("my-mug-00", "a {subject} full of tea", "", (("subject", "my-mug"),)),
        ("drift-02", "a red cat", "drift", ()),
    ]


def test_own_folder_slightly_wrong(own):
    (own / "subjects.csv").write_text("name,noun,live\nrufuss,dog,yes\nMy Mug,a mug with far too many words,maybe\n")
    (own / "prompts.txt").write_text("a {Subject} sleeping\na {dog} on the beach\n")
    said = refusal("folder", own)
    for part in (
        "rufuss is missing (named in subjects.csv) ('rufus' is there",
        "must be one to four plain words",
        "live is 'maybe'",
        "'{Subject}' is not a placeholder",
        "{dog} is not known here",
        "the folder rufus is not in subjects.csv (did you mean 'rufuss'?)",
    ):
        assert part in said
    (own / "subjects.csv").unlink()
    (own / "prompts.txt").rename(own / "prompt.txt")
    said = refusal("folder", own)
    assert "subjects.csv is missing" in said and "'prompt.txt' is there" in said
    (own / "subjects.csv").write_text("name,noun\n../own,dog\n")
    assert "not a plain relative path" in refusal("folder", own)


def test_a_wholly_wrong_folder_gives_one_short_line(tmp_path):
    (tmp_path / "subjects.csv").write_text("name,noun\n" + "".join(f"toy{n},dog\n" for n in range(100)))
    (tmp_path / "prompts.txt").write_text("a {subject}\n")
    said = refusal("folder", tmp_path)
    assert "88 more of the kind" in said and len(said) < 2000
