"""The four sets of pictures. Oracles: the same pictures made by `generate`; an encoder whose features are known."""

import json

import numpy as np
import pytest
import torch

import tiny
from thisness.diagnostics.pose_experiment import diagnose_pose_bias, neutral_of
from thisness.diagnostics.pose_reading import asked_pose, read_poses, reference_poses
from thisness.errors import ArtefactError, ConfigurationError, PromptError
from thisness.generation import generate
from thisness.sampling import SamplingOptions

OPTIONS = SamplingOptions(steps=2, guidance=2.0)


class Pixels:
    """Mean colours of a 4x4 grid."""

    identity = {"model": "pixels"}

    def images(self, images):
        return torch.stack([torch.from_numpy(np.asarray(each.resize((4, 4)), np.float32)).flatten() for each in images])


@pytest.fixture(scope="module")
def base():
    return tiny.base()


@pytest.fixture(scope="module")
def found(base):
    return diagnose_pose_bias(
        base, "a {subject} sleeping", tiny.toy(), Pixels(), concept=tiny.Louder(), seeds=range(1, 7), controls=4,
        options=OPTIONS,
    )  # fmt: skip


def test_the_sets_are_what_they_say(base, found):
    """The subject's by its concept, the plain base's by the noun, and seeds that no two of them share."""
    assert [each.record["seeds"] for each in found.sets.values()] == [
        [1, 2, 3, 4, 5, 6],
        [0, 7, 8, 9],
        [1, 2, 3, 4],
        [0, 7, 8, 9],
    ]
    again = generate(base, "a dog", seeds=(0, 7, 8, 9), options=OPTIONS)
    assert [i.tobytes() for i in again.images] == [i.tobytes() for i in found.sets["plain-neutral"].images]
    again = generate(base, "a {subject}", concept=tiny.Louder(), seeds=(1, 2, 3, 4), options=OPTIONS)
    assert [i.tobytes() for i in again.images] == [i.tobytes() for i in found.sets["neutral"].images]


def test_places_are_the_features_of_the_pictures(found):
    features = Pixels().images(found.sets["generated"].images).double().numpy()
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    assert np.allclose(found.bias.generated, found.bias.plane.place(features))
    assert len(found.bias.references) == 1


def test_what_is_saved(found, tmp_path):
    from PIL import Image

    picture, numbers = found.save(tmp_path)
    data = json.loads(numbers.read_text())
    assert data["encoder"] == {"model": "pixels"} and data["neutral"] == "a {subject}" and data["verdict"]
    assert Image.open(picture).width == 1200
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == set(found.sets)


@pytest.mark.parametrize(
    "prompt, neutral",
    [("a {subject} sleeping", "a {subject}"), ("a photo of a {rex} on the beach", "a photo of a {rex}")],
)
def test_the_neutral_sentence_ends_with_the_placeholder(prompt, neutral):
    assert neutral_of(prompt) == neutral


@pytest.mark.parametrize(
    "prompt, more, error, said",
    [
        ("a dog sleeping", {}, PromptError, "0 placeholders"),
        ("a {rex} beside a {mug}", {}, PromptError, "2 placeholders"),
        ("a sleeping {subject}", {}, PromptError, "--neutral"),
        ("a {subject} sleeping", {"neutral": "a dog"}, PromptError, "placeholder"),
        ("a {subject} sleeping", {"seeds": range(3)}, ConfigurationError, "3 seeds"),
        ("a {subject} sleeping", {"shows_asked": ["x.png"]}, ConfigurationError, "x.png"),
    ],
)
def test_what_does_not_fit_is_refused(base, prompt, more, error, said):
    with pytest.raises(error, match=said) as refused:
        diagnose_pose_bias(base, prompt, tiny.toy(), Pixels(), **more)
    assert "\n" not in str(refused.value)


def test_poses_of_a_rendered_subject_are_read_as_they_were_rendered(tmp_path):
    """The judge reads renders right; what it reads must be what truth.json says."""
    from thisness.playroom.subjects import write_subject
    from thisness.subject import Subject

    write_subject(tmp_path / "rufus", 0)
    subject = Subject.from_folder(tmp_path / "rufus", "dog")
    truth = reference_poses(tmp_path / "rufus", subject.files)
    assert len(set(truth)) == 4
    assert read_poses(subject.images) == truth
    (tmp_path / "rufus" / "truth.json").write_text('{"scenes": []}')
    with pytest.raises(ArtefactError, match="00.png"):
        reference_poses(tmp_path / "rufus", subject.files)
    assert reference_poses(tmp_path, subject.files) == ()


@pytest.mark.parametrize(
    "sentence, pose",
    [
        ("a {subject} Sleeping", "sleeping"),
        ("a teapot upside down", "upside down"),
        ("a dog", ""),
        ("sitting, waving", ""),
    ],
)
def test_the_asked_pose(sentence, pose):
    assert asked_pose(sentence) == pose
