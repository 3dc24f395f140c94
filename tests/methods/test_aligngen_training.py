"""The training side of AlignGen. Oracles: the plain base, OminiControl's references, each sample of a batch alone, one
way of attending against the other, gradients."""

from __future__ import annotations

import pytest
import tiny_flux
import torch

from thisness.attention import attached
from thisness.bases.flux import pack
from thisness.conditioning import encode
from thisness.errors import ConfigurationError, PromptError
from thisness.files import load_tensors, read_json
from thisness.methods.aligngen_training import Batch, FlowTraining, Trainables, TrainingConfig, save_weights
from thisness.methods.flux_references import Reference, References, RowLora, reference_ids

SENTENCES = ("a red robot on the beach", "dog in the snow", "a photo of the sleeping cat")
NAMES = ("red robot", "dog", "sleeping cat")


@pytest.fixture(scope="module")
def base():
    return tiny_flux.base()


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def trained(base, seed=0):
    """Not as at first: everything has an effect."""
    made = Trainables.fresh(base, rank=4, dem={"inner": 32, "heads": 4, "hidden": 64}, seed=seed)
    with torch.no_grad():
        for number, parameter in enumerate(made.parameters()):
            if parameter.ndim == 2:
                parameter.copy_(noise(*parameter.shape, seed=number) * 0.3)
        made.star.delta.copy_(noise(32, seed=99))
    return made


def batch(count=3, **changes):
    full = {
        "targets": noise(3, 16, 16, 16), "references": noise(3, 16, 8, 8, seed=1), "sentences": SENTENCES,
        "names": NAMES, "redux": noise(3, 9, 32, seed=2),
    }  # fmt: skip
    return Batch(**{key: each[:count] for key, each in full.items()} | changes)


def close(one, other, atol=2e-5):
    return torch.allclose(one, other, rtol=1e-4, atol=atol)


def velocity(training, given, **more):
    latents, times = noise(3, 16, 16, 16, seed=5)[: len(given.sentences)], torch.tensor([0.2, 0.5, 0.9])
    with torch.no_grad(), training.attached():
        return training.velocity(given, latents, times[: len(given.sentences)], **more)


@pytest.mark.parametrize("level", [0.0, 1.5])
def test_the_loss_is_the_flow_loss_of_what_was_drawn(base, level):
    given = batch(weights=torch.rand(3, 1, 16, 16))
    training = FlowTraining(base, trained(base), TrainingConfig(level=level))
    with training.attached():
        found = training.loss(given, torch.Generator().manual_seed(4))
    rng = torch.Generator().manual_seed(4)
    dropped, _ = torch.rand(3, generator=rng) < 0.5, torch.rand(3, generator=rng)
    times = torch.sigmoid(level + torch.randn(3, generator=rng))
    eps = torch.randn(3, 16, 16, 16, generator=rng)
    total = 0.0
    for at in range(3):
        one = batch(1, **{k: getattr(given, k)[at : at + 1] for k in ("references", "sentences", "names", "redux")})
        mixed = (1 - times[at]) * given.targets[at] + times[at] * eps[at]
        with torch.no_grad(), training.attached():
            answer = training.velocity(one, mixed[None], times[at : at + 1], dropped[at : at + 1])[0]
        total += ((answer - (eps[at] - given.targets[at])).square() * given.weights[at]).sum()
    assert found["loss"].item() == pytest.approx(float(total / (given.weights.sum() * 16)), rel=1e-5)


@pytest.mark.parametrize("mode", ["joint", "independent"])
def test_sentences_of_a_batch_are_as_alone_by_either_way_of_attending(base, mode):
    parts = trained(base)
    made = {
        b: velocity(FlowTraining(base, parts, TrainingConfig(mode, backend=b)), batch()) for b in ("dense", "split")
    }
    assert close(made["dense"], made["split"])
    one = velocity(FlowTraining(base, parts, TrainingConfig(mode)), batch(1))
    assert close(one, made["split"][:1])
    other = velocity(FlowTraining(base, parts, TrainingConfig(mode, selective=False)), batch())
    assert not close(other, made["split"], 1e-2)


