"""Oracles: the run without; the equation computed by hand; the text of the error."""

import pytest
import torch

import tiny
from thisness.attention import Intervention
from thisness.conditioning import encode
from thisness.errors import ConfigurationError, ThisnessError
from thisness.sampling import SCHEDULERS, Cancelled, SamplingOptions, guided, make_scheduler, rescaled, sample
from thisness.sampling.loop import CHECK_EVERY

OPTIONS = SamplingOptions(steps=4, guidance=3.0)


@pytest.fixture(scope="module")
def base():
    return tiny.base("zero-snr")


@pytest.fixture(scope="module")
def conditioning(base):
    return encode(base, "a dog on the beach")


def test_guidance_is_the_equation():
    uncond, cond = torch.randn(2, 3, 4, 2, 2)
    assert torch.equal(guided(uncond, cond, 7.5), uncond + 7.5 * (cond - uncond))
    assert torch.allclose(guided(uncond, cond, 1.0), cond, atol=1e-6)


def test_rescaled_guidance_has_the_spread_of_the_unguided():
    prediction, cond = torch.randn(3, 4, 8, 8) * 9, torch.randn(3, 4, 8, 8) * 2
    full = rescaled(prediction, cond, 1.0)
    assert torch.allclose(full.std((1, 2, 3)), cond.std((1, 2, 3)), rtol=1e-4)
    assert torch.allclose(full / prediction, (full / prediction).mean((1, 2, 3), keepdim=True), rtol=1e-3)
    assert torch.equal(rescaled(prediction, cond, 0.0), prediction)


def test_rows_of_their_own_sentences(base):
    """A batch of two sentences is each of them alone, to rounding."""
    both = sample(base, encode(base, ["a dog", "a red cat"]), encode(base, ["", "hat"]), (0, 1), OPTIONS)
    for row, (text, negative) in enumerate((("a dog", ""), ("a red cat", "hat"))):
        alone = sample(base, encode(base, text), encode(base, negative), (row,), OPTIONS)
        assert torch.allclose(both[row], alone[0], atol=1e-4)
    assert not torch.allclose(both[1], sample(base, encode(base, "a red cat"), None, (1,), OPTIONS)[0], atol=1e-3)


def test_a_seed_is_a_generator_on_the_cpu(base, conditioning):
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in (3, 2**63 - 1)]
    expected = sample(base, conditioning, None, None, OPTIONS, generators=generators)
    assert torch.equal(sample(base, conditioning, None, (3, 2**63 - 1), OPTIONS), expected)


def test_each_step_is_told(base, conditioning):
    told = []
    final = sample(base, conditioning, None, (0, 1), OPTIONS, on_step=told.append)
    assert [(step.number, step.count, step.timestep) for step in told] == [
        (1, 4, 999),
        (2, 4, 749),
        (3, 4, 499),
        (4, 4, 249),
    ]
    assert torch.equal(told[-1].latents, final)
    for step in told:
        assert step.clean().shape == final.shape
    # trailing spacing ends at the clean latents: DDIM's last step from t=249 goes to the final alpha
    first, last = told[0].clean(), told[-1].clean()
    assert (last - final).abs().mean() < (first - final).abs().mean()


def test_a_run_can_be_cancelled_and_leaves_nothing(base, conditioning):
    expected = sample(base, conditioning, None, (0,), OPTIONS)
    processors = dict(base.unet.attn_processors)
    count = []

    class Swell(Intervention):
        def extra(self, site, attn, q, out, context):
            return out * 2

    def cancel(step):
        count.append(step.number)
        if step.number == 2:
            raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        sample(base, conditioning, None, (0,), OPTIONS, interventions=[Swell()], on_step=cancel)
    assert count == [1, 2]
    assert all(base.unet.attn_processors[name] is processor for name, processor in processors.items())
    assert torch.equal(sample(base, conditioning, None, (0,), OPTIONS), expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_name_their_step(base, conditioning, bad):
    class Break(Intervention):
        def prediction(self, latents, prediction, context):
            return prediction * bad if context.step == 2 else prediction

    steps = []
    with pytest.raises(ThisnessError, match="NaN or infinity in the latents at step 3 of 30: .*guidance"):
        sample(
            base, conditioning, None, (0, 1), SamplingOptions(steps=30, guidance=1.0), interventions=[Break()],
            on_step=steps.append,
        )  # fmt: skip
    assert len(steps) < CHECK_EVERY  # found at the first look, not after all steps


def test_the_sampler_asks_for_no_gradient(base, conditioning):
    live = conditioning.with_embeds(conditioning.embeds.clone().requires_grad_())
    assert not sample(base, live, None, (0,), OPTIONS).requires_grad


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"seeds": None}, "pass seeds or generators"),
        ({"seeds": ()}, "pass seeds or generators"),
        ({"seeds": (0,), "generators": [torch.Generator()]}, "pass seeds or generators"),
        ({"seeds": (-1,)}, "seed -1 is not in"),
        ({"seeds": (0,), "latents": torch.zeros(1, 4, 3, 3)}, r"latents are \(1, 4, 3, 3\): expected \(1, 4, 8, 8\)"),
        ({"seeds": (0,), "options": SamplingOptions(steps=2, scheduler="euler", eta=0.5)}, "eta is DDIM's"),
        ({"seeds": (0,), "options": SamplingOptions(steps=2, scheduler="heun")}, "rescale_betas_zero_snr"),
        ({"seeds": (0,), "options": SamplingOptions(width=12345)}, "width 12345"),
    ],
)
def test_what_cannot_be_done_is_refused(base, conditioning, arguments, words):
    with pytest.raises(ConfigurationError, match=words):
        sample(base, conditioning, None, **arguments)


def test_options_out_of_range_are_all_listed():
    with pytest.raises(ConfigurationError) as caught:
        SamplingOptions(steps=0, guidance=float("nan"), scheduler="eulr", eta=2.0, guidance_rescale=-1.0, height=0)
    message = str(caught.value)
    for words in ("6 problems", "steps 0", "guidance nan", "'euler'", "eta 2.0", "guidance_rescale -1.0", "height 0"):
        assert words in message
    assert "\n" not in message


def test_options_are_filled_in_from_the_base(base):
    full = SamplingOptions(guidance=2).resolved(base)
    assert (full.steps, full.guidance, full.height, full.width, full.scheduler) == (50, 2.0, 16, 16, None)
    assert full.resolved(base) == full


def test_schedulers_keep_what_the_base_was_trained_with(base):
    for name in SCHEDULERS:
        try:
            made = make_scheduler(base, name)
        except ConfigurationError:
            assert name in ("pndm", "heun")
            continue
        assert made.config.prediction_type == "v_prediction" and made.config.rescale_betas_zero_snr
        assert made.config.timestep_spacing == "trailing" and made.config.beta_schedule == "scaled_linear"
    with pytest.raises(ConfigurationError, match="did you mean 'unipc'"):
        make_scheduler(base, "unip")
