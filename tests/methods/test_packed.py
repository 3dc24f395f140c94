"""Many subjects in one batch. Oracles: each learned alone with the same seed; hand-written rows; an undisturbed run."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from thisness.adapters import inserted_lora
from thisness.concept import Concept
from thisness.errors import ConfigurationError
from thisness.methods import Stopped, learn, method_named
from thisness.methods.packed import Layout, _packed, learn_packed, rows_apart
from thisness.methods.registry import settings_for
from thisness.methods.tuning import TuningTask
from thisness.subject import Subject
from thisness.training.checkpoint import steps_on_disk

SHARED = {"steps": 3, "lr": 0.002, "precision": "fp32", "captions": "plain", "preset": "default", "batch_size": 2}
PRIOR = {"prior_pictures": 2, "prior_steps": 2}
CASES = [
    ("textual-inversion", {"vectors": 2, "flip": True, "captions": "object", "clip": 0.01}),
    ("textual-inversion", {"keep_noun": True, "background": 0.0, "snr_gamma": 5.0, "accumulate": 2}),
    ("dreambooth-lora", {"identifier": "sks", **PRIOR}),
    ("dreambooth-lora", {"identifier": "new", "identifier_lr": 0.002, "alpha": 2.0, "clip": 0.01, **PRIOR}),
    ("dreambooth-lora", {"identifier": "new", "targets": "all", "prior_pictures": 0, "checkpointing": True}),
    ("dreambooth-lora", {"identifier": "new", "identifier_lr": 0.002, "text_encoder": True, **PRIOR}),
]
IDS = ["words", "words-weighted", "lora-prior", "lora-word", "lora-convolutions", "lora-text-encoder"]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THISNESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def base():
    return tiny.base()


def toy(name: str, noun: str, seed: int, pictures: int = 2) -> Subject:
    draws = np.random.default_rng(seed)
    mask = np.zeros((16, 16), np.float32)
    mask[4:12, 2 : 6 + 2 * seed] = 1
    images = tuple(Image.fromarray(draws.integers(0, 255, (16, 16, 3), np.uint8)) for _ in range(pictures))
    return Subject(name, noun, images, (mask,) * pictures)


@pytest.fixture(scope="module")
def subjects() -> list[Subject]:
    """The first two are of one class."""
    return [toy("rex", "dog", 0), toy("rufus", "dog", 1, pictures=3), toy("mimi", "cat", 2)]


def flat(concept: Concept) -> dict[str, torch.Tensor]:
    return {f"{file}/{key}": tensor for file, group in concept.tensors.items() for key, tensor in group.items()}


def opened(stack: ExitStack, base, subjects, method: str, **given):
    """A pack's task after its start, with streams of one seed."""
    chosen = method_named(method)
    kept = {key: value for key, value in (SHARED | given).items() if key != "preset"}
    settings = settings_for(chosen, base, kept, "default")
    task, concepts = stack.enter_context(_packed(chosen, base, settings, False, subjects))
    task.on_start(torch.device("cpu"))
    for number, name in enumerate(task.tasks):
        task.streams[name] = torch.Generator().manual_seed(number)
    return task, concepts


def randomize(task) -> None:
    """The same numbers in the parameters of each subject's modules, whoever is beside it."""
    for key, module in task.modules().items():
        generator = torch.Generator().manual_seed(len(key))
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)


@pytest.mark.parametrize(("method", "more"), [CASES[0], CASES[1], CASES[3]], ids=[IDS[0], IDS[1], IDS[3]])
def test_each_subject_is_learned_as_it_is_alone(base, subjects, method, more):
    """To 1e-5 at the method's own learning rate, and to a thousandth of the way that was gone."""
    given = SHARED | more | {"lr": 1e-4 if method == "dreambooth-lora" else 5e-3}
    if "identifier_lr" in more:
        given["identifier_lr"] = 1e-4
    packed = learn_packed(method, subjects, base, progress=False, **given)
    for subject, concept in list(zip(subjects, packed, strict=True))[1:]:
        alone = learn(method, subject, base, progress=False, **given)
        start = learn(method, subject, base, progress=False, **given | {"lr": 1e-9, "steps": 1})
        assert concept.manifest == alone.manifest
        found, wanted, before = (torch.cat([t.flatten() for t in flat(c).values()]) for c in (concept, alone, start))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
        assert (wanted - before).abs().max() > given["lr"]
        assert (found - wanted).norm() < 1e-3 * (wanted - before).norm()


@pytest.mark.parametrize(("method", "more"), [CASES[2], *CASES[4:]], ids=[IDS[2], *IDS[4:]])
def test_gradients_are_those_of_each_alone(base, subjects, method, more):
    """At weights that are not zero, with draws of their own."""
    subjects, together = subjects[1:], {}
    with ExitStack() as stack:
        task, _ = opened(stack, base, subjects, method, **more)
        randomize(task)
        task.loss_of(list(task.tasks), 0)["loss"].backward()
        together = {f"{key}/{n}": p.grad for key, m in task.modules().items() for n, p in m.named_parameters()}
    for number, subject in enumerate(subjects):
        with ExitStack() as stack:
            task, _ = opened(stack, base, [subject], method, **more)
            randomize(task)
            one = task.tasks[subject.name]
            one.loss(0, torch.Generator().manual_seed(number))["loss"].backward()
            for key, module in one.modules().items():
                for name, parameter in module.named_parameters():
                    assert parameter.grad is not None and parameter.grad.abs().sum() > 0
                    torch.testing.assert_close(
                        together[f"{subject.name}/{key}/{name}"], parameter.grad, rtol=1e-4, atol=1e-6
                    )


