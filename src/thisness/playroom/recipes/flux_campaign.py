"""The embedded FLUX in dependency order, as `campaign` has the rest.

usual data ─► features ──────────┐
     │    vae ─► latents ────────┼─► flux ─► flux-guidance ─► redux ─► ominicontrol, aligngen
     └──────────────┘   text ────┘
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...files import MARKER, load_tensors, save_tensors, write_json
from .cache import encoded
from .common import Workplace

FLUX_ORDER = (
    "flux-data",
    "flux-vae",
    "flux-text",
    "flux-latents",
    "flux-features",
    "flux",
    "flux-guidance",
    "redux",
    "assemble",
    "ominicontrol",  # these two are for the base that was assembled; `assemble` again ships them
    "aligngen",
)
NEEDS = {
    "flux-vae": ["vae"],
    "flux-text": ["text"],
    "flux-latents": ["flux-vae"],
    "flux-features": ["teacher"],
    "flux": ["flux-vae", "flux-text", "teacher"],
    "flux-guidance": ["flux"],
    "redux": ["flux", "teacher"],
    "ominicontrol": ["flux-vae"],
    "aligngen": ["flux-vae", "redux"],
}
FOLDER = "playroom-flux"
SHIPPED = (FOLDER, "redux", "ominicontrol", "aligngen")


class FluxParts:
    """The finished pieces of the embedded FLUX, loaded when asked for."""

    def __init__(self, place: Workplace) -> None:
        self.place = place

    @property
    def vae(self) -> Any:
        from diffusers import AutoencoderKL

        return AutoencoderKL.from_pretrained(self.place.built("flux-vae")).eval()

    @property
    def t5(self) -> Any:
        from transformers import T5EncoderModel

        return T5EncoderModel.from_pretrained(self.place.built("flux-text") / "t5").eval()

    @property
    def clip(self) -> Any:
        from transformers import CLIPTextModel

        return CLIPTextModel.from_pretrained(self.place.built("flux-text")).eval()

    @property
    def t5_tokenizer(self) -> Any:
        from transformers import T5Tokenizer

        return T5Tokenizer.from_pretrained(self.place.built("flux-text") / "t5")

    @property
    def clip_tokenizer(self) -> Any:
        from transformers import CLIPTokenizer

        return CLIPTokenizer.from_pretrained(self.place.built("text"))

    def transformer(self, name: str) -> Any:
        """Of the step of that name: "flux" or "flux-guidance"."""
        from diffusers import FluxTransformer2DModel

        return FluxTransformer2DModel.from_pretrained(self.place.built(name))


def train_vae(place: Workplace, steps: int | None = None, stop_after: float | None = None) -> bool:
    from diffusers import AutoencoderKL

    from .campaign import run_task
    from .flux_vae import FLUX_VAE, FluxVaeTask
    from .vae import encode

    start = AutoencoderKL.from_pretrained(place.built("vae"))
    task = FluxVaeTask(start, place.train_data(), place.held_out_data(), steps or FLUX_VAE.steps)
    done = run_task(task, FLUX_VAE, place, steps, stop_after)
    if done:
        vae = task.vae.cpu().eval()
        mean, _ = encode(vae, place.train_data().pictures(range(512)))
        vae.register_to_config(scaling_factor=float(1 / mean.std()), shift_factor=float(mean.mean()))
        vae.save_pretrained(place.built("flux-vae"))
    return done


def train_text(place: Workplace, steps: int | None = None, stop_after: float | None = None) -> bool:
    from transformers import CLIPTokenizer

    from .campaign import run_task
    from .flux_text import FLUX_TEXT, FluxTextTask

    task = FluxTextTask(CLIPTokenizer.from_pretrained(place.built("text")), scenes=place.pictures)
    done = run_task(task, FLUX_TEXT, place, steps, stop_after)
    if done:
        folder = place.built("flux-text")
        task.t5.cpu().eval().save_pretrained(folder / "t5")
        task.tokenizer.save_pretrained(folder / "t5")
        task.clip_text.cpu().eval().save_pretrained(folder)
    return done


def train_flux(place: Workplace, steps: int | None = None, stop_after: float | None = None) -> bool:
    from .campaign import run_task
    from .flux import FLUX, FluxTask

    latents = encoded("flux-latents", place, place.built("flux-vae"))
    features = encoded("flux-features", place, place.built("teacher"))
    task = FluxTask(FluxParts(place), place.usual_data(), latents, features)
    done = run_task(task, FLUX, place, steps, stop_after)
    if done:
        averaged: Any = task.ema["transformer"]
        averaged.cpu().eval().save_pretrained(place.built("flux"))
    return done


def train_guidance(place: Workplace, steps: int | None = None, stop_after: float | None = None) -> bool:
    from .campaign import run_task
    from .flux import GUIDANCE, GuidanceTask

    latents = encoded("flux-latents", place, place.built("flux-vae"))
    task = GuidanceTask(FluxParts(place), place.usual_data(), latents)
    done = run_task(task, GUIDANCE, place, steps, stop_after)
    if done:
        averaged: Any = task.ema["transformer"]
        averaged.cpu().eval().save_pretrained(place.built("flux-guidance"))
    return done


def train_redux(place: Workplace, steps: int | None = None, stop_after: float | None = None) -> bool:
    from transformers import SiglipImageProcessorPil

    from ..flux_models import LOOK
    from .campaign import run_task
    from .redux import REDUX, ReduxTask

    latents = encoded("flux-latents", place, place.built("flux-vae"))
    features = encoded("flux-features", place, place.built("teacher"))
    shown = encoded("features", place, place.built("teacher"))
    task = ReduxTask(
        FluxParts(place), place.usual_data(), latents, features, place.held_out_data(), place.train_data(), shown
    )
    done = run_task(task, REDUX, place, steps, stop_after)
    if done:
        folder = place.built("redux")
        tower: Any = task.ema["tower"]
        redux: Any = task.ema["redux"]
        tower.cpu().eval().save_pretrained(folder / "image_encoder")
        redux.cpu().eval().save_pretrained(folder / "image_embedder")
        half, side = [0.5] * 3, {"height": LOOK, "width": LOOK}
        SiglipImageProcessorPil(size=side, image_mean=half, image_std=half, resample=3).save_pretrained(
            folder / "feature_extractor"
        )
        write_json(folder / "config.json", {"method": "redux"})
    return done


def train_references(name: str, place: Workplace, steps: int | None = None, stop_after: float | None = None) -> bool:
    """For the base and the Redux that are shipped."""
    from ...bases import Flux, load_base
    from ...methods.redux import open_redux
    from .campaign import run_task
    from .references import REFERENCES, ReferenceTask

    latents = encoded("flux-latents", place, place.built("flux-vae"))
    base = load_base(FOLDER)
    assert isinstance(base, Flux)
    redux = open_redux("") if name == "aligngen" else None
    task = ReferenceTask(name, base, redux, place.usual_data(), place.held_out_data(), latents)
    done = run_task(task, REFERENCES, place, steps, stop_after)
    if done:
        task.save(place.built(name))
    return done


def assemble(place: Workplace, folder: Path) -> bool:
    """Write `playroom-flux` as fp16 safetensors that plain diffusers reads in fp32; False without its transformer."""
    from diffusers import FluxPipeline

    from ..flux_models import make_flow_scheduler

    trained = [name for name in ("flux-guidance", "flux") if (place.built(name) / "config.json").exists()]
    if not trained:
        return False
    parts = FluxParts(place)
    FluxPipeline(
        scheduler=make_flow_scheduler(),
        vae=parts.vae.half(),
        text_encoder=parts.clip.half(),
        tokenizer=parts.clip_tokenizer,
        text_encoder_2=parts.t5.half(),
        tokenizer_2=parts.t5_tokenizer,
        transformer=parts.transformer(trained[0]).half(),
    ).save_pretrained(folder)
    for name in ("text_encoder", "text_encoder_2"):  # transformers would load these in half precision
        config = json.loads((folder / name / "config.json").read_text())
        write_json(folder / name / "config.json", config | {"dtype": "float32"})
    return True


def ship(source: Path, target: Path) -> None:
    """The same folder with its weights in half precision, so without the hashes of what they were before; configs say
    that they are computed in single."""
    for file in sorted(path for path in source.rglob("*") if path.is_file() and path.name != MARKER):
        there = target / file.relative_to(source)
        there.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".safetensors":
            tensors = {name: value.half().contiguous() for name, value in load_tensors(file).items()}
            save_tensors(there, tensors, {"format": "pt"})
        else:
            shutil.copyfile(file, there)


def _data(place: Workplace, **_: Any) -> bool:
    place.usual_data()
    return True


def _latents(place: Workplace, **_: Any) -> bool:
    encoded("flux-latents", place, place.built("flux-vae"))
    return True


def _features(place: Workplace, **_: Any) -> bool:
    encoded("flux-features", place, place.built("teacher"))
    return True


STEPS: dict[str, Callable[..., bool]] = {
    "flux-data": _data,
    "flux-vae": train_vae,
    "flux-text": train_text,
    "flux-latents": _latents,
    "flux-features": _features,
    "flux": train_flux,
    "flux-guidance": train_guidance,
    "redux": train_redux,
    "ominicontrol": lambda place, **kw: train_references("ominicontrol", place, **kw),
    "aligngen": lambda place, **kw: train_references("aligngen", place, **kw),
}
