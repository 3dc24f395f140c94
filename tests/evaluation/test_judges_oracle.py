"""Oracles: hand-made readings with hand-computed values; on renders, what the scene says."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from thisness.errors import ArtefactError, ConfigurationError
from thisness.evaluation.items import Item, Picture
from thisness.evaluation.judges import make_judge, oracle
from thisness.playroom.captions import ATTRIBUTES


def picture(shade: int) -> Picture:
    return Picture(Image.new("RGB", (8, 8), (shade, 0, 0)))


def reading(**said):
    """Certain readings; a dict of probabilities for what is not certain; the first word for what is left out."""
    out = {}
    for name, values in ATTRIBUTES.items():
        value = said.get(name.replace(" ", "_"), values[0])
        shares = value if isinstance(value, dict) else {value: 1.0}
        out[name] = np.array([shares.get(word, 0.0) for word in values])
    return out


class Stub:
    """Reads what it was told to see in each picture."""

    identity = {"judge": "oracle"}

    def __init__(self):
        self.told = {}

    def see(self, **said) -> Picture:
        seen = picture(len(self.told))
        self.told[seen.hash] = reading(**said)
        return seen

    def read(self, pictures):
        return [self.told[each.hash] for each in pictures]


@pytest.fixture
def stub():
    return Stub()


def value(stub, column, seen, *references, **changes):
    given = {"family": "pose", "expected": {}, **changes}
    item = Item("i", "r", "s", "case-1", 0, seen, references, "dog", "a dog", **given)
    return oracle.OracleColumn(stub, column).score([item])[0]


def test_follow_is_the_share_that_is_read(stub):
    seen = stub.see(pose="sitting", background="snow", accessory="hat")
    asked = {"pose": "sitting", "background": "beach", "accessory": "hat"}
    assert value(stub, "follow", seen, expected=asked) == pytest.approx(2 / 3)
    assert value(stub, "pose", seen, expected=asked) == 1
    assert value(stub, "background", seen, expected=asked) == 0
    assert value(stub, "object", seen, expected=asked) is None
    assert value(stub, "follow", seen) is None


def test_what_cannot_be_read_is_not_asked(stub):
    seen = stub.see(background="snow", style="pencil sketch", colour="red")
    pair = {"background": "snow", "companion": "cat", "companion colour": "blue", "pose": "running"}
    assert value(stub, "follow", seen, expected=pair) == 1, "of two toys only background and style"
    assert value(stub, "pose", seen, expected=pair) is None
    sketch = {"style": "pencil sketch", "colour": "blue", "accessory colour": "blue", "background": "city"}
    assert value(stub, "follow", seen, expected=sketch) == 0.5, "no colours of a sketch"
    assert value(stub, "identity", seen, seen, expected=pair) is None
    assert value(stub, "identity", seen, seen, family="two-toy") is None


def test_demands_in_other_words_are_refused(stub):
    with pytest.raises(ConfigurationError, match=r"case case-1 expects 'poses' \(did you mean 'pose'\?\)"):
        value(stub, "follow", stub.see(), expected={"poses": "sitting"})
    with pytest.raises(ConfigurationError, match=r"expects pose 'siting' \(did you mean 'sitting'\?\)"):
        value(stub, "follow", stub.see(), expected={"pose": "siting"})


def test_identity_by_hand(stub):
    spotted = stub.see(colour="red", second_colour="blue", pattern={"spots": 0.8, "plain": 0.2})
    seen = stub.see(
        colour={"red": 0.6, "pink": 0.4}, second_colour={"blue": 0.5, "teal": 0.5}, pattern={"spots": 0.9, "plain": 0.1}
    )
    # class 1, colour .6, pattern .8 + .1 = .9, second colour .5 at weight .8
    by_hand = (1 + 0.6 + 0.9 + 0.8 * 0.5) / 3.8
    assert value(stub, "identity", seen, spotted) == pytest.approx(by_hand)
    plain = stub.see(colour="red", second_colour="green", pattern="plain")
    again = stub.see(colour="red", second_colour="gray", pattern="plain")
    assert value(stub, "identity", again, plain) == 1, "a plain toy has no second colour"
    other = stub.see(**{"class": "car"}, colour="teal", second_colour="white", pattern="stripes")
    assert value(stub, "identity", other, spotted) == 0
    both = (by_hand + (1 + 0.6 + 0.1) / 3) / 2
    assert value(stub, "identity", seen, spotted, plain) == pytest.approx(both), "mean over references"
    assert value(stub, "identity", seen) is None
    grey = stub.see(colour="gray", second_colour="black", pattern="spots")
    sketch = {"style": "pencil sketch"}
    assert value(stub, "identity", grey, spotted, expected=sketch) == pytest.approx((1 + 0.8) / 2), "no colours"


def test_the_usual_look_counts_where_the_toy_has_another(stub):
    own = {"colour": "purple", "pattern": "spots", "second colour": "white"}  # most dogs: brown, white patches
    reference = stub.see(colour="purple", pattern="spots", second_colour="white")
    for seen, share in (
        ({"colour": "brown", "pattern": "patches"}, 1.0),
        ({"colour": "brown", "pattern": "spots"}, 0.5),
        ({"colour": "teal", "pattern": "stripes"}, 0.0),
    ):
        drawn = stub.see(**seen, second_colour="white")
        assert value(stub, "usual-look", drawn, reference, truths=(own,)) == share
        assert value(stub, "usual-look", drawn, reference) == share, "read from the picture where no truth is told"
    usual = {"colour": "brown", "pattern": "patches", "second colour": "white"}
    assert value(stub, "usual-look", drawn, reference, truths=(usual,)) is None
    second = {"colour": "brown", "pattern": "patches", "second colour": "red"}
    assert value(stub, "usual-look", drawn, reference, truths=(second,)) == 1.0
    plain = {"colour": "brown", "pattern": "plain"}  # has no second colour
    patched = stub.see(pattern="patches", second_colour="white")
    assert value(stub, "usual-look", patched, reference, truths=(plain,)) == 1.0
    sketch = {"style": "pencil sketch"}
    assert value(stub, "usual-look", patched, reference, truths=(own,), expected=sketch) == 1.0
    assert value(stub, "usual-look", drawn, truths=(own,)) is None


def test_a_copied_pose(stub):
    sitting, running = stub.see(pose="sitting"), stub.see(pose="running")
    asked = {"pose": "sleeping"}
    references = (sitting, running)
    for pose, copied in (("sitting", 1), ("running", 1), ("sleeping", 0), ("waving", 0)):
        assert value(stub, "copied-pose", stub.see(pose=pose), *references, expected=asked) == copied
    assert value(stub, "copied-pose", stub.see(pose="sitting"), sitting, expected={"pose": "sitting"}) is None
    two = value(stub, "copied-pose", stub.see(pose="sitting"), *references, expected={"pose": "sitting"})
    assert two == 0, "asked for, so not copied, though a reference sits too"
    assert value(stub, "copied-pose", stub.see(pose="sitting"), sitting) is None
    truths = ({"pose": "waving"},)  # what the benchmark knows counts more than what is read
    assert value(stub, "copied-pose", stub.see(pose="sitting"), sitting, expected=asked, truths=truths) == 0
    assert value(stub, "copied-pose", stub.see(pose="waving"), sitting, expected=asked, truths=truths) == 1


def test_the_shipped_reader_on_renders():
    """Each toy in two scenes: what the scene says is read, and a toy agrees with itself more than with others."""
    import torch

    from thisness.playroom.captions import labels
    from thisness.playroom.models import Reader, read
    from thisness.playroom.render import render
    from thisness.playroom.world import identity, random_scene

    toys = [identity(50_000 + n, "held-out") for n in range(4)]
    scenes = [random_scene(9_000_000 + n, "held-out", subject=toys[n // 2], companion=0, styled=0) for n in range(8)]
    scenes[1] = replace(scenes[1], style="pixel art")
    images = render(scenes).images
    pictures = [Picture(Image.fromarray(each.permute(1, 2, 0).numpy())) for each in images]
    names = ("pose", "background", "facing")
    items = []
    for n, (scene, shown) in enumerate(zip(scenes, pictures, strict=True)):
        truth = {name: ATTRIBUTES[name][number] for name, number in labels(scene).items() if number >= 0}
        expected = {name: truth[name] for name in names}
        items.append(Item(f"i{n}", "r", "s", "c", n, shown, (pictures[n ^ 1],), "toy", "a toy", expected=expected))
    follow, same, pose = make_judge("oracle:follow+identity+pose")
    values = follow.score(items)
    assert np.mean(values) > 0.9
    said = read(Reader.load(oracle.WEIGHTS), images.float().div(127.5).sub(1))
    by_hand = [
        np.mean([ATTRIBUTES[name][int(said[name][n])] == item.expected[name] for name in names])
        for n, item in enumerate(items)
    ]
    assert values == pytest.approx(by_hand), "batches, sizes and caches change nothing"
    assert pose.score(items[:4]) == [
        float(ATTRIBUTES["pose"][int(said["pose"][n])] == items[n].expected["pose"]) for n in range(4)
    ]
    swapped = [replace(item, references=(pictures[(n + 2) % 8],)) for n, item in enumerate(items)]
    assert np.mean(same.score(items)) > np.mean(same.score(swapped)) + 0.2
    assert same.score([replace(items[0], references=(items[0].picture,))]) == [pytest.approx(1)]
    big = replace(items[0], picture=Picture(items[0].picture.image.resize((256, 256))))
    assert follow.score([big, items[1]])[1] == values[1]
    assert torch.is_grad_enabled()


def test_identity_states_the_readers_accuracy(tmp_path):
    (column,) = make_judge("oracle:follow")
    assert json.loads(json.dumps(column.identity)) == column.identity
    for file in oracle.WEIGHTS.iterdir():
        if file.name != "accuracy.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert make_judge(f"oracle:weights={tmp_path}")[0].identity["accuracy"] == "unmeasured"
    (tmp_path / "accuracy.json").write_text('{"pose": 98.8}')
    assert make_judge(f"oracle:weights={tmp_path}")[0].identity["accuracy"] == {"pose": 98.8}
    (stale,) = make_judge(f"oracle:weights={tmp_path},columns=pose")
    with open(tmp_path / "model.safetensors", "r+b") as file:  # other weights arrive before the first picture
        file.seek(-2, 2)
        file.write(b"\x00\x01")
    with pytest.raises(ArtefactError, match="has changed since this judge was made"):
        stale.score([Item("i", "r", "s", "c", 0, picture(1), (), "dog", "a dog")])
    (tmp_path / "config.json").write_text('{"kind": "judge", "attributes": {}}')
    with pytest.raises(ArtefactError, match="reads other attributes"):
        make_judge(f"oracle:weights={tmp_path}")
    with pytest.raises(ArtefactError, match="is not there"):
        make_judge(f"oracle:weights={tmp_path / 'no'}")