def test_the_base_is_as_before(base, subjects):
    def state():
        return (
            [(n, id(m), sorted(m.__dict__)) for part in base.modules.values() for n, m in part.named_modules()],
            [(n, id(p), p.requires_grad) for part in base.modules.values() for n, p in part.named_parameters()],
            len(base.tokenizer),
        )

    before = state()
    given = SHARED | {"steps": 1, "identifier": "new", "text_encoder": True, "prior_pictures": 0}
    learn_packed("dreambooth-lora", subjects, base, progress=False, **given)
    assert state() == before


@pytest.mark.parametrize(("method", "more"), [CASES[0], CASES[3], CASES[5]], ids=[IDS[0], IDS[3], IDS[5]])
def test_one_subjects_loss_gives_the_others_no_gradient(base, subjects, method, more):
    with ExitStack() as stack:
        task, _ = opened(stack, base, subjects, method, **more)
        randomize(task)
        draws = {name: one.draw(0, task.streams[name]) for name, one in task.tasks.items()}
        conditioning = task.conditioning(draws)
        counts = [len(draw.timesteps) for draw in draws.values()]
        task._lay_out("unet", list(zip(task.tasks, counts, strict=True)))
        answer = base.predict(
            torch.cat([d.noisy for d in draws.values()]), torch.cat([d.timesteps for d in draws.values()]), conditioning
        ).split(counts)
        task.tasks["rufus"].losses(draws["rufus"], answer[1])["loss"].backward()
        for key, module in task.modules().items():
            sizes = [0.0 if p.grad is None else float(p.grad.abs().sum()) for p in module.parameters()]
            trained = [p.requires_grad for p in module.parameters()]
            assert any(trained) and (min(sizes) > 0 if key.startswith("rufus/") else max(sizes) == 0), key


@pytest.mark.parametrize(("method", "more"), [CASES[0], CASES[3]], ids=[IDS[0], IDS[3]])
def test_a_subject_without_rows_does_not_move(base, subjects, method, more):
    """Not by weight decay or by the optimizer's memory, either."""
    with ExitStack() as stack:
        task, _ = opened(stack, base, subjects, method, **more)
        optimizer = torch.optim.AdamW(task.parameter_groups(), lr=0.1, weight_decay=0.1)
        for names in (["rex", "rufus", "mimi"], ["rex", "mimi"]):
            before = {key: [p.detach().clone() for p in m.parameters()] for key, m in task.modules().items()}
            streams = {name: stream.get_state() for name, stream in task.streams.items()}
            optimizer.zero_grad(set_to_none=True)
            task.loss_of(names, 0)["loss"].backward()
            optimizer.step()
            for key, module in task.modules().items():
                same = [torch.equal(*pair) for pair in zip(before[key], module.parameters(), strict=True)]
                assert all(same) if key.split("/")[0] not in names else not any(same), key
            for name in task.tasks:
                assert torch.equal(streams[name], task.streams[name].get_state()) == (name not in names)


@pytest.mark.parametrize("kind", ["linear", "uneven", "convolution"])
def test_low_rank_weights_by_row_written_out(kind):
    draw = torch.Generator().manual_seed(0)
    plain = torch.nn.Conv2d(3, 5, 3, padding=1) if kind == "convolution" else torch.nn.Linear(3, 5)
    inputs = torch.randn(4, 3, 6, 6, generator=draw) if kind == "convolution" else torch.randn(4, 7, 3, generator=draw)
    model = torch.nn.ModuleDict({"x": plain})
    rows = [("a", 1), ("b", 3)] if kind == "uneven" else [("a", 2), ("b", 2)]
    with inserted_lora(model, {"x": 2}, "a", 0.5, seed=1), inserted_lora(model, {"x": 2}, "b", 3.0, seed=2) as layers:
        layer = layers["x"]
        for name in "ab":
            torch.nn.init.normal_(layer.lora_B[name].weight, generator=draw)
        layout, expected, first = Layout(), [], 0
        for name, count in rows:
            part = inputs[first : first + count]
            scale = {"a": 0.5, "b": 3.0}[name]
            expected.append(plain(part) + scale * layer.lora_B[name](layer.lora_A[name](part)))
            first += count
        everything = model["x"](inputs)
        with rows_apart(layers, layout):
            assert torch.equal(model["x"](inputs), everything)  # no layout: both adapters act on all rows
            layout.rows = rows
            torch.testing.assert_close(model["x"](inputs), torch.cat(expected), rtol=1e-5, atol=1e-5)
            layout.rows = [("b", 0)]
            only = plain(inputs) + 3.0 * layer.lora_B["b"](layer.lora_A["b"](inputs))
            torch.testing.assert_close(model["x"](inputs), only, rtol=1e-5, atol=1e-5)
        assert torch.equal(model["x"](inputs), everything)


