"""`playroom-identity`: the DINO of this world, a vision transformer for which a toy is the same toy in every pose,
scene, and thing worn.

Trained with same-identity positives (supervised contrastive: Khosla et al. 2020, arXiv 2004.11362): a batch holds two
scenes each of toys of a few classes, so that most negatives are other toys of the same class. The class token and the
mean of the subject's patch tokens are trained alike; what metrics compare is the class token itself, without a
projection. Beside it, thrown away: heads for class, pattern and colours, the colours themselves, locality guidance.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...training.loop import LoopConfig
from ..captions import ATTRIBUTES
from ..data import PlayroomData
from ..models import Reader, make_identity_encoder
from ..world import CLASSES, Identity, Scene, Toy, identity, random_scene, rng_of
from .ruler import EncoderTask, Guides, Heads

IDENTITY = LoopConfig(
    steps=3600,
    lr=1.5e-3,
    betas=(0.9, 0.98),
    weight_decay=0.05,
    warmup=150,
    schedule="cosine",
    final_fraction=0.01,
    clip=1.0,
    precision="auto",
    seed=12,
    preview_every=400,
)
TEMPERATURE = 0.1
CLASSES_IN_BATCH = 3
BY_PATCHES, BY_HEADS, BY_COLOUR = 0.5, 0.2, 2.0  # weights of the losses beside the class token's
GUIDED = {"early": 1.0, "late": 1.0}
NAMED = ("class", "colour", "second colour", "pattern")


def same_toy(states: Tensor, toys: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Supervised contrastive loss. states: (B, width); toys: (B,) numbers of the toys."""
    states = F.normalize(states.float(), dim=-1)
    logits = states @ states.T / temperature
    logits = logits.masked_fill(torch.eye(len(toys), dtype=torch.bool, device=toys.device), -1e4)
    positive = (toys[:, None] == toys[None]).float().fill_diagonal_(0)
    log = F.log_softmax(logits, 1)
    return -((log * positive).sum(1) / positive.sum(1).clamp(min=1)).mean()


def body_colours(who: Identity) -> list[float]:
    """Main and second colour, 6 numbers in [0, 1]; a plain toy's second colour is its main one."""
    return [*who.rgb, *(who.rgb if who.pattern == "plain" else who.second_rgb)]


