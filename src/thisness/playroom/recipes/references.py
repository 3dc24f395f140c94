"""OminiControl and AlignGen on the embedded FLUX: a toy in one picture, the same toy in another one.

Both are trained on pictures in which most toys of a class look alike, as FLUX's own pictures do that the published
weights were trained on; colours and patterns are mostly unsaid, so that the reference has to tell them.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...methods.aligngen_training import Batch, FlowTraining, Trainables, TrainingConfig, save_weights
from ...methods.flux_references import truncated
from ...training.loop import LoopConfig, Task
from ..captions import ATTRIBUTES, OFTEN, caption, names_of, renamed
from ..data import PlayroomData
from ..world import USUAL_LOOKS
from .redux import looked_at

if TYPE_CHECKING:
    from ...bases import Flux
    from ...methods.redux import Redux
    from ..world import Scene

REFERENCES = LoopConfig(
    steps=1000,
    lr=1e-3,
    betas=(0.9, 0.99),
    weight_decay=0.01,
    warmup=50,
    schedule="linear-tail",
    tail=0.4,
    final_fraction=0.02,
    clip=0.5,
    ema=0.998,
    precision="auto",
    seed=26,
    preview_every=250,
)
RATES = {"lora": 2e-3, "dem": 1e-3, "star": 3e-3}
RANK, SHIPPED = 16, 4
"""Of the low-rank weights while they are trained, and as they are kept."""
MODULE = {"inner": 128, "heads": 4, "hidden": 512}
MENTIONED = OFTEN | {"colour": 0.1, "pattern": 0.1}
WHERE: dict[str, Any] = {"shift": "index", "level": 1.0}
"""A reference beside the picture (-w) only disturbs the small transformer, which then learns to leave it unread; in the
picture's own place it is read from the first step on. What a toy is like is decided at noisy levels."""
CONFIGS = {"ominicontrol": TrainingConfig.ominicontrol(**WHERE), "aligngen": TrainingConfig(**WHERE)}
UNUSUAL = 0.7
"""Share of pairs whose toy has another colour than most of its class (one in five of all toys): where the look is the
usual one, a sentence says it all and nothing is learned from the reference."""
SUBJECT_WEIGHT = 4.0


