"""The benchmarks. Oracle: clocks set by hand; what each writes on a tiny base; the stock pipeline's pictures."""

import importlib
import json
import os
import sys

import ezigen_cost
import full_size
import measure
import pytest
import torch


def run(monkeypatch, name, path, *words):
    """The JSON of a benchmark that is run in this process."""
    monkeypatch.setenv("THISNESS_CACHE", os.environ["THISNESS_CACHE"])  # given back afterwards
    monkeypatch.setattr(sys, "argv", [name, "--json", str(path), *map(str, words)])
    importlib.import_module(name).main()
    return json.loads(path.read_text())


def test_interleaved_alternates_the_order_and_leaves_the_warm_up_out(monkeypatch):
    calls, clock = [], [0.0]

    def takes(name, seconds):
        calls.append(name)
        clock[0] += seconds

    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
    functions = {"a": lambda: takes("a", 1.0), "b": lambda: takes("b", 3.0)}
    assert measure.interleaved(functions, repeats=2, warmup=1) == {"a": [1.0, 1.0], "b": [3.0, 3.0]}
    assert calls == ["a", "b", "b", "a", "a", "b"]


def test_ratios_are_taken_within_a_round():
    """A machine that is four times slower in the second round changes no ratio."""
    assert measure.median_ratio([2.0, 8.0, 2.2], [1.0, 4.0, 1.0]) == 2.0
    assert measure.spread([1.0]) == 0.0
    assert measure.spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(1.5)


def test_sampler_compares_with_the_stock_pipeline(monkeypatch, base_folder, tmp_path, capsys):
    words = ["--base", base_folder, "--steps", 3, "--repeats", 2, "--batches", 1, 2]
    result = run(monkeypatch, "sampler", tmp_path / "x.json", *words)
    assert [row["batch"] for row in result["rows"]] == [1, 2]
    assert all(row["same pictures"] for row in result["rows"]), "both were asked for the same"
    assert all(row["ours s"] > 0 and row["stock s"] > 0 for row in result["rows"])
    assert result["target_ratio"] == 1.02 and "ours/stock" in capsys.readouterr().out
    assert str(base_folder) not in (tmp_path / "x.json").read_text(), "no path of a machine in what is published"


def test_learning_counts_the_steps_of_both_loops(monkeypatch, base_folder, tmp_path):
    words = ["--base", base_folder, "--steps", 25, "--repeats", 1, "--batch", 1, "--class-pictures", 2, "--rank", 2]
    methods = ["textual-inversion", "dreambooth-lora", "detex"]
    result = run(monkeypatch, "learning", tmp_path / "x.json", *words, "--methods", ",".join(methods))
    assert [row["method"] for row in result["rows"]] == methods
    for row in result["rows"]:
        assert row["ratio"] == pytest.approx(row["ours"] / row["plain steps/s"]) and row["ours"] > 0


@pytest.mark.parametrize("method", ["textual-inversion", "dreambooth", "dreambooth-lora", "custom-diffusion", "detex"])
def test_the_plain_loop_trains_its_method_and_leaves_the_base_as_it_was(base_folder, tmp_path, method):
    import learning
    import torch
    from PIL import Image

    from thisness.bases import load_base

    base = load_base(str(base_folder))
    before = {key: value.clone() for key, value in base.denoiser.state_dict().items()}
    text = {key: value.clone() for key, value in base.text_encoder.state_dict().items()}
    given = type("Given", (), {"rank": 2, "lr": 1e-2, "batch": 1, "steps": 2, "precision": "fp32"})
    Image.new("RGB", (16, 16), "red").save(tmp_path / "00.png")
    Image.new("L", (16, 16), 255).save(tmp_path / "00_mask.png")
    own = [tmp_path / "00.png"]
    assert learning.plain_steps(base, method, own, own * 2, "dog", given) > 0
    assert all(torch.equal(text[key], value) for key, value in base.text_encoder.state_dict().items())
    after = base.denoiser.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_renderer_counts_pictures(monkeypatch, tmp_path):
    words = ["--pictures", 8, "--size", 32, "--repeats", 1, "--plain-only", "--threads", 1]
    result = run(monkeypatch, "renderer", tmp_path / "x.json", *words)
    assert [row["renderer"] for row in result["rows"]] == ["plain"] and result["rows"][0]["pictures/s"] > 0


@pytest.mark.parametrize(("name", "published"), [("sd1.5", 859_520_964), ("sd2.1-base", 865_910_724)])
def test_random_denoisers_have_as_many_numbers_as_the_published_ones(name, published):
    with torch.device("meta"):
        assert sum(each.numel() for each in full_size.unet(name).parameters()) == published


def test_a_model_of_random_weights_is_measured_as_any_other(monkeypatch, tmp_path):
    """Oracle: EZIGen's calls by the paper's formula, and the released procedure's pixels."""
    small = {"block_out_channels": (32, 64), "norm_num_groups": 8}
    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "layers_per_block": 1}
    blocks |= {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": 32}
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes = {"unet": {**small, **blocks, "attention_head_dim": 2, "sample_size": 32}, "text": text, "scheduler": {}}
    monkeypatch.setitem(full_size.SIZES, "small", sizes)
    coders = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    monkeypatch.setattr(full_size, "VAE", {**full_size.VAE, **small, **coders, "layers_per_block": 1})
    base = full_size.opened("random:small")
    with pytest.raises(KeyError):
        full_size.opened("random:sd9")
    assert base.name == "small of random weights" and base.resolution == 64
    same = full_size.opened("random:small")
    assert same.signature == base.signature, "same seed, same weights"
    found = ezigen_cost.run(None, 5, 1, tmp_path / "x.json", "random:small", side=32)
    assert found["same_pixels"] and [row["calls"] for row in found["rows"]] == [22, 12, 12]
    assert all(row["calls"] == row["by the formula"] for row in found["rows"])
    assert "32 px, float32 on cpu: 5 steps" in found["title"]