class IdentityTask(EncoderTask):
    """Two scenes each of toys of a few classes."""

    name = "identity"

    def __init__(
        self, data: PlayroomData, held_out: PlayroomData, features: np.ndarray, teacher: Reader, batch_size: int = 64
    ) -> None:
        super().__init__(data, held_out, features, batch_size)
        self.encoder = make_identity_encoder()
        width = self.encoder.config.hidden_size
        self.aside = nn.ModuleDict(
            {
                "guides": Guides(width, teacher, token=False),
                "heads": Heads(width, NAMED),
                "colours": nn.Linear(width, 6),
            }
        )
        names = list(ATTRIBUTES)
        alone = data.labels[:, names.index("companion")] == ATTRIBUTES["companion"].index("none")
        coloured = data.labels[:, names.index("style")] != ATTRIBUTES["style"].index("pencil sketch")
        scenes = (alone & coloured).reshape(-1, 4)  # a toy has four scenes in a row
        self.fine = [np.flatnonzero(row) for row in scenes]
        kinds = data.labels[::4, names.index("class")]
        enough = scenes.sum(1) >= 2
        self.toys_of = [np.flatnonzero((kinds == k) & enough) for k in range(len(CLASSES))]
        self.colours = torch.tensor([body_colours(identity(i, data.split)) for i in range(len(scenes))])

    @property
    def guides(self) -> Guides:
        guides = self.aside["guides"]
        assert isinstance(guides, Guides)
        return guides

    def modules(self) -> dict[str, nn.Module]:
        return {"encoder": self.encoder, "aside": self.aside}

    def on_start(self, device: torch.device) -> None:
        self.guides.measure(self.data.pictures(range(min(512, len(self.data)))).to(device))

    def _rows(self, rng: torch.Generator) -> tuple[np.ndarray, Tensor]:
        """Rows of the batch and the number of each row's toy."""

        def some(choices: np.ndarray, count: int) -> np.ndarray:
            return choices[torch.randperm(len(choices), generator=rng)[:count].numpy()]

        kinds = some(np.arange(len(CLASSES)), CLASSES_IN_BATCH)
        each = -(-self.batch_size // 2 // CLASSES_IN_BATCH)
        toys = np.concatenate([some(self.toys_of[kind], each) for kind in kinds])[: self.batch_size // 2]
        rows = np.concatenate([4 * toy + some(self.fine[toy], 2) for toy in toys])
        return rows, torch.from_numpy(np.repeat(toys, 2))

    def loss(self, step: int, rng: torch.Generator) -> dict[str, Tensor]:
        rows, toys = self._rows(rng)
        images, labels, shown, where, subject, grey = self.batch(rows, rng)
        toys = toys.to(images.device)
        out = self.encoder(pixel_values=images, output_hidden_states=True)
        state, tokens = out.last_hidden_state[:, 0], out.last_hidden_state[:, 1:]
        of_patches = (tokens * subject[..., None]).sum(1) / subject.sum(1, keepdim=True).clamp(min=1e-3)
        guided = self.guides(out.hidden_states, state, images, shown, where, grey)
        main, local = same_toy(state, toys), same_toy(of_patches, toys)
        heads = self.aside["heads"](state, labels)
        colours = F.mse_loss(self.aside["colours"](state).float(), self.colours.to(images.device)[toys])
        total = main + BY_PATCHES * local + BY_HEADS * heads + BY_COLOUR * colours
        total = total + sum(GUIDED[name] * loss for name, loss in guided.items())
        return {
            "loss": total,
            "same toy": main.detach(),
            "by patches": local.detach(),
            "heads": heads.detach(),
            "colours": colours.detach(),
        } | {name: loss.detach() for name, loss in guided.items()}

    @torch.no_grad()
    def preview(self, folder: Path, step: int) -> dict[str, float]:
        from ..render import render

        self.encoder.eval()
        if not hasattr(self, "line_up"):
            self.line_up = render(line_up_scenes(7_000_000, toys=20, classes=CLASSES[::2])).images
        images = self.line_up.float().div(127.5).sub(1).to(self.device)
        states = torch.cat([self.encoder(pixel_values=part).last_hidden_state[:, 0] for part in images.split(64)])
        return {"same toy among 20 of its class": recognised(states, toys=20)}


def line_up_scenes(first: int, toys: int = 20, classes: tuple[str, ...] = CLASSES) -> list[Scene]:
    """Two scenes each of `toys` held-out toys of each class: another pose and another background in the second.

    Args:
        first: number of the first toy's scene; the toys are fresh ones.
    """
    scenes = []
    for c, noun in enumerate(classes):
        for k in range(toys):
            number = first + c * toys + k
            who, rng = identity(number, "held-out", noun), rng_of("line-up", number)
            pair: list[Scene] = []
            while len(pair) < 2:
                scene = random_scene(rng.randrange(1 << 40), "held-out", subject=who, companion=0, styled=0)
                toy: Toy = scene.subject
                if not pair or (toy.pose != pair[0].subject.pose and scene.background != pair[0].background):
                    pair.append(scene)
            scenes += pair
    return scenes


def recognised(states: Tensor, toys: int = 20) -> float:
    """Top-1 fraction: each picture of a toy against the other pictures of its class's line-up, one a toy.

    Args:
        states: (classes x toys x 2, width), in the order of `line_up_scenes`.
    """
    pairs = F.normalize(states.float(), dim=-1).view(-1, toys, 2, states.shape[-1])
    right = []
    for first, second in ((0, 1), (1, 0)):
        cosines = pairs[:, :, first] @ pairs[:, :, second].transpose(1, 2)  # (classes, toys, toys)
        right.append((cosines.argmax(-1) == torch.arange(toys, device=states.device)).float().mean())
    return float(torch.stack(right).mean())
