"""Training on pairs. Oracles: the run uninterrupted; the base before; what was drawn, counted; the method itself with
the folder that was written; the pairs themselves, encoded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from things import coco, draw_thing, draw_things, vis

import tiny
from thisness.errors import ArtefactError, ConfigurationError, UserError
from thisness.files import load_tensors, read_json
from thisness.files.locks import locked
from thisness.methods import Stopped
from thisness.methods.coco_pairs import CocoPairs, YouTubeVISPairs
from thisness.methods.ezigen_on_pairs import EZIGenOnPairs, EZIGenPairSettings
from thisness.methods.pair_training import PairTask, Rows, train_adapter, training_named
from thisness.methods.pairs import FolderPairs
from thisness.methods.zero_shot import read_subject
from thisness.subject import Subject

FEW = {"steps": 3, "batch_size": 2, "warmup": 0, "preview_every": 0, "tracker": "off"}


@pytest.fixture(scope="module")
def base():
    return tiny.base()


@pytest.fixture
def data(tmp_path):
    """Two things in folders, a picture of COCO, a video."""
    return [
        FolderPairs(draw_things(tmp_path / "things")),
        CocoPairs(*coco(tmp_path / "coco"), least=500),
        YouTubeVISPairs(*vis(tmp_path / "vis"), least=100, apart=0.25),
    ]


def weights(folder):
    return load_tensors(Path(folder) / "model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_stopped_and_resumed_equals_uninterrupted_and_the_base_stays(base, data, tmp_path):
    before = {f"{n}/{k}": v.clone() for n, m in base.modules.items() for k, v in m.state_dict().items()}
    asked = {p: p.requires_grad for m in base.modules.values() for p in m.parameters()}
    lines: list[str] = []
    train_adapter("ezigen", data, base, folder=tmp_path / "whole", progress=False, say=lines.append, **FEW)
    assert any("kept" in line for line in lines)
    # the other one encodes in every step
    for _ in range(2):
        with pytest.raises(Stopped, match="the same command goes on"):
            train_adapter(
                "ezigen", data, base, folder=tmp_path / "parts", progress=False, stop_after=0.0, cache_gb=0, **FEW
            )
    train_adapter("ezigen", data, base, folder=tmp_path / "parts", progress=False, cache_gb=0, **FEW)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert (tmp_path / "parts" / "log.jsonl").is_file() and not (tmp_path / "parts.training").exists()
    after = {f"{n}/{k}": v for n, m in base.modules.items() for k, v in m.state_dict().items()}
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.requires_grad == was and p.grad is None for p, was in asked.items())
    train_adapter("ezigen", data, base, folder=tmp_path / "seed", progress=False, **FEW | {"seed": 5})
    assert not same(weights(tmp_path / "whole"), weights(tmp_path / "seed"))


def test_what_is_done_is_not_done_again_and_other_settings_are_refused(base, data, tmp_path):
    folder, told = tmp_path / "mine", []
    train_adapter("ezigen", data[:1], base, folder=folder, progress=False, **FEW)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    train_adapter("ezigen", data[:1], base, folder=folder, progress=False, **FEW | {"preview_every": 7})
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert str(tmp_path) not in (folder / "training.json").read_text()
    train_adapter("ezigen", data[:1], base, folder=folder, progress=False, resume=False, say=told.append, **FEW)
    assert (folder / "model.safetensors").stat().st_mtime_ns != written and any("replaced" in line for line in told)
    with pytest.raises(Stopped):
        train_adapter("ezigen", data[:1], base, folder=tmp_path / "cut", progress=False, stop_after=0.0, **FEW)
    with pytest.raises(ConfigurationError, match=r"another configuration \(.*lr: 0\.0001 -> 0\.1"):
        train_adapter("ezigen", data[:1], base, folder=tmp_path / "cut", progress=False, **FEW | {"lr": 0.1})
    with pytest.raises(ConfigurationError, match=r"another configuration .*settings\.data"):
        train_adapter("ezigen", data[1:2], base, folder=tmp_path / "cut", progress=False, **FEW)
    with locked(tmp_path / "cut.training" / ".learn.lock", ""), pytest.raises(UserError, match="at work in"):
        train_adapter("ezigen", data[:1], base, folder=tmp_path / "cut", progress=False, **FEW)


def test_the_folder_is_read_by_the_method_and_acts(base, data, tmp_path):
    """The loss goes down, the gates open, and pictures are other ones than the base's."""
    from thisness.sampling import SamplingOptions, sample

    folder = tmp_path / "mine"
    train_adapter(
        "ezigen", data[:1], base, folder=folder, progress=False, variants=1,
        **FEW | {"steps": 40, "lr": 3e-3, "gate_lr": 0.05, "batch_size": 4, "drop_subject": 0.0, "drop_both": 0.0},
    )  # fmt: skip
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < log[0]["loss"] and log[-1]["gate"] > 0.1
    config = read_json(folder / "config.json")
    assert (config["method"], config["base"]) == ("ezigen", base.signature)
    subject = Subject.from_folder(tmp_path / "things" / "rex" / "0.png", "dog", "rex")
    given = {"weights": str(folder), "share": 1.0, "min_loops": 0, "max_loops": 0}
    concept = read_subject("ezigen", subject, base, preset="default", settings=given)
    from thisness.conditioning import encode

    text, options = encode(base, "a dog on the beach"), SamplingOptions(steps=3)
    plain = sample(base, text, None, [0], options)
    with concept.attach(base) as attached:
        drawn = sample(base, text, None, [0], options, interventions=attached.interventions)
    assert not torch.allclose(plain, drawn, atol=1e-2)
    other = tiny.base("v_prediction")
    with pytest.raises(ArtefactError, match="trained on tiny"):
        read_subject("ezigen", subject, other, preset="default", settings=given)


