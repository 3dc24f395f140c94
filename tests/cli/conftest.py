"""What the tests of the commands share: a tiny base as a folder, pictures of a subject, a concept learned of them."""

import os

import numpy as np
import pytest
from PIL import Image

from thisness import cli

LENGTH = 64  # tokens: the sentences of the demo are spelt out by the tiny tokenizer


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """No test touches the cache of the person who runs it."""
    before = os.environ.get("THISNESS_CACHE")
    os.environ["THISNESS_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("THISNESS_CACHE")
    if before is not None:
        os.environ["THISNESS_CACHE"] = before


@pytest.fixture(scope="session")
def pipeline():
    """A stock pipeline with random weights, 16x16 pixels."""
    from diffusers import StableDiffusionPipeline

    import tiny

    tokens = tiny.tokenizer(length=LENGTH)
    parts = tiny.pipeline("zero-snr").components | {"tokenizer": tokens, "text_encoder": tiny.text_encoder(tokens)}
    pipe = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def base(pipeline, tmp_path_factory):
    """The folder of the same."""
    folder = tmp_path_factory.mktemp("bases") / "tiny-sd"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Four different pictures of noise, 32x32."""
    folder = tmp_path_factory.mktemp("pictures") / "rex"
    folder.mkdir()
    for seed in range(4):
        pixels = np.random.default_rng(seed).integers(60, 200, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
    return folder


@pytest.fixture(scope="session")
def concept(base, photos, tmp_path_factory):
    """A concept learned by the command itself, in two steps."""
    folder = tmp_path_factory.mktemp("concepts") / "rex"
    words = ["learn", "dreambooth-lora", str(photos), "--noun", "dog", "--base", str(base), "--out", str(folder)]
    assert cli.run([*words, "--steps", "2", "--set", "prior_pictures=0"]) == 0
    return folder


@pytest.fixture
def refused(capsys):
    """Run a command that must be refused; gives its one line."""

    def run(*words: object) -> str:
        capsys.readouterr()
        assert cli.run([str(word) for word in words]) == 2
        said = capsys.readouterr().err
        assert said.startswith("thisness: ") and said.count("\n") == 1 and "Traceback" not in said
        return said

    return run
