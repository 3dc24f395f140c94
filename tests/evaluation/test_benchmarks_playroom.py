"""The Playroom as a benchmark.

Oracles: sentences read back by rules of their own; the truth of the references against the scenes they were drawn
from; hashes of what was rendered.
"""

from __future__ import annotations

import re

import numpy as np
import pytest

from thisness.errors import ArtefactError
from thisness.evaluation.benchmarks import already_shown, describe, load_benchmark, pairs, playroom
from thisness.evaluation.benchmarks.playroom_prompts import FAMILIES
from thisness.playroom.captions import ATTRIBUTES
from thisness.playroom.subjects import held_out_identity, reference_scenes, subject_index
from thisness.playroom.world import CREATURES, poses_of
from thisness.prompt import Prompt

COLOURS = "|".join(ATTRIBUTES["colour"])
PLACES = {
    "on the beach": "beach", "in the forest": "forest", "in the snow": "snow", "in the city": "city",
    "on the grass": "grass", "at night": "night", "in the kitchen": "kitchen", "in the desert": "desert",
    "in the mountains": "mountains", "in the living room": "living room",
}  # fmt: skip


def read_back(text: str) -> dict[str, str]:
    """What a sentence says, by patterns that know nothing of how it was put together."""
    said = {}
    if found := re.match(rf"an? ({COLOURS}) (\w+)", text):
        said |= {"colour": found[1], "class": found[2]}
    for style in ("pencil sketch", "watercolour", "pixel art"):
        if re.match(rf"(?:a )?{style} of a ", text):
            said["style"] = style
    for pose in ATTRIBUTES["pose"]:
        if re.search(rf"\b{pose}\b", text):
            said["pose"] = pose
    for words, place in PLACES.items():
        if text.endswith(words):
            said["background"] = place
    if found := re.search(rf"wearing (?:an? )?({COLOURS}) (hat|glasses|scarf|bow)\b", text):
        said |= {"accessory": found[2], "accessory colour": found[1]}
    if found := re.search(rf"with an? ({COLOURS}) (ball|book|guitar|balloon)\b", text):
        said |= {"object": found[2], "object colour": found[1]}
    if found := re.search(rf"next to an? ({COLOURS}) (\w+)", text):
        said |= {"companion": found[2], "companion colour": found[1]}
    return said


@pytest.fixture(params=["smoke", "small", "full"])
def unrendered(request, monkeypatch, tmp_path):
    """A size without its pictures."""
    monkeypatch.setattr(playroom, "_rendered", lambda index, folder: tmp_path / str(index))
    return load_benchmark("playroom", size=request.param)


def test_sizes_and_families(unrendered):
    counts = {"playroom-smoke": (2, 16, 1), "playroom-small": (10, 280, 2), "playroom-full": (30, 4320, 4)}
    subjects, pictures, seeds = counts[unrendered.name]
    made = list(pairs(unrendered))
    assert (len(unrendered.subjects), len(made) * seeds, unrendered.seeds) == (subjects, pictures, tuple(range(seeds)))
    for subject in unrendered.subjects:
        assert {case.family for who, case in made if who is subject} == set(FAMILIES)
    if unrendered.name == "playroom-small":
        assert len({subject.noun for subject in unrendered.subjects}) == 10
    assert f"{pictures} pictures" in describe(unrendered)
    assert len({case.id for case in unrendered.cases}) == len(unrendered.cases)
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9-]{0,63}", case.id) for case in unrendered.cases)


def test_the_sentence_says_what_is_expected_and_nothing_else(unrendered):
    for case in unrendered.cases:
        assert read_back(case.text) == dict(case.expected), case
        assert all(value in ATTRIBUTES[name] for name, value in case.expected.items())
        assert Prompt(case.text).slots == (("subject",) if case.subjects else ())
        assert "an {subject}" not in case.text and not re.search(r"\ba [aeiou]|\ban [^aeiou]", case.text)
        said = dict(read_back(f"x {case.context}")) if case.family not in ("style", "drift") else dict(case.expected)
        assert said == dict(case.expected), case


def test_poses_fit_the_class_and_companions_are_others(unrendered):
    for subject, case in pairs(unrendered):
        if case.subjects and "pose" in case.expected:
            assert case.expected["pose"] in poses_of(subject.noun)
        if case.family == "two-toy":
            who = held_out_identity(subject_index(subject.name))
            assert case.expected["companion"] != subject.noun
            assert case.expected["companion colour"] not in (who.colour, who.second_colour)


def test_references_never_show_what_is_asked_but_for_the_poses_of_things(unrendered):
    """The truths are compared with the scenes themselves, not with what the lists were chosen by."""
    for subject, case in pairs(unrendered):
        scenes = reference_scenes(subject_index(subject.name))
        shown = {
            "pose": {scene.subject.pose for scene in scenes},
            "background": {scene.background for scene in scenes},
            "accessory": {scene.subject.accessory for scene in scenes},
            "object": {scene.object for scene in scenes},
            "style": {scene.style for scene in scenes},
        }
        repeated = tuple(name for name, value in case.expected.items() if value in shown.get(name, ()))
        if case.subjects:
            assert already_shown(subject, case) == repeated
            assert repeated == () or (repeated == ("pose",) and subject.noun not in CREATURES)
        assert [truth["background"] for truth in subject.truths] == [scene.background for scene in scenes]