class ReferenceTask(Task):
    """Pairs of pictures of one toy: the first is read, the second is drawn."""

    def __init__(
        self, name: str, base: Flux, redux: Redux | None, data: PlayroomData, held_out: PlayroomData,
        latents: np.ndarray, config: TrainingConfig | None = None, batch_size: int = 16, seed: int = 0,
        names: tuple[int, ...] = (0, 1, 2),
    ) -> None:  # fmt: skip
        """name: "ominicontrol" or "aligngen"; latents: rows of `encoded("flux-latents")`; names: which of
        `names_of` a sentence may use, where AlignGen's parts are on."""
        self.name, self.base, self.redux, self.data, self.held_out = name, base, redux, data, held_out
        self.latents, self.batch_size = latents, batch_size
        self.config = config or CONFIGS[name]
        self.choices = names if self.config.extended else (0,)
        self.trainables = Trainables.fresh(
            base, RANK, dem=MODULE if self.config.dem else None, star=self.config.star, seed=seed
        )
        self.training = FlowTraining(base, self.trainables, self.config)
        columns = list(ATTRIBUTES)
        alone = data.labels[:, columns.index("companion")] == ATTRIBUTES["companion"].index("none")
        photo = data.labels[:, columns.index("style")] == ATTRIBUTES["style"].index("photo")
        self.good = (alone & photo).reshape(-1, 4)  # a toy has four scenes in a row
        self.toys = np.flatnonzero(self.good.sum(1) >= 2)
        looks = [data.scene(4 * int(toy)).subject.identity for toy in self.toys]
        unusual = self.toys[[who.colour != USUAL_LOOKS[who.noun][0] for who in looks]]
        self.unusual = unusual if len(unusual) else self.toys

    def modules(self) -> dict[str, nn.Module]:
        return self.trainables.parts()

    def parameter_groups(self) -> list[dict[str, Any]]:
        return self.trainables.parameter_groups(RATES)

    def settings(self) -> dict[str, Any]:
        from dataclasses import asdict

        return {"config": asdict(self.config), "names": list(self.choices), "base": self.base.signature}

    def on_start(self, device: torch.device) -> None:
        self.base.to(device)
        self.held = ExitStack()  # until the process ends
        self.held.enter_context(self.training.attached())

    def scaled(self, rows: np.ndarray) -> Tensor:
        config = self.base.vae.config
        return (torch.from_numpy(self.latents[rows]).float() - config.shift_factor) * config.scaling_factor

    @torch.no_grad()
    def tokens(self, pictures: Tensor) -> Tensor | None:
        if self.redux is None or not self.config.dem:
            return None
        states = self.redux.encoder(pixel_values=looked_at(pictures)).last_hidden_state
        return self.redux.embedder(states).image_embeds

    def loss(self, step: int, rng: torch.Generator) -> dict[str, Tensor]:
        pool = [self.unusual if pick < UNUSUAL else self.toys for pick in torch.rand(self.batch_size, generator=rng)]
        toys = [of[int(torch.randint(0, len(of), (), generator=rng))] for of in pool]
        words = Random(int(torch.randint(0, 1 << 40, (), generator=rng)))
        pairs = [words.sample(list(4 * toy + np.flatnonzero(self.good[toy])), 2) for toy in toys]
        read, drawn = (np.array(rows) for rows in zip(*pairs, strict=True))
        scenes = [self.data.scene(int(row)) for row in drawn]
        nouns = [scene.subject.identity.noun for scene in scenes]
        names = [names_of(noun)[words.choice(self.choices)] for noun in nouns]
        sentences = [
            renamed(caption(scene, words, MENTIONED), noun, name)
            for scene, noun, name in zip(scenes, nouns, names, strict=True)
        ]
        masks = torch.from_numpy(self.data.masks[drawn, :1]).float() / 255
        batch = Batch(
            self.scaled(drawn), self.scaled(read), sentences, names, self.tokens(self.data.pictures(read)),
            weights=1 + SUBJECT_WEIGHT * F.avg_pool2d(masks, 8),
        )  # fmt: skip
        return self.training.loss(batch, rng)

    def averaged(self) -> Trainables:
        """What is shipped."""
        parts: dict[str, Any] = {**self.trainables.parts(), **self.ema}
        low_rank = truncated(dict(zip(self.trainables.names, parts["lora"], strict=True)), SHIPPED)
        return Trainables(low_rank, parts.get("dem"), parts.get("star"))

    @torch.no_grad()
    def preview(self, folder: Path, step: int) -> dict[str, float]:
        """The loss on held-out pairs with the right toy read, with another one, and with a black picture."""
        if not hasattr(self, "seen"):
            self.seen = self.held_out_pairs(64)
        parts = self.seen
        out = {}
        for title in ("right", "other", "black"):
            total = 0.0
            for start in range(0, 64, 16):
                rows = slice(start, start + 16)
                read = parts["read"][rows].roll(1 if title == "other" else 0, 0)
                tokens = None if parts["tokens"] is None else parts["tokens"][rows].roll(int(title == "other"), 0)
                batch = Batch(parts["drawn"][rows], read, parts["sentences"][rows], parts["names"][rows], tokens)
                generator = torch.Generator().manual_seed(start)
                noise = torch.randn(batch.targets.shape, generator=generator)
                times = torch.sigmoid(self.config.level + torch.randn(16, generator=generator))
                at = times.view(-1, 1, 1, 1)
                black = torch.full((16,), title == "black")
                found = self.training.velocity(batch, (1 - at) * batch.targets + at * noise, times, black)
                weights = 1 + SUBJECT_WEIGHT * parts["masks"][rows]
                total += float(((found - (noise - batch.targets)) ** 2 * weights).mean() / weights.mean())
            out[title] = total / 4
        return out

    def held_out_pairs(self, count: int) -> dict[str, Any]:
        """Pairs of held-out toys, each in two scenes."""
        from ..render import render
        from ..world import identity, random_scene, rng_of

        read: list[Scene] = []
        drawn: list[Scene] = []
        for number in range(count):
            who = identity(1000 + number, "held-out")
            seeds = rng_of("pairs", number)
            for scenes in (read, drawn):
                seed = seeds.randrange(1 << 30)
                scenes.append(random_scene(seed, "held-out", subject=who, companion=0, styled=0))
        made = [render(scenes) for scenes in (read, drawn)]
        pictures = [each.images.float() / 127.5 - 1 for each in made]
        nouns = [scene.subject.identity.noun for scene in drawn]
        return {
            "read": self.base.encode_images(pictures[0]),
            "drawn": self.base.encode_images(pictures[1]),
            "tokens": self.tokens(pictures[0]),
            "masks": F.avg_pool2d(made[1].masks[:, :1].float() / 255, 8),
            "sentences": [
                caption(scene, Random(i), MENTIONED | {"colour": 0, "pattern": 0}) for i, scene in enumerate(drawn)
            ],
            "names": nouns,
        }

    def save(self, folder: Path) -> None:
        more = {"redux_signature": self.redux.signature} if self.config.dem and self.redux is not None else {}
        save_weights(folder, self.base, self.averaged(), self.config, self.name, size=self.base.resolution, **more)