@pytest.mark.parametrize(("method", "more"), [CASES[0], CASES[3]], ids=[IDS[0], IDS[3]])
def test_stopped_and_resumed_equals_uninterrupted(base, subjects, tmp_path, method, more):
    subjects, stops = subjects[1:], 0
    whole = learn_packed(method, subjects, base, progress=False, **SHARED | more)
    while True:
        try:
            again = learn_packed(
                method, subjects, base, folder=tmp_path / "c", progress=False, stop_after=0.0, **SHARED | more
            )
            break
        except Stopped:
            stops += 1
            assert steps_on_disk(tmp_path / "c.training")[0] == stops
    assert stops == 2
    for one, other in zip(whole, again, strict=True):
        assert one.manifest == other.manifest
        assert all(torch.equal(tensor, flat(other)[key]) for key, tensor in flat(one).items())


def test_each_gets_a_folder_and_what_is_done_is_kept(base, subjects, tmp_path):
    given = SHARED | {"steps": 2}
    learn("textual-inversion", subjects[0], base, folder=tmp_path / "c" / "rex", progress=False, **given)
    stamp = (tmp_path / "c/rex/concept.json").stat().st_mtime_ns
    made = learn_packed("textual-inversion", subjects, base, folder=tmp_path / "c", progress=False, **given)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c"]  # nothing is left of the training
    assert (tmp_path / "c/rex/concept.json").stat().st_mtime_ns == stamp
    for subject, concept in zip(subjects, made, strict=True):
        loaded = Concept.load(tmp_path / "c" / subject.name, base=base)
        assert loaded.manifest == concept.manifest and loaded.name == subject.name
        with loaded.attach(base):
            pass
    assert '"loss"' in (tmp_path / "c" / "rufus" / "log.jsonl").read_text()
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "c").glob("*/concept.json")}
    learn_packed("textual-inversion", subjects, base, folder=tmp_path / "c", progress=False, **given)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "c").glob("*/concept.json")} == stamps


def test_previews_show_each_subject_with_its_own_weights(base, subjects, tmp_path, monkeypatch):
    """Oracle: the denoiser's answer with that subject's adapter alone."""
    seen = {}
    inputs = (torch.ones(1, 4, 8, 8), torch.tensor([10]), torch.ones(1, 6, 16))

    @torch.no_grad()
    def answer(model=base.denoiser):
        return model(*inputs).sample

    def preview(task, folder, step):
        (folder / "x.png").write_bytes(b"")
        seen[task.subject.name] = answer()

    monkeypatch.setattr(TuningTask, "preview", preview)
    given = SHARED | {"steps": 1, "preview_every": 1, "identifier": "sks", "prior_pictures": 0, "lr": 0.1}
    made = learn_packed("dreambooth-lora", subjects, base, folder=tmp_path / "c", progress=False, **given)
    for concept in made:
        assert (tmp_path / "c" / concept.name / "previews" / "x.png").is_file()
        with concept.attach(base):
            torch.testing.assert_close(seen[concept.name], answer(), rtol=1e-4, atol=1e-5)
    assert (seen["rex"] - seen["mimi"]).abs().max() > 1e-2


def test_packs_of_two_and_a_pack_cut_short(base, subjects, tmp_path):
    whole = learn_packed("textual-inversion", subjects, base, progress=False, pack=2, **SHARED)
    with pytest.raises(Stopped):
        learn_packed(
            "textual-inversion", subjects, base, folder=tmp_path / "c", progress=False, pack=2, stop_after=0.0, **SHARED
        )
    with pytest.raises(ConfigurationError, match="cut short of rex, rufus, and rufus is not given now"):
        learn_packed(
            "textual-inversion", [subjects[0], subjects[2]], base, folder=tmp_path / "c", progress=False, **SHARED
        )
    made = learn_packed("textual-inversion", subjects, base, folder=tmp_path / "c", progress=False, pack=2, **SHARED)
    assert [concept.name for concept in made] == ["rex", "rufus", "mimi"]
    for one, other in zip(whole, made, strict=True):
        assert all(torch.equal(tensor, flat(other)[key]) for key, tensor in flat(one).items())


def test_what_cannot_be_packed_is_one_line(base, subjects):
    with pytest.raises(ConfigurationError, match="detex cannot learn several subjects in one batch, textual-inversion"):
        learn_packed("detex", subjects, base)
    with pytest.raises(ConfigurationError, match="two subjects are called rex"):
        learn_packed("textual-inversion", [subjects[0], subjects[0]], base, preset="default")
    with pytest.raises(ConfigurationError, match="prodigy finds one learning rate for all.*one at a time"):
        learn_packed("textual-inversion", subjects, base, preset="default", optimizer="prodigy", progress=False)
