"""Oracle: only whole, finite, expected tensors come in; pickles never (SAFETY 1, 2)."""

import pickle

import pytest
import torch

from thisness.errors import ArtefactError, UserError
from thisness.files import load_tensors, save_tensors


def test_round_trip_is_exact(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "view": base.t(),  # not contiguous
        "whole": base,  # shares its storage with the view
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
        "ids": torch.tensor([3, 1]),
        "none": torch.zeros(0, 2),
    }
    path = tmp_path / "a.safetensors"
    save_tensors(path, tensors, {"format": "pt"})
    loaded = load_tensors(path, expect={name: tuple(tensor.shape) for name, tensor in tensors.items()})
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('code of a stranger ran')",)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".CKPT", ".safetensors"])
def test_pickles_are_never_opened(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ArtefactError) as caught:
        load_tensors(path)
    message = str(caught.value)
    assert "\n" not in message
    if suffix != ".safetensors":
        assert "refused" in message and "weights_only=True" in message and "model.safetensors" in message


def test_the_conversion_route_works_as_it_is_written(tmp_path):
    import shlex
    import subprocess
    import sys

    torch.save({"state_dict": {"a": torch.eye(3).t()}}, tmp_path / "model.ckpt")
    with pytest.raises(ArtefactError) as caught:
        load_tensors(tmp_path / "model.ckpt")
    command = shlex.split(str(caught.value).split("convert it once: python ")[1])
    subprocess.run([sys.executable, *command], cwd=tmp_path, check=True)
    assert torch.equal(load_tensors(tmp_path / "model.safetensors")["a"], torch.eye(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_values_must_be_finite(tmp_path, dtype):
    bad = torch.tensor([1.0, float("nan")]).to(dtype)
    save_tensors(tmp_path / "a.safetensors", {"good": torch.ones(2), "bad": bad})
    with pytest.raises(ArtefactError, match="NaN or infinity in bad:"):
        load_tensors(tmp_path / "a.safetensors")


def test_everything_that_does_not_fit_is_listed(tmp_path):
    save_tensors(tmp_path / "a.safetensors", {"a": torch.ones(2), "b": torch.ones(3), "extra": torch.ones(1)})
    with pytest.raises(ArtefactError, match=r"missing c; unexpected extra; other shapes: b \(3,\), expected \(4,\)$"):
        load_tensors(tmp_path / "a.safetensors", expect={"a": (2,), "b": (4,), "c": (1,)})
    with pytest.raises(ArtefactError, match="not one of 1 expected tensors is in it: expected x; found a, b, extra"):
        load_tensors(tmp_path / "a.safetensors", expect={"x": (2,)})


def test_files_without_effect_are_errors(tmp_path):
    save_tensors(tmp_path / "empty.safetensors", {})
    with pytest.raises(ArtefactError, match="holds no tensors"):
        load_tensors(tmp_path / "empty.safetensors")
    with pytest.raises(ArtefactError, match="is not there"):
        load_tensors(tmp_path / "none.safetensors")
    with pytest.raises(ArtefactError, match="only"):
        load_tensors(tmp_path / "a.npz")
    with pytest.raises(UserError, match="only"):
        save_tensors(tmp_path / "a.bin", {"a": torch.ones(1)})


def test_truncated_files_are_one_line(tmp_path):
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"a": torch.ones(100)})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtefactError, match="not a readable safetensors file") as caught:
        load_tensors(path)
    assert "\n" not in str(caught.value)


def test_others_may_read_weights_as_they_may_read_any_new_file(tmp_path):
    save_tensors(tmp_path / "a.safetensors", {"x": torch.ones(2)})
    (tmp_path / "plain.txt").write_text("")
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain.txt").stat().st_mode
