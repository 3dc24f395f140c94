"""For all tests: no network, no cache of the person who runs them; and what tests of whole commands share: a tiny base
as a folder, pictures of a subject, a concept learned of them."""

import os
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any library reads it
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest
from PIL import Image

from thisness import cli

LENGTH = 64  # tokens: the sentences of the demo are spelt out by the tiny tokenizer

_cache = tempfile.TemporaryDirectory(prefix="thisness-tests-")
os.environ["THISNESS_CACHE"] = _cache.name


def pytest_unconfigure():
    _cache.cleanup()


@pytest.fixture(scope="session")
def stock_pipeline():
    """A stock pipeline with random weights, 16x16 pixels."""
    from diffusers import StableDiffusionPipeline

    import tiny

    tokens = tiny.tokenizer(length=LENGTH)
    parts = tiny.pipeline("zero-snr").components | {"tokenizer": tokens, "text_encoder": tiny.text_encoder(tokens)}
    pipe = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def base_folder(stock_pipeline, tmp_path_factory):
    """The folder of the same."""
    folder = tmp_path_factory.mktemp("bases") / "tiny-sd"
    stock_pipeline.save_pretrained(folder)
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
def concept_folder(base_folder, photos, tmp_path_factory):
    """A concept learned by the command itself, in two steps."""
    folder = tmp_path_factory.mktemp("concepts") / "rex"
    words = ["learn", "dreambooth-lora", str(photos), "--noun", "dog", "--base", str(base_folder), "--out", str(folder)]
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
