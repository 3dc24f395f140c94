"""Benchmarks in general: names, protocols, contexts, words.

Oracles: contexts written by hand; counts computed apart from the code that prints them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from thisness.errors import ConfigurationError, UserError
from thisness.evaluation.benchmarks import BENCHMARKS, already_shown, describe, load_benchmark, pairs
from thisness.evaluation.benchmarks.sentences import context_of, with_place
from thisness.evaluation.items import Benchmark, BenchSubject, Case
from thisness.evaluation.metrics import PRESETS
from thisness.prompt import Prompt, SlotWord


@pytest.mark.parametrize(
    ("text", "context"),
    [
        ("a {subject} on the beach", "on the beach"),
        ("a photo of a {subject} wearing glasses and holding a cat", "wearing glasses and holding a cat"),
        ("A photo of a {subject}.", ""),
        ("{subject} is reading a book.", "reading a book"),
        ("a red {subject}", "red"),
        ("a cube shaped {subject}", "cube shaped"),
        ("a sculpture of the {subject}.", "a sculpture"),
        ("a watercolor painting of {subject} on top of a mountain", "a watercolor painting on top of a mountain"),
        ("Georgia O'Keeffe style {subject} painting.", "Georgia O'Keeffe style painting"),
        ("a puppy sitting on a {subject}", "a puppy sitting"),
        ("{subject} and a table with chocolate cake on it", "a table with chocolate cake on it"),
        ("Cubist rendition of the {subject}, in blue.", "Cubist rendition, in blue"),
        ("{subject} beside {second}", ""),
        ("a red cat on the beach.", "a red cat on the beach"),
    ],
)
def test_context_is_the_sentence_without_its_subject(text, context):
    assert context_of(text) == context


@pytest.mark.parametrize(
    ("text", "noun", "placed", "exact"),
    [
        ("A Kitten in a hat", "kitten", "A {subject} in a hat", True),
        ("a kitten and a kitten", "kitten", "a {subject} and a kitten", True),
        ("kittenish, a kitten", "kitten", "kittenish, a {subject}", True),
        ("three kittens", "kitten", "three {subject}", False),
        ("a guitar on a bed", "acoustic guitar", "a {subject} on a bed", False),
        ("rain over a lake.", "acoustic guitar", "rain over a lake, with an {subject}", False),
    ],
)
def test_the_subjects_place_in_a_sentence_of_words(text, noun, placed, exact):
    assert with_place(text, noun) == (placed, exact)
    filled = Prompt(placed).fill({"subject": SlotWord(noun, noun)}).text
    assert not exact or filled.lower() == text.lower()


def test_protocols_name_presets_and_all_benchmarks_have_one():
    named = {protocol.preset for entry in BENCHMARKS.values() for protocol in entry.protocols.values()}
    assert named == set(PRESETS)
    published = {name: next(iter(entry.protocols.values())) for name, entry in BENCHMARKS.items()}
    assert published["dreambench"].seeds * 30 * 25 == 3000
    detex, ezigen = (BENCHMARKS["dreambench"].protocols[size] for size in ("detex", "ezigen"))
    assert (detex.seeds * 30 * 25, detex.references, ezigen.seeds * 30 * 25) == (6000, 4, 4500)
    assert published["dreambench++"].seeds * 150 * 9 == 1350


def own_folder(tmp_path: Path, photos: Path) -> Path:
    folder = tmp_path / "mine"
    (folder / "rufus").mkdir(parents=True)
    for picture in photos.iterdir():
        (folder / "rufus" / picture.name).write_bytes(picture.read_bytes())
    (folder / "subjects.csv").write_text("name,noun\nrufus,dog\n")
    (folder / "prompts.txt").write_text("a {subject} sleeping\na red cat\n")
    return folder


def test_names_sizes_and_seeds_that_do_not_exist(tmp_path, photos):
    folder = own_folder(tmp_path, photos)
    for wrong, said in [
        ({"name": "dreambnech", "folder": folder}, "did you mean 'dreambench'"),
        ({"name": "dreambench", "folder": folder, "size": "detx"}, "did you mean 'detex'"),
        ({"name": "folder", "folder": folder, "seeds": []}, "at least one"),
        ({"name": "folder", "folder": folder, "seeds": [1, 1]}, "twice"),
        ({"name": "folder", "folder": folder, "seeds": [-1]}, "seed -1"),
    ]:
        with pytest.raises(ConfigurationError, match=said):
            load_benchmark(**wrong)
    with pytest.raises(UserError, match="name its folder"):
        load_benchmark("dreambench-detex")
    assert load_benchmark("folder", folder, seeds=[7, 3]).seeds == (7, 3)


def test_drift_is_made_once_with_every_subject_and_all_is_counted():
    files = (Path("a.png"), Path("b.png"))
    truths = ({"pose": "sitting"}, {"pose": "running"})
    subjects = tuple(BenchSubject(name, "dog", files, truths=truths, category="pet") for name in ("rex", "fido"))
    cases = (
        Case("rex-sits", (("subject", "rex"),), "a {subject} sitting", "pose", expected={"pose": "sitting"}),
        Case("fido-jumps", (("subject", "fido"),), "a {subject} jumping", "pose", expected={"pose": "jumping"}),
        Case("both", (("subject", "fido"), ("second", "rex")), "{subject} with {second}", "two-concept"),
        Case("drift", (), "a cat sitting", "drift", expected={"pose": "sitting"}),
    )
    benchmark = Benchmark("mine", subjects, cases, (0, 1, 2), notes=("made up",))
    found = [(subject.name, case.id) for subject, case in pairs(benchmark)]
    assert found == [("rex", "rex-sits"), ("fido", "fido-jumps"), ("fido", "both"), ("rex", "drift"), ("fido", "drift")]
    assert [already_shown(subject, case) for subject, case in pairs(benchmark)] == [("pose",), (), (), (), ()]
    words = describe(benchmark)
    assert "15 pictures" in words and "2 drift" in words and "2 pet" in words and "note: made up" in words
    assert "in 1 cases a reference" in words
