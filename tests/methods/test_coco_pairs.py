"""Readers of COCO and YouTube-VIS. Oracles: small folders of the exact layout, drawn here, whose colours say who is
where; masks counted by hand."""

import json

import numpy as np
import pytest
from PIL import Image
from things import BLUE, RED, box, coco, runs, vis

from thisness.errors import ArtefactError
from thisness.methods.coco_pairs import CocoPairs, YouTubeVISPairs, decoded, polygons
from thisness.methods.ezigen import prepared


def compressed(counts):
    """COCO's string: each number in groups of 5 bits, from the 4th on as the difference to the one two before."""
    text = ""
    for index, count in enumerate(counts):
        left = count - counts[index - 2] if index > 2 else count
        while True:
            low = left & 0x1F
            left >>= 5
            more = left != (-1 if low & 0x10 else 0)
            text += chr((low | (0x20 if more else 0)) + 48)
            if not more:
                break
    return text


def test_masks_are_what_the_runs_and_polygons_say():
    mask = (np.random.default_rng(0).random((37, 23)) > 0.6).astype(np.uint8)
    mask[5:30, 4:20] = 1
    told = runs(mask)
    assert np.array_equal(decoded(told, (37, 23)), mask)
    assert np.array_equal(decoded({**told, "counts": compressed(told["counts"])}, (37, 23)), mask)
    # by hand: runs 5 2 2 2 5, of which the last two as differences 0 and 3
    assert decoded({"counts": "52203", "size": [4, 4]}, (4, 4)).tolist() == [
        [0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]
    ]  # fmt: skip
    square = polygons([[2, 3, 8, 3, 8, 10, 2, 10], [15, 1, 18, 1, 18, 4, 15, 4]], (20, 30))
    assert square[5, 4] == square[2, 16] == 1 and square[12, 4] == square[5, 12] == 0
    assert abs(int(square.sum()) - (6 * 7 + 3 * 3)) <= 6 + 7 + 3 + 3 + 2


def near(pixels, colour, tolerance=25):
    return np.abs(np.asarray(pixels, int) - colour).max(-1) <= tolerance


def test_coco_gives_the_objects_of_a_picture_largest_first(tmp_path):
    annotations, pictures = coco(tmp_path)
    pairs = CocoPairs(annotations, pictures, tmp_path / "annotations" / "captions_train2014.json", size=48, least=500)
    assert len(pairs) == 1  # the crowd's picture has no object
    pair = pairs[0]
    assert pair.nouns == ("cat", "dog") and pair.caption == "A red dog stands beside a blue cat."
    assert pair.picture.size == (48, 48) and pair.mask.shape == (48, 48) and pair.source.endswith("000009.jpg")
    for image, colour in zip(pair.subjects, (BLUE, RED), strict=True):
        assert image.size == (48, 48)
        middle, corner = np.asarray(image)[20:28, 20:28], np.asarray(image)[:2, :2]
        assert near(middle, colour).all() and (corner == 255).all()
        assert near(image, colour).mean() == pytest.approx(1 / 1.2**2, abs=0.12)
    inside = pair.mask > 0.9
    coloured = near(pair.picture, RED) | near(pair.picture, BLUE)
    assert coloured[inside].mean() > 0.95 and coloured[pair.mask < 0.1].mean() < 0.05
    assert CocoPairs(annotations, pictures, size=48, least=500)[0].caption == "a photo of a cat and a dog"
    assert CocoPairs(annotations, pictures, size=48, least=500, most=1)[0].nouns == ("cat",)
    assert CocoPairs(annotations, pictures, size=48, least=2)[0].nouns == ("cat", "dog", "dog")


def test_youtube_vis_gives_one_thing_in_two_frames_apart(tmp_path):
    pairs = YouTubeVISPairs(*vis(tmp_path), size=48, least=100, apart=0.25)
    assert len(pairs) == 1  # the other instance is in one frame only
    seen = set()
    for draw in range(30):
        pair = pairs.draw(0, draw)
        first, second = pair.frames
        seen.add((first, second))
        assert abs(first - second) >= 2 and 3 not in (first, second)
        (image,) = pair.subjects
        assert pair.nouns == ("dog",) and "dog" in pair.caption
        assert near(np.asarray(image)[20:28, 20:28], RED).all() and (np.asarray(image)[0] == 255).all()
        behind = np.asarray(pair.picture, int)[pair.mask < 0.02]
        assert abs(np.median(behind) - (90 + 8 * second)) <= 4  # the frame that is drawn, not the one that is read
        assert near(pair.picture, RED)[pair.mask > 0.98].mean() > 0.95
    assert len(seen) > 10
    assert pairs.draw(0, 5).frames == pairs.draw(0, 5).frames and pairs[0].frames == pairs.draw(0, 0).frames