@pytest.mark.parametrize("mode", ["joint", "independent"])
def test_without_its_three_parts_it_is_ominicontrol(base, mode):
    """Oracle 19; text given, or encoded here."""
    parts = trained(base)
    training = FlowTraining(base, parts, TrainingConfig.ominicontrol(mode=mode))
    text = encode(base, SENTENCES)
    found = velocity(training, batch(names=(), redux=None, text=text))
    assert torch.equal(found, velocity(training, batch(names=(), redux=None)))
    for at in range(3):
        tokens = pack(batch().references[at : at + 1])[0]
        lora = RowLora({key: each.detach() for key, each in parts.low_rank.items()})
        plain = References([Reference(tokens, reference_ids(4, 4, (0, -4)))], lora, mode)
        with torch.no_grad(), plain.installed(base.transformer), attached(base.transformer, plain):
            latents, time = noise(3, 16, 16, 16, seed=5)[at : at + 1], [0.2, 0.5, 0.9][at]
            assert close(base.predict(latents, time * 1000, text.rows([at])), found[at : at + 1])


def test_at_first_only_the_word_s_star_starts_from_is_new(base):
    """Oracle 9 and 10: the module is the identity, S* is a word of the vocabulary."""
    fresh = Trainables.fresh(base, rank=4, word="red")
    given = batch(sentences=("a dog",) * 3, names=("dog",) * 3)
    training = FlowTraining(base, fresh)
    with torch.no_grad():
        conditioning, rows = training.text(given)
    assert torch.equal(conditioning.embeds, encode(base, ["a red dog"] * 3).embeds) and rows == [[1, 2]] * 3
    assert torch.equal(conditioning.pooled, encode(base, ["a dog"] * 3).pooled)
    off = FlowTraining(base, fresh, TrainingConfig(star=False, dem=False))
    plain, rows = off.text(given)
    assert torch.equal(plain.embeds, encode(base, ["a dog"] * 3).embeds) and rows == [[1]] * 3


@torch.no_grad()
def test_the_module_changes_s_star_alone_or_all_of_the_name(base):
    parts = trained(base)

    def states(**switches):
        return FlowTraining(base, parts, TrainingConfig(**switches)).text(batch())

    (before, rows), (after, _), (whole, _) = states(dem=False), states(), states(replace_all=True)
    first = [[at] for at, *_ in rows]
    assert [len(each) for each in rows] == [3, 2, 4]
    for made, expected in ((after, first), (whole, rows)):
        changed = (made.embeds != before.embeds).any(-1)
        assert [each.nonzero().flatten().tolist() for each in changed] == expected
    (without, names), (plain, _) = states(star=False), states(star=False, dem=False)
    changed = (without.embeds != plain.embeds).any(-1)
    assert [each.nonzero().flatten().tolist() for each in changed] == [[each[0]] for each in names]


@pytest.mark.parametrize("mode", ["joint", "independent"])
def test_a_dropped_reference_is_black_and_redux_still_sees_it(base, mode):
    """Oracle 13."""
    training = FlowTraining(base, trained(base), TrainingConfig(mode))
    dropped, other = torch.tensor([True, True, True]), noise(3, 16, 8, 8, seed=8)
    black = velocity(training, batch(), dropped=dropped)
    assert torch.equal(black, velocity(training, batch(references=other), dropped=dropped))
    assert torch.equal(black, velocity(training, batch(references=training.black(8).expand(3, -1, -1, -1))))
    assert not close(black, velocity(training, batch()), 1e-2)
    assert not close(black, velocity(training, batch(redux=noise(3, 9, 32, seed=9)), dropped=dropped), 1e-3)
    mixed = velocity(training, batch(), dropped=torch.tensor([False, True, False]))
    assert torch.equal(mixed[1], black[1]) and torch.equal(mixed[0], velocity(training, batch())[0])
    latents, redux = batch().references.requires_grad_(True), batch().redux.requires_grad_(True)
    with training.attached():
        given = batch(references=latents, redux=redux)
        training.velocity(given, noise(3, 16, 16, 16), torch.full((3,), 0.5), dropped).sum().backward()
    assert redux.grad.any() and not latents.grad.any()


