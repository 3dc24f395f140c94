"""Every embedded model in dependency order; each step is skipped when done, resumed when begun.

data ─► teacher ─► features ─┬─► clip, identity ─► the ruler
  │                          ├─► unet ─┐
  ├──► vae ─► latents ───────┘         ├─► playroom-sd (fp16, a plain diffusers folder)
  │       └──► vae-decoder ────────────┤
  │    text ───────────────────────────┘
  └──► judge
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...errors import UserError, nearest
from ...files import sha256, write_json
from ...training.loop import LoopConfig, Task, train
from ..models import Reader, load_vision_and_words, make_scheduler, save_clip
from . import finder, flux_campaign
from .cache import SHAPES as SHAPES
from .cache import encoded
from .common import WEIGHTS, Workplace

ORDER = (
    "data",
    "teacher",
    "vae",
    "text",
    "latents",
    "features",
    "judge",
    "clip",
    "identity",
    "unet",
    "vae-decoder",
    "assemble",
    "elite",  # what follows is for the base that was assembled; `assemble` again ships it
    "blip-diffusion",
    "ezigen",
    "ip-adapter",
    "ip-adapter-plus",
    "finder",
    *flux_campaign.FLUX_ORDER,
)


class Parts:
    """The finished pieces of the Stable Diffusion base, loaded when asked for."""

    def __init__(self, place: Workplace) -> None:
        self.place = place

    @property
    def vae(self):
        from diffusers import AutoencoderKL

        sharper = self.place.built("vae-decoder")
        return AutoencoderKL.from_pretrained(
            sharper if (sharper / "config.json").exists() else self.place.built("vae")
        ).eval()

    @property
    def text_encoder(self):
        from transformers import CLIPTextModel

        return CLIPTextModel.from_pretrained(self.place.built("text")).eval()

    @property
    def tokenizer(self):
        from transformers import CLIPTokenizer

        return CLIPTokenizer.from_pretrained(self.place.built("text"))


def run_task(task: Task, config: LoopConfig, place: Workplace, steps: int | None, stop_after: float | None) -> bool:
    """Train one of the models here; whether it is finished."""
    config = replace(config, steps=steps) if steps else config
    result = train(task, config, place.root / task.name, device=place.device, stop_after=stop_after)
    return result.finished


def train_reader(kind: str, place: Workplace, steps: int | None = None, stop_after: float | None = None) -> bool:
    from .reader import JUDGE, JUDGE_AGAIN, JUDGE_MORE, TEACHER, ReaderTask

    task = ReaderTask(kind, place.train_data(), place.held_out_data(), strength=1.0 if kind == "teacher" else 0.7)
    start = place.built("judge-start")
    if kind == "judge" and (start / "config.json").exists():
        task.reader = Reader.load(start).train()
        task.name, task.strength = "judge-again", 0.4  # a run of its own: its schedule begins anew
        done = run_task(task, JUDGE_AGAIN, place, steps, stop_after)
    else:
        done = run_task(task, TEACHER if kind == "teacher" else JUDGE, place, steps, stop_after)
        if done and kind == "judge":
            task.name, task.strength = "judge-more", 0.4
            done = run_task(task, JUDGE_MORE, place, steps, stop_after)
    if done:
        task.reader.cpu().eval().save(place.built(kind))
    return done


def train_vae(place: Workplace, steps: int | None = None, stop_after: float | None = None) -> bool:
    from .vae import JOINT, VaeTask, encode

    task = VaeTask(place.train_data(), place.held_out_data(), steps or JOINT.steps)
    done = run_task(task, JOINT, place, steps, stop_after)
    if done:
        vae = task.vae.cpu().eval()
        mean, _ = encode(vae, place.train_data().pictures(range(512)))
        vae.register_to_config(scaling_factor=float(1 / mean.std()), latents_mean=None, latents_std=None)
        vae.save_pretrained(place.built("vae"))
    return done


def train_decoder(place: Workplace, steps: int | None = None, stop_after: float | None = None) -> bool:
    from diffusers import AutoencoderKL

    from .vae import DECODER, DecoderTask

    latents = encoded("latents", place, place.built("vae"))
    vae = AutoencoderKL.from_pretrained(place.built("vae"))
    task = DecoderTask(vae, place.train_data(), place.held_out_data(), latents, steps or DECODER.steps)
    done = run_task(task, DECODER, place, steps, stop_after)
    if done:
        averaged: Any = task.ema["vae"]
        averaged.cpu().eval().save_pretrained(place.built("vae-decoder"))
    return done


def train_text(place: Workplace, steps: int | None = None, stop_after: float | None = None) -> bool:
    from .text import TEXT, TextTask

    task = TextTask(scenes=place.pictures)
    done = run_task(task, TEXT, place, steps, stop_after)
    if done:
        task.encoder.cpu().eval().save_pretrained(place.built("text"))
        task.tokenizer.save_pretrained(place.built("text"))
    return done


def adopt(place: Workplace, source: Path = WEIGHTS) -> None:
    """Take the shipped models as built here, so that they can be trained further: `train unet`, `judge`, `clip` and
    `identity` then start from them."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = source / "playroom-sd"
    AutoencoderKL.from_pretrained(folder / "vae").save_pretrained(place.built("vae"))
    CLIPTextModel.from_pretrained(folder / "text_encoder").save_pretrained(place.built("text"))
    CLIPTokenizer.from_pretrained(folder / "tokenizer").save_pretrained(place.built("text"))
    UNet2DConditionModel.from_pretrained(folder / "unet").save_pretrained(place.built("unet-start"))
    Reader.load(source / "judge").save(place.built("judge-start"))
    for name in ("clip", "identity"):
        if (source / name / "config.json").exists():
            shutil.copytree(source / name, place.built(f"{name}-start"), dirs_exist_ok=True)