def test_what_is_read_is_the_methods_own_preparation(tmp_path):
    annotations, pictures = coco(tmp_path)
    pair = CocoPairs(annotations, pictures, size=48, least=500)[0]
    image = Image.open(pictures / "COCO_train2014_000000000009.jpg").convert("RGB")
    mask = polygons(box(50, 15, 34, 34), (60, 90)).astype(np.float32)
    assert np.array_equal(np.asarray(pair.subjects[0]), np.asarray(prepared(image, mask, 48)[0]))


def changed(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_a_slightly_wrong_layout_is_said(tmp_path):
    annotations, pictures = coco(tmp_path / "coco")
    with pytest.raises(ArtefactError, match=r"is a folder: give the file.*instances_train2014\.json"):
        CocoPairs(annotations.parent, pictures)
    with pytest.raises(ArtefactError, match=r"none of 1 pictures.*is in .*they are in .*train2014: give that folder"):
        CocoPairs(annotations, pictures.parent, least=500)
    with pytest.raises(ArtefactError, match=r"captions_train2014\.json.*no 'categories'.*instances"):
        CocoPairs(annotations.parent / "captions_train2014.json", pictures)
    with pytest.raises(ArtefactError, match="no 'caption' in it"):
        CocoPairs(annotations, pictures, annotations)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ArtefactError, match=r"broken\.json"):
        CocoPairs(tmp_path / "broken.json", pictures)
    with pytest.raises(ArtefactError, match="no object of 100000 pixels"):
        CocoPairs(annotations, pictures, least=100000)
    pairs = CocoPairs(annotations, pictures, least=500)
    Image.new("RGB", (60, 90)).save(pictures / "COCO_train2014_000000000009.jpg")
    with pytest.raises(ArtefactError, match=r"000009\.jpg is 60x90, and the annotations say 90x60"):
        pairs[0]
    (pictures / "COCO_train2014_000000000009.jpg").unlink()
    with pytest.raises(ArtefactError, match=r"none of 1 pictures"):
        CocoPairs(annotations, pictures, least=500)
    changed(annotations, lambda data: data["annotations"][0].update(category_id=99))
    with pytest.raises(ArtefactError, match="annotation 1: category_id 99 is not among the categories"):
        CocoPairs(annotations, pictures, least=500)
    changed(annotations, lambda data: data["annotations"][0].pop("segmentation"))
    with pytest.raises(ArtefactError, match="annotation 1 has no 'segmentation'"):
        CocoPairs(annotations, pictures, least=500)

    annotations, frames = vis(tmp_path / "vis")
    with pytest.raises(ArtefactError, match=r"no 'videos'.*YouTube-VIS"):
        YouTubeVISPairs(tmp_path / "coco" / "annotations" / "instances_train2014.json", frames)
    with pytest.raises(ArtefactError, match=r"they are in .*JPEGImages: give that folder"):
        YouTubeVISPairs(annotations, frames.parent, least=100)
    with pytest.raises(ArtefactError, match=r"no 'images'.*COCO"):
        CocoPairs(annotations, frames)
    changed(annotations, lambda data: data["annotations"][0]["segmentations"].pop())
    with pytest.raises(ArtefactError, match="annotation 1: 7 segmentations for a video of 8 frames"):
        YouTubeVISPairs(annotations, frames)


@pytest.mark.parametrize("segmentation, match", [
    ({"counts": [5, 5], "size": [4, 4]}, "runs of 10 pixels for a mask of 4x4"),
    ({"counts": [16], "size": [2, 8]}, "mask of 8x2 for a picture of 4x4"),
    ({"counts": "é", "size": [4, 4]}, "cannot be read"),
    ({"counts": [-1, 17], "size": [4, 4]}, "cannot be read"),
    ({"size": [4, 4]}, "cannot be read"),
])  # fmt: skip
def test_bad_runs_are_said(segmentation, match):
    with pytest.raises(ArtefactError, match=match):
        decoded(segmentation, (4, 4))
