"""Oracles: diffusers' schedulers, the definitions written out, extremes."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

import tiny
from thisness.errors import ConfigurationError
from thisness.training.diffusion import cumulative_alphas, draw_timesteps, min_snr, noised, row_losses, target


def some(seed: int) -> torch.Tensor:
    return torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "zero-snr"])
def test_noising_and_targets_equal_diffusers(kind):
    scheduler = DDPMScheduler.from_config(tiny.scheduler(kind).config)
    alphas, t = cumulative_alphas(tiny.scheduler(kind)), torch.tensor([0, 500, 998])
    expected = scheduler.add_noise(some(0), some(1), t)
    torch.testing.assert_close(noised(some(0), some(1), alphas[t]), expected, rtol=0, atol=1e-6)
    wanted = some(1) if kind == "epsilon" else scheduler.get_velocity(some(0), some(1), t)
    found = target(some(0), some(1), alphas[t], scheduler.config.prediction_type)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_schedule_is_the_models_whatever_samples_from_it():
    config = tiny.scheduler().config
    assert torch.equal(
        cumulative_alphas(EulerDiscreteScheduler.from_config(config)), cumulative_alphas(tiny.scheduler())
    )
    with pytest.raises(ConfigurationError, match="no noise schedule"):
        cumulative_alphas(FlowMatchEulerDiscreteScheduler())


def test_min_snr_weights():
    """SNR 1/4, 1, 19: below gamma eps weighs 1; v is eps' weight times SNR / (SNR + 1); 0 at zero SNR stays finite."""
    alpha = torch.tensor([0.2, 0.5, 0.95, 0.0])
    torch.testing.assert_close(min_snr(alpha[:3], 5.0, "epsilon"), torch.tensor([1.0, 1.0, 5 / 19]))
    torch.testing.assert_close(min_snr(alpha, 5.0, "v_prediction"), torch.tensor([0.2, 0.5, 0.25, 0.0]))


def test_masked_loss():
    prediction, wanted = some(0), some(1)
    plain = torch.stack([(p - w).square().mean() for p, w in zip(prediction, wanted, strict=True)])
    torch.testing.assert_close(row_losses(prediction, wanted), plain)
    torch.testing.assert_close(row_losses(prediction, wanted, torch.ones(3, 1, 5, 5)), plain)
    mask = torch.zeros(3, 1, 5, 5)
    mask[:, :, 1:3, 2:4] = 1
    inside = (prediction - wanted)[:, :, 1:3, 2:4].square().mean((1, 2, 3))
    torch.testing.assert_close(row_losses(prediction, wanted, mask), inside)
    assert torch.equal(row_losses(prediction, wanted, torch.zeros(3, 1, 5, 5)), torch.zeros(3))


def test_timesteps_are_uniform_and_cover_the_range():
    rng = torch.Generator().manual_seed(0)
    drawn = torch.stack([draw_timesteps(4, 1000, rng) for _ in range(5000)])
    assert drawn.min() >= 0 and drawn.max() <= 999
    for row in range(4):  # each row alone: 5000 draws, 10 bins of 500 +- 5 sigma
        counts = torch.histc(drawn[:, row].float(), 10, 0, 1000)
        assert (counts - 500).abs().max() < 5 * (5000 * 0.1 * 0.9) ** 0.5
    ordered = drawn.sort(1).values
    assert (ordered.diff(dim=1) < 500).all()  # two neighbours are never further apart than two of the four parts