@pytest.mark.parametrize("mode, backend", [("joint", "split"), ("joint", "dense"), ("independent", "split")])
def test_gradients_reach_what_is_trained_and_nothing_else(base, mode, backend):
    """Oracle 18; running T5 twice gives the same."""
    found = []
    before = {name: each.requires_grad for m in base.modules.values() for name, each in m.named_parameters()}
    for again in (False, True):
        parts = trained(base)
        training = FlowTraining(base, parts, TrainingConfig(mode, backend=backend, checkpoint=again))
        with training.attached():
            training.loss(batch(), torch.Generator().manual_seed(1))["loss"].backward()
        assert all(each.grad is None for module in base.modules.values() for each in module.parameters())
        # a bias of keys shifts all scores alike, so its gradient is rounding
        for name, each in parts.named_parameters():
            assert each.grad is not None and (each.grad.any() or name.endswith("to_k.bias")), name
        found.append([each.grad for each in parts.parameters()])
    assert all(close(one, two, 1e-7) for one, two in zip(*found, strict=True))
    assert before == {name: each.requires_grad for m in base.modules.values() for name, each in m.named_parameters()}
    assert not base.transformer.__dict__.get("_references")


@pytest.mark.parametrize("config", [TrainingConfig("joint"), TrainingConfig.ominicontrol(mode="independent")])
def test_a_few_steps_bring_the_loss_down(base, config):
    parts = Trainables.fresh(base, rank=4, dem={"inner": 16, "heads": 2, "hidden": 32}, star=config.star)
    training = FlowTraining(base, parts, config)
    optimizer = torch.optim.AdamW(parts.parameter_groups({"lora": 1e-2, "dem": 1e-2, "star": 1e-2}))
    losses = []
    with training.attached():
        for _ in range(25):
            optimizer.zero_grad()
            loss = training.loss(batch(), torch.Generator().manual_seed(0))["loss"]
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_weights_come_back_as_they_were_saved(base, tmp_path):
    parts, config = trained(base), TrainingConfig("independent", shift="0,-6")
    save_weights(tmp_path / "made", base, parts, config, size=32)
    said = read_json(tmp_path / "made" / "config.json")
    assert (said["method"], said["base"], said["shift"], said["mode"]) == (
        "aligngen", base.signature, "0,-6", "independent",
    )  # fmt: skip
    assert said["switches"] == {"star": True, "dem": True, "selective": True} and said["rank"] == said["alpha"] == 4
    again = Trainables.of(load_tensors(tmp_path / "made" / "model.safetensors"), said)
    assert set(again.names) == set(parts.names)
    one, two = (velocity(FlowTraining(base, each, config), batch()) for each in (parts, again))
    assert torch.equal(one, two)


def test_what_is_missing_is_said_in_one_line(base):
    parts = trained(base)
    training = FlowTraining(base, parts)
    with pytest.raises(PromptError, match="'cat' is not in 'a red robot"):
        training.text(batch(names=("cat", "dog", "cat")))
    with pytest.raises(ConfigurationError, match="the name of what each sentence is about"):
        training.text(batch(names=()))
    with pytest.raises(ConfigurationError, match="needs Redux tokens"):
        training.text(batch(redux=None))
    with pytest.raises(ConfigurationError, match="latents of its references, or their pictures"):
        training.place(batch(references=None))
    with pytest.raises(ConfigurationError, match="ready-made states"):
        training.text(batch(text=encode(base, SENTENCES)))
    with pytest.raises(ConfigurationError, match="drop 2.*expected probabilities"):
        TrainingConfig(drop=2)
    with pytest.raises(ConfigurationError, match="star and dem to be trained"):
        FlowTraining(base, Trainables.fresh(base, rank=4, dem=None, star=False))
