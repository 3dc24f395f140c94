"""OminiControl and AlignGen on pairs. Oracles: the flow loss with the batch made by hand; the run uninterrupted; the
base before; the method itself with the folder that was written."""

from __future__ import annotations

from random import Random

import pytest
import tiny_flux
import torch
from things import coco, draw_things

from thisness.errors import ConfigurationError
from thisness.files import load_tensors, read_json
from thisness.methods import Stopped
from thisness.methods.aligngen_training import Batch
from thisness.methods.coco_pairs import CocoPairs
from thisness.methods.ominicontrol import reference_latents
from thisness.methods.pair_training import Row, train_adapter
from thisness.methods.pairs import FolderPairs
from thisness.methods.references_on_pairs import (
    AlignGenOnPairs,
    AlignGenPairSettings,
    OminiControlOnPairs,
    ReferencePairSettings,
)
from thisness.methods.zero_shot import read_subject
from thisness.subject import Subject

FEW = {"steps": 2, "batch_size": 2, "warmup": 0, "preview_every": 0, "tracker": "off", "rank": 4}


@pytest.fixture(scope="module")
def base():
    return tiny_flux.base(length=40)


@pytest.fixture
def data(tmp_path):
    return [FolderPairs(draw_things(tmp_path / "things"), size=32)]


@pytest.fixture(scope="module")
def redux(tmp_path_factory):
    return str(tiny_flux.redux_folder(tmp_path_factory.mktemp("redux")))


def row_of(training, pair):
    tensors = {name: each.half() for name, each in training.encode(pair).items()}
    return Row(tensors, pair.nouns, pair.categories or ("",), pair.caption)


def test_the_loss_is_the_flow_loss_of_the_pairs(base, data):
    options = ReferencePairSettings(**FEW, size=32)
    training = OminiControlOnPairs("ominicontrol", base, options)
    pairs = [data[0].draw(0, 1), data[0].draw(1, 2)]
    rows = [row_of(training, pair) for pair in pairs]
    with torch.no_grad(), training.attached():
        found = training.loss(rows, torch.Generator().manual_seed(3))["loss"]
        rng = torch.Generator().manual_seed(3)
        torch.randint(0, 1 << 40, (), generator=rng)
        from thisness.methods.ezigen_loops import to_tensor

        targets = torch.stack([base.encode_images(to_tensor(pair.picture)[None])[0] for pair in pairs])
        read = torch.stack([reference_latents(pair.looks[0][0], base, 32) for pair in pairs])
        masks = torch.stack([torch.from_numpy(pair.mask)[None] for pair in pairs])
        weights = 1 + 2.0 * torch.nn.functional.avg_pool2d(masks, 2)
        given = Batch(targets, read, [pair.caption for pair in pairs], weights=weights)
        assert found == pytest.approx(float(training.training.loss(given, rng)["loss"]), rel=2e-3)
        numbers = training.gap(rows, torch.Generator().manual_seed(0), training.modules())
    assert numbers["gap"] == pytest.approx(numbers["swapped"] - numbers["right"]) and numbers["gap"] != 0
    assert numbers["absent"] not in (numbers["right"], numbers["swapped"])


@pytest.mark.parametrize("method", ["ominicontrol", "aligngen"])
def test_stopped_and_resumed_equals_uninterrupted_and_is_read_by_the_method(base, data, redux, tmp_path, method):
    more = {"redux": redux} if method == "aligngen" else {}
    before = {f"{n}/{k}": v.clone() for n, m in base.modules.items() for k, v in m.state_dict().items()}
    given = FEW | more | {"lr": 0.01}
    train_adapter(method, data, base, folder=tmp_path / "whole", progress=False, **given)
    with pytest.raises(Stopped):
        train_adapter(method, data, base, folder=tmp_path / "parts", progress=False, stop_after=0.0, **given)
    train_adapter(method, data, base, folder=tmp_path / "parts", progress=False, **given)
    whole, parts = (load_tensors(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    assert any(each.abs().max() > 0 for name, each in whole.items() if name.endswith("lora_B.weight"))
    assert any(name.startswith("star.") for name in whole) == (method == "aligngen")
    after = {f"{n}/{k}": v for n, m in base.modules.items() for k, v in m.state_dict().items()}
    assert all(torch.equal(before[name], after[name]) for name in before)
    config = read_json(tmp_path / "whole" / "config.json")
    assert (config["method"], config["base"], config["shift"], config["size"]) == (method, base.signature, "-w", 32)
    subject = Subject.from_folder(tmp_path / "things" / "rex" / "0.png", "dog", "rex")
    concept = read_subject(method, subject, base, settings={"weights": str(tmp_path / "whole"), **more})
    from thisness.conditioning import encode
    from thisness.sampling import SamplingOptions, sample

    text, options = encode(base, "a dog on the beach"), SamplingOptions(steps=2)
    plain = sample(base, text, None, [0], options)
    with concept.attach(base) as brought:
        from thisness.prompt import Prompt

        filled = Prompt("a {subject} on the beach").fill({"subject": concept.word})
        drawn = sample(base, encode(base, filled), None, [0], options, interventions=brought.interventions)
    assert not torch.allclose(plain, drawn, atol=1e-3)


def test_previews_show_pictures_and_measure_the_gap(base, data, redux, tmp_path):
    """With an average, too: what is trained is not what is looked at, and stays as it was."""
    options = AlignGenPairSettings(**FEW, size=32, redux=redux)
    training = AlignGenOnPairs("aligngen", base, options)
    rows = [row_of(training, data[0].draw(index, 3)) for index in range(2)]
    others = AlignGenOnPairs("aligngen", base, options).modules()
    with torch.no_grad():
        for parameter in others["lora"].parameters():
            parameter.add_(0.3)
    kept = [parameter.clone() for parameter in training.trainables.parameters()]
    with training.attached():
        own = training.gap(rows, torch.Generator().manual_seed(0), training.modules())
        other = training.gap(rows, torch.Generator().manual_seed(0), others)
        pictures = training.pictures(rows, others)
    assert own["right"] != other["right"] and other["gap"] != 0
    assert [len(each) for each in pictures] == [3, 3] and pictures[0][0].size == (32, 32)
    assert all(torch.equal(a, b) for a, b in zip(kept, training.trainables.parameters(), strict=True))


def test_sentences_name_the_thing_by_its_name_its_last_word_or_its_class(base, redux):
    training = AlignGenOnPairs("aligngen", base, AlignGenPairSettings(**FEW, size=32, redux=redux))
    seen = {training.sentence("the red robot on a hat", "red robot", "toys", Random(n)) for n in range(30)}
    assert seen == {
        ("the red robot on a hat", "red robot"), ("the robot on a hat", "robot"), ("the toy on a hat", "toy")
    }  # fmt: skip
    unnamed = {training.sentence("it sleeps", "dog", "", Random(n)) for n in range(5)}
    assert unnamed == {("a photo of a dog", "dog")}
    plain = OminiControlOnPairs("ominicontrol", base, ReferencePairSettings(**FEW, size=32))
    assert plain.sentence("it sleeps", "dog", "", Random(0)) == ("it sleeps", "")


def test_pictures_that_would_be_copied_are_refused(base, tmp_path):
    pairs = CocoPairs(*coco(tmp_path / "coco"), least=500)
    with pytest.raises(ConfigurationError, match="would learn to copy.*background=white"):
        train_adapter("ominicontrol", [pairs], base, folder=tmp_path / "x", progress=False, **FEW)
    train_adapter("ominicontrol", [pairs], base, folder=tmp_path / "x", progress=False, background="white", **FEW)
