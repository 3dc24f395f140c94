"""Pairs out of folders. Oracle: pictures drawn here, whose colours say which thing and which scene they are of."""

import numpy as np
import pytest
from PIL import Image
from things import THINGS, draw_thing, draw_things

from thisness.errors import ArtefactError, ConfigurationError, ImageError, UserError
from thisness.methods.pairs import FolderPairs, open_pairs


@pytest.fixture
def things(tmp_path):
    return draw_things(tmp_path / "things")


def near(pixels, colour, tolerance=20):
    return np.abs(np.asarray(pixels, int) - colour).max(-1) <= tolerance


def test_one_picture_of_a_thing_is_read_and_another_is_drawn(things):
    (things / "mug" / "1.txt").write_text("the blue cup\n stands here")
    pairs = FolderPairs(things, size=32)
    assert len(pairs) == 2 and pairs.nouns == ["cup", "dog"] and pairs.left_out == ()
    seen, captions = set(), set()
    for seed in range(40):
        for index, (colour, noun) in enumerate((THINGS["mug"], THINGS["rex"])):
            pair = pairs.draw(index, seed)
            ((look, _),) = pair.looks
            read, drawn = (round((int(np.asarray(each)[0, 0, 0]) - 80) / 20) for each in (look, pair.picture))
            assert read != drawn and pair.source.endswith(f"{drawn}.png") and pair.nouns == (noun,)
            (image,) = pair.subjects
            assert image.size == pair.picture.size == pair.mask.shape == (32, 32)
            assert near(np.asarray(image)[14:18, 14:18], colour).all() and (np.asarray(image)[0] == 255).all()
            inside = near(pair.picture, colour)
            assert inside[pair.mask > 0.95].mean() > 0.95 and inside[pair.mask < 0.02].mean() < 0.02
            if index == 0:
                seen.add((read, drawn))
                captions.add(pair.caption)
                assert (pair.caption == "the blue cup stands here") == (drawn == 1)
            else:
                assert "dog" in pair.caption
    assert seen == {(a, b) for a in range(3) for b in range(3) if a != b} and len(captions) > 5
    assert pairs.draw(0, 7).caption == pairs.draw(0, 7).caption and pairs[0].source == pairs.draw(0, 0).source


def test_transparency_is_a_mask_and_one_noun_may_stand_for_all(tmp_path):
    folder = draw_thing(tmp_path / "cat", (200, 20, 20), masks=False)
    for n in range(3):
        pixels = np.asarray(Image.open(folder / f"{n}.png"))
        alpha = near(pixels, (200, 20, 20)).astype(np.uint8) * 255
        Image.fromarray(np.dstack([pixels, alpha])).save(folder / f"{n}.png")
    pair = FolderPairs(folder, "cat", size=32)[0]  # the pictures of one thing
    assert pair.nouns == ("cat",) and 0.1 < (pair.mask > 0.5).mean() < 0.3
    without = FolderPairs(draw_thing(tmp_path / "bare", (9, 9, 9), masks=False), "cat", size=32, masks=False)[0]
    assert without.mask.min() == 1 and without.looks[0][1] is None


def test_signatures_say_what_is_in_the_folders(things):
    before = FolderPairs(things).signature
    assert before == FolderPairs(things).signature != FolderPairs(things, "toy").signature
    (things / "mug" / "1.txt").write_text("a cup")
    assert FolderPairs(things).signature != before


def test_bad_folders_are_said(things, tmp_path):
    draw_thing(tmp_path / "few" / "one", (9, 9, 9), count=1, noun="dog")
    with pytest.raises(ArtefactError, match="no thing with two pictures"):
        FolderPairs(tmp_path / "few")
    draw_thing(tmp_path / "few" / "two", (9, 9, 9), noun="dog")
    assert FolderPairs(tmp_path / "few").left_out == ("one",)
    (things / "rex" / "2_mask.png").unlink()
    with pytest.raises(ArtefactError, match=r"rex/2\.png: no mask .*thisness masks"):
        FolderPairs(things)
    (things / "rex" / "noun.txt").unlink()
    with pytest.raises(UserError, match=r"rex: what kind of thing is it.*noun\.txt.*--noun"):
        FolderPairs(things)
    (things / "rex" / "0.bmp").write_bytes(b"x")
    with pytest.raises(ArtefactError, match=r"0\.bmp: not PNG, JPEG or WebP"):
        FolderPairs(things)
    with pytest.raises(ArtefactError, match="no such folder"):
        FolderPairs(tmp_path / "nothing")
    draw_thing(tmp_path / "both" / "one", (9, 9, 9), noun="dog")
    Image.new("RGB", (8, 8)).save(tmp_path / "both" / "stray.png")
    with pytest.raises(ArtefactError, match="pictures and folders of pictures"):
        FolderPairs(tmp_path / "both")
    (things / "mug" / "0.png").write_bytes(b"no picture")
    pairs = FolderPairs(things / "mug", "cup", size=32)
    with pytest.raises(ImageError, match="0.png"):
        for seed in range(20):
            pairs.draw(0, seed)


def test_forms_of_data(things):
    assert len(open_pairs("folders", [str(things)])) == 2
    with pytest.raises(ConfigurationError, match=r"no form of data 'coca' \(did you mean 'coco'\?\)"):
        open_pairs("coca", ["a", "b"])
    with pytest.raises(ConfigurationError, match=r"coco: 1 parts: expected coco:INSTANCES\.json,PICTURES"):
        open_pairs("coco", ["a"])
