"""LPIPS and DreamSim. Oracle: packages made by hand that measure what can be counted."""

import sys
import types

import numpy as np
import pytest
import torch
from evaluation.rulers import item
from PIL import Image

from thisness.errors import ConfigurationError
from thisness.evaluation.items import Picture
from thisness.evaluation.metrics import make_metrics


def flat(level):
    return Picture(Image.new("RGB", (20, 10), (level,) * 3))


class Difference(torch.nn.Module):
    """Mean absolute difference of what it is given."""

    def __init__(self, net="alex", verbose=True):
        super().__init__()
        assert net in ("alex", "vgg") and not verbose
        self.seen = []

    def forward(self, a, b):
        assert a.shape == b.shape == (1, 3, 256, 256) and a.min() >= -1 and a.max() <= 1
        self.seen.append((a, b))
        return (a - b).abs().mean().reshape(1, 1, 1, 1)


@pytest.fixture
def lpips(monkeypatch):
    package = types.ModuleType("lpips")
    package.LPIPS, package.__version__ = Difference, "0.0"
    monkeypatch.setitem(sys.modules, "lpips", package)


def test_what_is_not_installed_is_one_line_that_names_the_extra(monkeypatch):
    for name in ("lpips", "dreamsim"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
        with pytest.raises(ConfigurationError, match=r"thisness\[perceptual\]") as caught:
            make_metrics(name)
        assert "\n" not in str(caught.value) and name in str(caught.value)


def test_lpips_is_the_package_value_of_prepared_pictures(lpips):
    row = item(picture=flat(0), references=(flat(51), flat(255)), baseline=flat(102))
    apart = {level: 2 * level / 255 for level in (51, 102, 255)}
    (mean,) = make_metrics("lpips")
    assert mean.score([row]) == pytest.approx([(apart[51] + apart[255]) / 2], abs=1e-5)
    (best,) = make_metrics("lpips:references=best")
    assert best.score([row]) == pytest.approx([apart[51]], abs=1e-5), "the best distance is the smallest"
    (drift,) = make_metrics("lpips:against=baseline,net=vgg")
    assert drift.score([row, item()]) == [pytest.approx(apart[102], abs=1e-5), None]
    (spread,) = make_metrics("lpips:against=seeds")
    rows = [item(seed, picture=flat(level)) for seed, level in enumerate((0, 51, 102))]
    assert spread.score(rows) == pytest.approx([1.5 * apart[51], apart[51], 1.5 * apart[51]], abs=1e-5)
    assert spread.score(rows[:1]) == [None]
    assert (mean.identity["better"], spread.identity["better"]) == ("lower", "higher")
    assert len({str(metric.identity) for metric in (mean, best, drift, spread)}) == 4


def test_dreamsim_is_the_package_value(monkeypatch):
    package = types.ModuleType("dreamsim")

    def prepare(image):
        return torch.from_numpy(np.array(image)).float()[None] / 255

    def dreamsim(pretrained, dreamsim_type, device):
        assert pretrained and dreamsim_type == "ensemble" and device == "cpu"
        return (lambda a, b: (a - b).abs().mean()), prepare

    package.dreamsim = dreamsim
    monkeypatch.setitem(sys.modules, "dreamsim", package)
    (metric,) = make_metrics("dreamsim")
    row = item(picture=flat(0), references=(flat(51),))
    assert metric.score([row, item(picture=flat(0), references=())]) == [pytest.approx(0.2, abs=1e-6), None]