def test_the_same_every_time_and_smaller_sizes_are_part_of_larger_ones(monkeypatch, tmp_path):
    monkeypatch.setattr(playroom, "_rendered", lambda index, folder: tmp_path / str(index))
    sizes = [load_benchmark("playroom", size=size) for size in ("smoke", "small", "full")]
    assert [load_benchmark(each.name) for each in sizes] == sizes
    for smaller, larger in zip(sizes, sizes[1:], strict=False):
        assert {each.name for each in smaller.subjects} < {each.name for each in larger.subjects}
        assert {case.id: case.text for case in smaller.cases}.items() <= {c.id: c.text for c in larger.cases}.items()


def test_values_are_spread_over_the_toys(monkeypatch, tmp_path):
    monkeypatch.setattr(playroom, "_rendered", lambda index, folder: tmp_path / str(index))
    cases = load_benchmark("playroom", size="small").cases
    for name, least in {"background": 10, "accessory": 4, "object": 4, "style": 3, "accessory colour": 8}.items():
        asked = {case.expected[name] for case in cases if case.subjects and name in case.expected}
        assert len(asked) >= least, (name, asked)


def test_references_are_rendered_once_and_mended_when_damaged(tmp_path):
    first = playroom.toy(7, tmp_path)
    subject = first.load()
    assert [image.size for image in subject.images] == [(128, 128)] * 4
    assert all(mask is not None and 0.03 < float(np.mean(mask)) < 0.7 for mask in subject.masks)
    before = first.pictures[0].stat().st_mtime_ns
    assert playroom.toy(7, tmp_path).load().hash == subject.hash
    assert first.pictures[0].stat().st_mtime_ns == before
    first.pictures[0].write_bytes(first.pictures[1].read_bytes())
    assert playroom.toy(7, tmp_path).load().hash == subject.hash
    (first.pictures[0].parent / "COMPLETE.json").unlink()
    with pytest.raises(ArtefactError, match="name another folder"):
        playroom.toy(7, tmp_path)


def test_control_asks_for_what_a_reference_shows_and_its_sentence_does_not(unrendered):
    """The sentence never names what is kept; the truth of the kept reference does."""
    bench = load_benchmark("playroom", size="control")
    assert len(bench.subjects) == 12 and len(bench.seeds) == 3
    for case in bench.cases:
        ((_, name),) = case.subjects
        truths, said = bench.subject(name).truths, read_back(case.text)
        kept = {attribute: int(number) for attribute, number in (each.split(":") for each in case.keep)}
        assert case.family == ("keep-both" if len(kept) == 2 else f"keep-{next(iter(kept))}" if kept else "alone")
        assert not set(kept) & set(said)
        assert dict(case.expected) == said | {attribute: truths[i][attribute] for attribute, i in kept.items()}
        if case.family == "alone":
            assert said["background"] not in {truth["background"] for truth in truths}
        for attribute, i in kept.items():  # what is asked beside it is not what the same reference shows
            assert all(said[other] != truths[i][other] for other in said if other != attribute)
    pictures = {case.keep[0] for case in bench.cases if case.family == "keep-pose"}
    assert pictures == {f"pose:{i}" for i in range(4)}


@pytest.fixture
def posed(monkeypatch, tmp_path):
    monkeypatch.setattr(playroom, "_rendered", lambda index, folder: tmp_path / str(index))
    return load_benchmark("playroom", size="pose")


def test_pose_asks_for_every_pose_but_that_of_the_one_reference(posed):
    assert len(posed.subjects) == 21 and len(posed.seeds) == 3
    assert all(each.live and len(each.pictures) == len(each.truths) == 1 for each in posed.subjects)
    for subject in posed.subjects:
        cases = [case for case in posed.cases if case.subjects == (("subject", subject.name),)]
        assert len({case.text for case in cases}) == 11
        shown = subject.truths[0]
        alone = {read_back(case.text)["pose"] for case in cases if case.family == "pose"}
        assert alone == set(poses_of(subject.noun)) - {shown["pose"]}
        for case in cases:
            said = read_back(case.text)
            assert said == dict(case.expected) and said["pose"] != shown["pose"]
            assert said.get("background") != shown["background"]
            assert {"object", "background"} & said.keys() == {
                "pose": set(), "pose-object": {"object"}, "pose-place": {"background"}
            }[case.family]  # fmt: skip


def test_one_is_a_part_of_full_of_one_reference(monkeypatch, tmp_path):
    monkeypatch.setattr(playroom, "_rendered", lambda index, folder: tmp_path / str(index))
    one, full = (load_benchmark("playroom", size=size) for size in ("one", "full"))
    assert len(one.subjects) == 20 and all(len(each.pictures) == 1 for each in one.subjects)
    ids = {case.id for case in full.cases}
    assert all(case.id in ids for case in one.cases) and len(one.cases) == 200
    assert {case.family for case in one.cases} == set(FAMILIES) - {"drift"}
