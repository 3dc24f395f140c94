"""`playroom-clip`: a CLIP vision tower aligned with the frozen text encoder of `playroom-sd`.

Three losses train the tower and the two projections:

- contrastive, over all pairs of a batch; a caption fits every picture that has all that it says, not only its own;
- by attribute: the picture against one text vector per value ("a photo of a ... sleeping", averaged over classes), so
  that no attribute is passed over because the background alone retrieves the caption;
- linear heads and the teacher's locality guidance (`ruler.py`), both thrown away.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...training.loop import LoopConfig
from ...training.optimizers import matrices_apart
from ..captions import (
    ALWAYS,
    ATTRIBUTES,
    OFTEN,
    OPENINGS,
    PLACES,
    UNKNOWN,
    caption_and_mentions,
    with_article,
)  # fmt: skip
from ..data import PlayroomData
from ..models import Reader, make_clip_vision
from ..world import CLASSES, THINGS
from .common import draw
from .reader import WEIGHT
from .ruler import EncoderTask, Guides, Heads, attribute_loss
from .text import tokenize

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

CLIP = LoopConfig(
    steps=3600,
    lr=1.2e-3,
    betas=(0.9, 0.98),
    weight_decay=0.05,
    warmup=150,
    schedule="cosine",
    final_fraction=0.01,
    clip=1.0,
    precision="auto",
    seed=11,
    preview_every=400,
)
SPARSE = {name: 0.2 for name in ALWAYS}
"""Short captions, which fit many pictures."""
BY_ATTRIBUTE, BY_HEADS = 0.5, 0.5  # weights of the losses beside the contrastive one
GUIDED = {"early": 3.0, "late": 5.0, "token": 10.0}
ZERO_SHOT = ("class", "pose", "facing", "background", "accessory", "object", "colour", "style")
"""Attributes that one sentence per value, averaged over classes, can name."""


def sentences(attribute: str) -> list[list[str]]:
    """For each value of the attribute the sentences whose mean is its text vector; "none" has none."""
    said = []
    for value in ATTRIBUTES[attribute]:
        if value == "none":
            continue
        if attribute == "class":
            said.append([f"{opening} {with_article(value)}".strip() for opening in OPENINGS["photo"]])
            continue
        things = value in ("upright", "tilted", "upside down")
        creatures = attribute == "pose" and not things
        nouns = [n for n in CLASSES if not (things and n not in THINGS) and not (creatures and n in THINGS)]
        forms = {
            "pose": ["a photo of {a}" if value == "upright" else f"a photo of {{a}} {value}"],
            "facing": [f"a photo of {{a}} facing {value}"],
            "background": [f"a photo of {{a}} {place}" for place in PLACES.get(value, ())],
            "accessory": [f"a photo of {{a}} wearing {value if value == 'glasses' else with_article(value)}"],
            "object": [f"a photo of {{a}} with {with_article(value)}"],
            "colour": [f"a photo of {with_article(value)} {{noun}}"],
            "style": [f"{opening} {{a}}".strip() for opening in OPENINGS.get(value, ())],
        }[attribute]
        said.append([form.format(a=with_article(noun), noun=noun) for form in forms for noun in nouns])
    return said


@torch.no_grad()
def pooled_text(encoder: CLIPTextModel, tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """End tokens (N, 192), before the projection. Attention is causal: padding after the longest changes nothing."""
    ids = tokenize(tokenizer, texts)
    longest = int((ids != tokenizer.pad_token_id).sum(1).max()) + 1
    device = next(encoder.parameters()).device
    return torch.cat([encoder(input_ids=part[:, :longest].to(device)).pooler_output for part in ids.split(256)])


def value_vectors(encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> dict[str, Tensor]:
    """Per attribute the mean pooled states of each value's sentences (values, 192)."""
    return {
        name: torch.stack([pooled_text(encoder, tokenizer, texts).mean(0) for texts in sentences(name)])
        for name in ZERO_SHOT
    }


def said_by(logits_of: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: logits.argmax(1) for name, logits in logits_of.items()}


def zero_shot(embeds: Tensor, vectors: dict[str, Tensor], projection: nn.Module) -> dict[str, Tensor]:
    """Cosines (N, values) per attribute. embeds: image embeddings (N, 192)."""
    images = F.normalize(embeds.float(), dim=-1)
    return {name: images @ F.normalize(projection(v).float(), dim=-1).T for name, v in vectors.items()}


def fits(mentions: Tensor, labels: Tensor) -> Tensor:
    """(B, B) bool: whether picture i (rows) has all that caption j (columns) says."""
    said, has = mentions[None], labels[:, None]
    return ((said == UNKNOWN) | (said == has)).all(-1)