def train_unet(place: Workplace, steps: int | None = None, stop_after: float | None = None) -> bool:
    from diffusers import UNet2DConditionModel

    from .unet import UNET, UNetTask

    latents, features = (
        encoded("latents", place, place.built("vae")),
        encoded("features", place, place.built("teacher")),
    )
    task = UNetTask(Parts(place), place.train_data(), latents, features)
    start = place.built("unet-start")
    if (start / "config.json").exists():
        task.unet.load_state_dict(UNet2DConditionModel.from_pretrained(start).state_dict())
        task.name = "unet-more"  # a run of its own: its schedule begins anew
    done = run_task(task, UNET, place, steps, stop_after)
    if done:
        averaged: Any = task.ema["unet"]
        averaged.cpu().eval().save_pretrained(place.built("unet"))
    return done


def train_clip(place: Workplace, steps: int | None = None, stop_after: float | None = None) -> bool:
    from .clip import CLIP, ClipTask

    features = encoded("features", place, place.built("teacher"))
    teacher = Reader.load(place.built("teacher"))
    task = ClipTask(Parts(place), place.train_data(), place.held_out_data(), features, teacher)
    start = place.built("clip-start")
    if (start / "config.json").exists():
        load_vision_and_words(start, task.vision, task.words)
        task.name = "clip-more"  # a run of its own: its schedule begins anew
    done = run_task(task, CLIP, place, steps, stop_after)
    if done:
        save_clip(place.built("clip"), task.vision.cpu().eval(), task.words.cpu())
    return done


def train_identity(place: Workplace, steps: int | None = None, stop_after: float | None = None) -> bool:
    from transformers import ViTModel

    from .identity import IDENTITY, IdentityTask
    from .ruler import write_preprocessor

    features = encoded("features", place, place.built("teacher"))
    teacher = Reader.load(place.built("teacher"))
    task = IdentityTask(place.train_data(), place.held_out_data(), features, teacher)
    start = place.built("identity-start")
    if (start / "config.json").exists():
        task.encoder.load_state_dict(ViTModel.from_pretrained(start, add_pooling_layer=False).state_dict())
        task.name = "identity-more"  # a run of its own: its schedule begins anew
    done = run_task(task, IDENTITY, place, steps, stop_after)
    if done:
        task.encoder.cpu().eval().save_pretrained(place.built("identity"))
        write_preprocessor(place.built("identity"), "ViTImageProcessor")
    return done


def train_ezigen(place: Workplace, steps: int | None = None, stop_after: float | None = None) -> bool:
    from ...bases import load_base
    from .ezigen import EZIGEN, PICTURES, EZIGenTask

    vae = place.built("vae")
    latents, subjects = encoded("latents", place, vae), encoded("subjects", place, vae, PICTURES)
    task = EZIGenTask(load_base("playroom-sd"), place.train_data(), place.held_out_data(), latents, subjects)
    done = run_task(task, EZIGEN, place, steps, stop_after)
    if done:
        task.save(place.built("ezigen"))
    return done