def task_of(base, data, root, **settings):
    full = EZIGenPairSettings(**FEW | settings)
    for source in data:
        source.size = 16
    training = EZIGenOnPairs("ezigen", base, full)
    rows = Rows(base, training, data, full, root)
    rows.decide()
    return PairTask("ezigen", base, training, rows, full)


def test_sources_are_drawn_from_alike_and_rows_are_the_encoded_pairs(base, data, tmp_path):
    task = task_of(base, data, tmp_path / "cache")
    seen = {}
    task.rows.usable = lambda source, indices, at, variant: seen.setdefault(source, []).append((indices[at], variant))
    rng = torch.Generator().manual_seed(0)
    for _ in range(300):
        task.drawn(rng)
    del task.rows.usable
    assert all(70 < len(seen[source]) < 130 for source in range(3))
    assert {*seen[0]} == {(index, variant) for index in range(2) for variant in range(8)}
    assert {*seen[1]} == {(0, 0)} and {*seen[2]} == {(0, variant) for variant in range(8)}
    row = task.rows.row(0, 1, 3)
    pair = data[0].draw(1, 3)
    from thisness.methods.ezigen_loops import to_tensor

    with torch.no_grad():
        wanted = base.encode_images(to_tensor(pair.picture)[None])[0]
    assert torch.equal(row.tensors["target"], wanted.half().float()) and row.caption == pair.caption
    again = Rows(base, task.training, data, task.options, tmp_path / "cache")
    again.decide()
    (tmp_path / "things" / "rex" / "0.png").rename(tmp_path / "moved.png")  # what is kept needs no picture
    kept = again.row(0, 1, 3)
    assert kept.caption == row.caption and kept.nouns == row.nouns
    assert all(torch.equal(kept.tensors[name], row.tensors[name]) for name in row.tensors)


def test_where_the_cache_would_be_too_big_pictures_are_encoded_in_each_step(base, data, tmp_path):
    training = EZIGenOnPairs("ezigen", base, EZIGenPairSettings(**FEW))
    for source in data:
        source.size = 16
    for changes, said in (({"cache_gb": 0}, "encoded in each step: all"), ({"variants": 0}, "variants=0")):
        rows = Rows(base, training, data, EZIGenPairSettings(**FEW | changes), tmp_path / "cache")
        assert said in rows.decide() and not rows.kept
        rows.row(0, 0, 0)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_share_is_held_out_and_the_gap_is_measured_on_it(base, tmp_path):
    for n in range(6):
        draw_thing(tmp_path / "things" / f"thing-{n}", (30 * n, 200 - 30 * n, 90), noun="dog")
    data = [FolderPairs(tmp_path / "things")]
    task = task_of(base, data, tmp_path / "cache", held_out=0.5)
    (learned,), (held,) = task.learned, task.held_out
    assert len(learned) == len(held) == 3 and not {*learned} & {*held}
    assert len(task_of(base, data, tmp_path / "cache", held_out=0.01).held_out[0]) == 2
    assert task_of(base, data, tmp_path / "cache", held_out=0).looked_at() == []
    folder = tmp_path / "mine"
    train_adapter("ezigen", data, base, folder=folder, progress=False, **FEW | {"preview_every": 2, "held_out": 0.5})
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    previews = [line for line in lines if line.get("preview")]
    assert [line["step"] for line in previews] == [2, 3]
    assert all(abs(p["gap"] - (p["swapped"] - p["right"])) < 1e-6 and p["absent"] > 0 for p in previews)
    assert sorted(each.name for each in (folder / "previews").iterdir()) == ["step-000002.png", "step-000003.png"]