class ClipTask(EncoderTask):
    """Align the vision tower with the frozen text encoder."""

    name = "clip"

    def __init__(
        self,
        parts: Any,
        data: PlayroomData,
        held_out: PlayroomData,
        features: np.ndarray,
        teacher: Reader,
        batch_size: int = 64,
    ) -> None:
        """parts: the finished `text_encoder` and `tokenizer`; features: the teacher's, of every training picture."""
        super().__init__(data, held_out, features, batch_size)
        self.text_encoder, self.tokenizer = parts.text_encoder.eval().requires_grad_(False), parts.tokenizer
        self.vision = make_clip_vision()
        width = self.vision.config.hidden_size
        self.words = nn.ModuleDict(
            {
                "projection": nn.Linear(
                    parts.text_encoder.config.hidden_size, self.vision.config.projection_dim, bias=False
                )
            }
        )
        self.words.register_parameter("logit_scale", nn.Parameter(torch.tensor(2.66)))
        self.aside = nn.ModuleDict({"guides": Guides(width, teacher, token=True), "heads": Heads(width)})
        self.raw_labels = torch.from_numpy(data.labels).long()

    @property
    def guides(self) -> Guides:
        guides = self.aside["guides"]
        assert isinstance(guides, Guides)
        return guides

    def modules(self) -> dict[str, nn.Module]:
        return {"vision": self.vision, "words": self.words, "aside": self.aside}

    def parameter_groups(self) -> list[dict[str, Any]]:
        return matrices_apart(self.vision.vision_model.encoder, list(self.modules().values()))

    def on_start(self, device: torch.device) -> None:
        self.text_encoder.to(device)
        self.vectors = value_vectors(self.text_encoder, self.tokenizer)
        self.guides.measure(self.data.pictures(range(min(512, len(self.data)))).to(device))

    def loss(self, step: int, rng: torch.Generator) -> dict[str, Tensor]:
        rows = draw(rng, len(self.data), self.batch_size)
        words = Random(int(torch.randint(0, 1 << 40, (), generator=rng)))
        images, labels, shown, where, _, grey = self.batch(rows, rng)
        out = self.vision(pixel_values=images, output_hidden_states=True)
        pooled = self.vision.vision_model.post_layernorm(out.last_hidden_state[:, 0])
        guided = self.guides(out.hidden_states, pooled, images, shown, where, grey)
        heads = self.aside["heads"](pooled, labels)
        scale = self.words.get_parameter("logit_scale").exp().clamp(max=100)
        cosines = zero_shot(out.image_embeds, self.vectors, self.words["projection"])
        named = images.new_zeros(())
        for name, values in cosines.items():
            wanted = labels[:, list(ATTRIBUTES).index(name)]
            wanted = torch.where(wanted >= values.shape[1], UNKNOWN, wanted)  # "none" is no value here
            named = named + WEIGHT.get(name, 0.5) * attribute_loss(scale * values, wanted)
        total = BY_ATTRIBUTE * named + BY_HEADS * heads + sum(GUIDED[name] * loss for name, loss in guided.items())
        parts = {"named": named.detach(), "heads": heads.detach()} | {n: loss.detach() for n, loss in guided.items()}
        if not grey:
            contrast = self._contrast(out.image_embeds, rows, words, scale)
            total = total + contrast
            parts["contrast"] = contrast.detach()
        return {"loss": total, **parts}

    def _contrast(self, embeds: Tensor, rows: np.ndarray, words: Random, scale: Tensor) -> Tensor:
        """Both directions; the target is spread evenly over all that fits."""
        pairs = [
            caption_and_mentions(self.data.scene(int(row)), words, words.choice((ALWAYS, OFTEN, SPARSE)))
            for row in rows
        ]
        mentions = torch.tensor([[said[name] for name in ATTRIBUTES] for _, said in pairs])
        fit = fits(mentions, self.raw_labels[rows]).float().to(embeds.device)
        text = self.words["projection"](pooled_text(self.text_encoder, self.tokenizer, [text for text, _ in pairs]))
        logits = scale * F.normalize(embeds.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T
        of_image = -(F.log_softmax(logits, 1) * fit / fit.sum(1, keepdim=True)).sum(1).mean()
        of_text = -(F.log_softmax(logits, 0) * fit / fit.sum(0, keepdim=True)).sum(0).mean()
        return (of_image + of_text) / 2

    @torch.no_grad()
    def preview(self, folder: Path, step: int) -> dict[str, float]:
        self.vision.eval()
        images = self.held_out.pictures(range(512)).to(self.device)
        labels = torch.from_numpy(self.held_out.labels[:512]).long()
        embeds = torch.cat([self.vision(pixel_values=part).image_embeds for part in images.split(64)])
        return zero_shot_accuracy(zero_shot(embeds, self.vectors, self.words["projection"]), labels)


def zero_shot_accuracy(cosines: dict[str, Tensor], labels: Tensor) -> dict[str, float]:
    """Fraction right per attribute, over pictures with one subject that have it."""
    from .reader import unambiguous

    labels, out = unambiguous(labels), {}
    for name, values in cosines.items():
        wanted = labels[:, list(ATTRIBUTES).index(name)]
        has = (wanted != UNKNOWN) & (wanted < values.shape[1])
        out[name] = float((values.cpu().argmax(1)[has] == wanted[has]).float().mean()) if has.any() else float("nan")
    return out