def train_ip_adapter(name: str, place: Workplace, steps: int | None = None, stop_after: float | None = None) -> bool:
    from ...bases import load_base
    from .ip_adapter import IP_ADAPTER, IPAdapterTask

    latents = encoded("latents", place, place.built("vae"))
    task = IPAdapterTask(name, load_base("playroom-sd"), place.train_data(), place.held_out_data(), latents)
    done = run_task(task, IP_ADAPTER, place, steps, stop_after)
    if done:
        task.save(place.built(name))
    return done


def train_elite(place: Workplace, steps: int | None = None, stop_after: float | None = None) -> bool:
    """Both stages; the second begins when the first is done."""
    from ...bases import load_base
    from .elite import GLOBAL, LOCAL, EliteGlobalTask, EliteLocalTask

    data = place.train_data(), place.held_out_data(), encoded("latents", place, place.built("vae"))
    first = EliteGlobalTask(load_base("playroom-sd"), *data)
    if not run_task(first, GLOBAL, place, steps, stop_after):
        return False
    second = EliteLocalTask(load_base("playroom-sd"), *data, mapper=first.mapper.cpu())
    done = run_task(second, LOCAL, place, steps, stop_after)
    if done:
        second.finish(place.built("elite"))
    return done


def train_blip_diffusion(place: Workplace, steps: int | None = None, stop_after: float | None = None) -> bool:
    from ...bases import load_base
    from .blip_diffusion import BLIP, BlipDiffusionTask

    latents = encoded("latents", place, place.built("vae"))
    task = BlipDiffusionTask(load_base("playroom-sd"), place.train_data(), place.held_out_data(), latents)
    done = run_task(task, BLIP, place, steps, stop_after)
    if done:
        task.finish(place.built("blip-diffusion"))
    return done


def snapshot(place: Workplace) -> Path | None:
    """The averaged UNet of the newest checkpoint of a training that still runs, as a diffusers folder; None without."""
    from ...training.checkpoint import load_newest
    from ..models import make_unet

    checkpoint, _ = load_newest(place.root / "unet")
    if checkpoint is None:
        return None
    unet, prefix = make_unet(), "unet/"
    unet.load_state_dict(
        {k.removeprefix(prefix): v for k, v in checkpoint.tensors["average"].items() if k.startswith(prefix)}
    )
    folder = place.built("unet-snapshot")
    unet.save_pretrained(folder)
    return folder


SHIPPED = (
    "playroom-sd", "judge", "clip", "identity", "elite", "blip-diffusion", "ezigen", "ip-adapter", "ip-adapter-plus",
    "finder", *flux_campaign.SHIPPED,
)  # fmt: skip
"""Folders of the package's weights."""


def assemble(place: Workplace, target: Path = WEIGHTS, only: Collection[str] = ()) -> dict[str, str]:
    """Write what is trained as fp16 safetensors that plain diffusers and transformers read in fp32.

    `playroom-sd` is written with the finished UNet, or with the averages of the newest checkpoint.

    Args:
        place: where it was trained.
        target: with a folder for each.
        only: of `SHIPPED`; all that is trained where empty.

    Returns:
        By folder "new", "changed" or "as before": what is written there is what lies in `place`, whether better or not.

    Raises:
        UserError: an unknown name, one that is asked for and not trained, or nothing is trained yet.
    """
    for name in only:
        if name not in SHIPPED:
            raise UserError(f"no weights are called {name!r}{nearest(name, SHIPPED)}: use {', '.join(SHIPPED)}")

    asked = [name for name in SHIPPED if not only or name in only]
    before = {name: fingerprint(target / name) for name in asked}
    written = [name for name in asked if _write(name, place, target)]
    missing = [name for name in only if name not in written]
    if missing or not written:
        said = f"{' and '.join(missing)} not" if missing else "nothing"
        raise UserError(f"{said} trained in {place.root} yet: thisness playroom train all")
    now = {name: fingerprint(target / name) for name in written}
    return {
        name: "new" if not before[name] else "as before" if now[name] == before[name] else "changed" for name in written
    }


def _write(name: str, place: Workplace, target: Path) -> bool:
    """Whether there was something to write."""
    trained = (place.built(name) / "config.json").exists()
    if name == "playroom-sd":
        unet = place.built("unet") if (place.built("unet") / "config.json").exists() else snapshot(place)
        if unet:
            _assemble_stable_diffusion(Parts(place), unet, target / name)
        return unet is not None
    if name == flux_campaign.FOLDER:
        return flux_campaign.assemble(place, target / name)
    if trained and name == "judge":
        Reader.load(place.built(name)).save(target / name)
    elif trained:
        flux_campaign.ship(place.built(name), target / name)
    return trained