def test_pairs_that_cannot_be_used_are_passed_over_and_told(base, tmp_path):
    for n in range(3):
        draw_thing(tmp_path / "things" / f"thing-{n}", (30 * n, 90, 90), noun="dog", count=2)
    data, lines = [FolderPairs(tmp_path / "things")], []
    (tmp_path / "things" / "thing-1" / "0.png").write_bytes(b"no picture")
    (tmp_path / "things" / "thing-2" / "0.txt").write_text("a dog " * 40)
    (tmp_path / "things" / "thing-2" / "1.txt").write_text("a dog " * 40)
    asked = FEW | {"steps": 4}
    train_adapter("ezigen", data, base, folder=tmp_path / "mine", progress=False, say=lines.append, **asked)
    assert any("pairs could not be used" in line for line in lines)
    (tmp_path / "things" / "thing-0" / "0.png").write_bytes(b"no picture")
    with pytest.raises(ArtefactError, match=r"none of 3 pairs can be used: .*0\.png"):
        train_adapter("ezigen", data, base, folder=tmp_path / "other", progress=False, **asked)


def test_what_cannot_be_trained_is_said(base, data, tmp_path):
    import tiny_flux

    with pytest.raises(ConfigurationError, match=r"'ezigan' is not trained on pairs.*did you mean 'ezigen'"):
        training_named("ezigan")
    with pytest.raises(ConfigurationError, match="ezigen acts on cross-attention.*use a base with a UNet"):
        train_adapter("ezigen", data, tiny_flux.base(), folder=tmp_path / "x", progress=False)
    with pytest.raises(ConfigurationError, match=r"drop_both 0\.5"):
        train_adapter("ezigen", data, base, folder=tmp_path / "x", progress=False, drop_both=0.5)
    with pytest.raises(ConfigurationError, match=r"no setting 'stepz' \(did you mean 'steps'"):
        train_adapter("ezigen", data, base, folder=tmp_path / "x", progress=False, stepz=5)
    with pytest.raises(ConfigurationError, match="no data"):
        train_adapter("ezigen", [], base, folder=tmp_path / "x", progress=False, **FEW)
    with pytest.raises(ConfigurationError, match="multiple of"):
        train_adapter("ezigen", data, base, folder=tmp_path / "x", progress=False, **FEW | {"size": 15})
    assert not (tmp_path / "x").exists() and not (tmp_path / "x.training").exists()


@pytest.mark.parametrize("method", ["ezigen", "ip-adapter", "ominicontrol", "aligngen"])
def test_a_base_in_bfloat16_is_trained_for(tmp_path, method):
    """What is trained is float32, and moves; other types and mixtures are refused in one line."""
    import tiny_flux

    made = tiny.base() if method in ("ezigen", "ip-adapter") else tiny_flux.base(length=40)
    half = made.to(dtype=torch.bfloat16)
    more = {"image_encoder": tiny.clip_folder()} if method == "ip-adapter" else {}
    if method == "aligngen":
        more = {"redux": str(tiny_flux.redux_folder(tmp_path / "redux"))}
    for n in range(4):
        draw_thing(tmp_path / "things" / f"thing-{n}", (50 * n, 90, 90), noun="dog")
    data, given = [FolderPairs(tmp_path / "things")], FEW | more | {"lr": 0.01}
    train_adapter(method, data, half, folder=tmp_path / "mine", progress=False, **given | {"preview_every": 3})
    training = training_named(method)(method, half, training_named(method).Settings(**given))
    assert all(p.dtype == torch.float32 for m in training.modules().values() for p in m.parameters())
    assert half.dtype == torch.bfloat16 and list((tmp_path / "mine" / "previews").glob("*.png"))
    with pytest.raises(ConfigurationError, match=r"is in bfloat16, with precision=fp32: give --dtype float32"):
        train_adapter(method, data, half, folder=tmp_path / "x", progress=False, **given | {"precision": "fp32"})
    with pytest.raises(ConfigurationError, match=r"is in float16"):
        train_adapter(method, data, half.to(dtype=torch.float16), folder=tmp_path / "x", progress=False, **given)
