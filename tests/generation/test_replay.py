"""Oracle: the pixels that were made the first time."""

import json

import numpy as np
import pytest
from PIL import Image

import tiny
from thisness.errors import ArtefactError, ImageError, UserError
from thisness.generation import generate, pixel_hash, replay
from thisness.images import read_record
from thisness.sampling import SamplingOptions

OPTIONS = SamplingOptions(steps=3, guidance=4.0, scheduler="euler-a")


@pytest.fixture(scope="module")
def base():
    return tiny.base("zero-snr")


@pytest.fixture(scope="module")
def made(base):
    return generate(base, "a dog on the beach", seeds=range(5), negative="a cat", options=OPTIONS, batch_size=2)


@pytest.fixture
def saved(made, tmp_path):
    return made.save(tmp_path / "out")


def test_a_picture_replays_to_the_same_pixels(base, made, saved):
    for path, image in zip(saved, made.images, strict=True):
        again = replay(path, base)
        assert len(again.images) == 1
        assert np.array_equal(np.asarray(again.images[0]), np.asarray(Image.open(path)))
        assert np.array_equal(np.asarray(again.images[0]), np.asarray(image))
        assert again.differences == ()


def test_a_replayed_picture_replays(base, made, saved, tmp_path):
    """It was made in a batch with others, which its new record still knows."""
    again = replay(saved[3], base)
    (path,) = again.save(tmp_path / "again")
    assert np.array_equal(np.asarray(replay(path, base).images[0]), np.asarray(made.images[3]))
    assert again.record["seeds"] == [3]


def test_the_record_replays_all_pictures(base, made, saved):
    again = replay(saved[0].parent / "record.json", base)
    assert [pixel_hash(image) for image in again.images] == [pixel_hash(image) for image in made.images]
    assert {**again.record, "batches": 0} == {**made.record, "batches": 0}
    assert replay(made.record, base).differences == ()


def test_what_is_saved(made, saved):
    folder = saved[0].parent
    assert sorted(path.name for path in folder.iterdir()) == [
        *(f"00{index}-seed-{index}.png" for index in range(5)),
        "record.json",
        "sheet.png",
    ]
    assert json.loads((folder / "record.json").read_text()) == made.record
    assert read_record(saved[2]) == {**made.record, "index": 2}
    assert Image.open(folder / "sheet.png").width > 192 * 3
    text = (folder / "record.json").read_text()
    assert str(folder) not in text and "/" not in made.record["base"]["name"]


def test_another_base_or_concept_is_refused(base, tmp_path):
    with_concept = generate(base, "a {subject}", concept=tiny.Louder(), options=OPTIONS).save(tmp_path)[0]
    assert replay(with_concept, base, tiny.Louder()).differences == ()
    with pytest.raises(UserError, match="'rex'.*give it"):
        replay(with_concept, base)
    other = tiny.Louder()
    other.hash = "1" * 64
    with pytest.raises(ArtefactError, match="has 111111111111"):
        replay(with_concept, base, other)
    with pytest.raises(ArtefactError, match=r"signature .* but tiny has"):
        replay(with_concept, tiny.base("zero-snr", width=16, seed=1), tiny.Louder())
    plain = generate(base, "a dog", options=OPTIONS)
    with pytest.raises(UserError, match="without concepts"):
        replay(plain.record, base, tiny.Louder())
    with_subject = generate(base, "a {subject}", subject=tiny.toy("cat"), options=OPTIONS)
    with pytest.raises(UserError, match="give the subject"):
        replay(with_subject.record, base)
    assert replay(with_subject.record, base, subject=tiny.toy("cat")).differences == ()


def test_a_base_that_is_not_registered_must_be_given(saved):
    with pytest.raises(UserError, match="'tiny'.*give the base"):
        replay(saved[0])


def test_what_differs_is_said(base, made):
    record = json.loads(json.dumps(made.record))
    record["versions"]["torch"] = "1.0"
    record["machine"]["threads"] = 99
    record["images"][1]["sha256"] = "0" * 64
    found = replay(record, base).differences
    assert len(found) == 3
    assert found[0].startswith("torch was 1.0, is ")
    assert "threads was 99" in found[1]
    assert found[2] == "the picture of seed 1 is not bit for bit the one that was made"


def test_objects_that_a_record_cannot_say_must_be_given_again(base):
    def halved(conditioning):
        return conditioning.with_embeds(conditioning.embeds * 0.5)

    made = generate(base, "a dog", options=OPTIONS, adjust=[halved])
    with pytest.raises(UserError, match="halved"):
        replay(made.record, base)
    assert replay(made.record, base, adjust=[halved]).differences == ()


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"version": 99},
        {"seeds": "0"},
        {"seeds": [1, 2]},
        {"batches": [[0, 1], [2, -3], [4]]},
        {"batches": [[0] * 2000]},
        {"images": [{"seed": 0, "batch": 7, "row": 0, "sha256": ""}]},
        {"index": 99},
        {"prompt": "a {"},
        {"recipe": {"adjustments": 3}},
        {"base": {"name": 3}},
        {"concepts": {"subject": 3}},
    ],
)
def test_damaged_records_are_refused_in_one_line(base, made, change):
    with pytest.raises(ArtefactError) as caught:
        replay({**made.record, **change}, base)
    assert "\n" not in str(caught.value)


def test_pictures_without_a_record(base, tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "photo.png")
    with pytest.raises(ArtefactError, match="no record"):
        replay(tmp_path / "photo.png", base)
    with pytest.raises(ImageError, match="not there"):
        replay(tmp_path / "none.png", base)


def test_schedulers_with_infinite_settings_are_recorded_and_replayed(tmp_path):
    """DPM++ has lambda_min_clipped = -inf, for which JSON has no number."""
    base = tiny.base()
    made = generate(base, "a dog", options=SamplingOptions(steps=2, guidance=2.0, scheduler="dpm++"))
    png = next(path for path in made.save(tmp_path) if path.suffix == ".png")
    again = replay(png, base)
    assert np.array_equal(again.images[0], made.images[0]) and not again.differences
