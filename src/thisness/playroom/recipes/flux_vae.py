"""The 16-channel autoencoder of the embedded FLUX, begun from the one of `playroom-sd`: its 8 channels and 8 more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...training.loop import LoopConfig
from ..data import PlayroomData
from ..flux_models import widened
from .vae import VaeTask

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

FLUX_VAE = LoopConfig(
    steps=800,
    lr=1e-3,
    betas=(0.9, 0.97),
    weight_decay=0.0,
    warmup=60,
    schedule="linear-tail",
    tail=0.5,
    final_fraction=0.05,
    clip=1.0,
    precision="auto",
    seed=21,
    preview_every=200,
)


class FluxVaeTask(VaeTask):
    """As stage one there."""

    name = "flux-vae"

    def __init__(
        self, start: AutoencoderKL, data: PlayroomData, held_out: PlayroomData, steps: int = FLUX_VAE.steps
    ) -> None:
        """start: of `playroom-sd`."""
        super().__init__(data, held_out, steps)
        self.vae = widened(start).train()