def fingerprint(folder: Path) -> dict[str, str]:
    """SHA-256 of a folder's files by their names; empty where there is none."""
    return {path.relative_to(folder).as_posix(): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _assemble_stable_diffusion(parts: Parts, unet: Path, folder: Path) -> None:
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    pipe = StableDiffusionPipeline(
        vae=parts.vae.half(),
        text_encoder=parts.text_encoder.half(),
        tokenizer=parts.tokenizer,
        unet=UNet2DConditionModel.from_pretrained(unet).half(),
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    config = json.loads((folder / "text_encoder" / "config.json").read_text())
    config["dtype"] = (
        "float32"  # transformers would else load the text encoder in half precision, diffusers the rest in full
    )
    write_json(folder / "text_encoder" / "config.json", config)


STEPS: dict[str, Callable[..., bool]] = {
    "teacher": lambda place, **kw: train_reader("teacher", place, **kw),
    "judge": lambda place, **kw: train_reader("judge", place, **kw),
    "vae": train_vae,
    "vae-decoder": train_decoder,
    "text": train_text,
    "clip": train_clip,
    "identity": train_identity,
    "unet": train_unet,
    "elite": train_elite,
    "blip-diffusion": train_blip_diffusion,
    "ezigen": train_ezigen,
    "ip-adapter": lambda place, **kw: train_ip_adapter("ip-adapter", place, **kw),
    "ip-adapter-plus": lambda place, **kw: train_ip_adapter("ip-adapter-plus", place, **kw),
    "finder": finder.train_finder,
    **flux_campaign.STEPS,
}


def run(
    what: str, place: Workplace, *, steps: int | None = None, stop_after: float | None = None, target: Path = WEIGHTS,
    only: Collection[str] = (), say: Callable[[str], object] = lambda line: None,
) -> bool:  # fmt: skip
    """Train one model or `all`.

    Args:
        what: one of `ORDER`, or `all`; `reader` is `teacher` and `judge`; `adopt` makes `unet` go on from the
            shipped one.
        place: folders, number of pictures, processes, device.
        steps: instead of the recipe's own number.
        stop_after: seconds after which training stops with a checkpoint (False is returned; the same call goes on
            later).
        target: where `assemble` writes what is trained.
        only: what of it `assemble` writes; see there.
        say: is told what `assemble` did.

    Returns:
        Whether everything asked for is finished.

    Raises:
        UserError: an unknown name, something that must be trained before, or nothing to assemble.
    """
    torch.manual_seed(0)
    names = ORDER if what == "all" else ("teacher", "judge") if what == "reader" else (what,)
    for name in names:
        if name not in (*ORDER, "adopt"):
            raise UserError(
                f"no recipe is called {name!r}{nearest(name, [*ORDER, 'all'])}: "
                f"use one of all, reader, {', '.join(ORDER)}"
            )
        if what == "all" and name in STEPS and (place.built(name) / "config.json").exists():
            continue
        needs = {
            "latents": ["vae"],
            "features": ["teacher"],
            "clip": ["text", "teacher"],
            "identity": ["teacher"],
            "unet": ["vae", "text", "teacher"],
            "vae-decoder": ["vae"],
            "elite": ["vae"],
            "blip-diffusion": ["vae"],
            "ezigen": ["vae"],
            "ip-adapter": ["vae"],
            "ip-adapter-plus": ["vae"],
            **flux_campaign.NEEDS,
        }
        missing = [need for need in needs.get(name, []) if not (place.built(need) / "config.json").exists()]
        if missing:
            raise UserError(f"{name} needs {' and '.join(missing)} first: thisness playroom train {missing[0]}")
        if name == "data":
            place.train_data(), place.held_out_data()
        elif name == "latents":
            encoded("latents", place, place.built("vae"))
        elif name == "features":
            encoded("features", place, place.built("teacher"))
        elif name == "adopt":
            adopt(place)
        elif name == "assemble":
            for folder, change in assemble(place, target, only).items():
                say(f"{folder}: {change}")
        elif not STEPS[name](place, steps=steps, stop_after=stop_after):
            return False
    return True
