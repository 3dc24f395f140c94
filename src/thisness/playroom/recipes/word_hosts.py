"""What the recipes of ELITE and BLIP-Diffusion share: pictures read as words, on the frozen embedded base.

Entangled on purpose, as the published ones are: the picture that is read is the picture that is drawn, and its caption
leaves the pose unsaid half of the time, so that the words learn to carry it. Colours and patterns are never said. In
half of the rows the background is taken away before the picture is read, as it is later wherever there is a mask.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from random import Random
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...bases import Base
from ...files import save_tensors, write_json
from ...methods.image_states import INSIDE, ImageEncoder
from ...training.diffusion import cumulative_alphas, noised, target
from ...training.loop import Task
from ..captions import ALWAYS, OFTEN, caption, with_article
from ..data import PlayroomData
from ..models import LATENT_SIZE
from ..world import CLASSES, Scene
from .common import draw, picture_grid
from .text import tokenize
from .unet import sample_timesteps

ENCODER = "playroom-clip"
SCENES = 4  # of each toy
DROP_CAPTION, SUBJECT_WEIGHT, BARE = 0.1, 2.0, 0.5
MENTION = {**OFTEN, "colour": 0.0, "pattern": 0.0, "pose": 0.5}
ASKED = {**ALWAYS, "colour": 0.0, "pattern": 0.0}
GUIDANCE, STEPS = 3.0, 20  # of previews


class BatchRows(nn.Module):
    """A token embedding whose new tokens mean something else in each row of the batch.

    Attributes:
        rows: (batch, tokens, width).
    """

    def __init__(self, original: nn.Module, first: int) -> None:
        super().__init__()
        self.original: Any = original
        self.first, self.rows = first, torch.zeros(0)

    def forward(self, ids: Tensor) -> Tensor:
        """ids: (batch, length) -> (batch, length, width)."""
        known = self.original(ids.clamp(max=self.first - 1))
        if not self.rows.numel():
            return known
        index = (ids - self.first).clamp(min=0).unsqueeze(-1).expand(-1, -1, known.shape[-1])
        return torch.where((ids >= self.first).unsqueeze(-1), self.rows.to(known.dtype).gather(1, index), known)


def sentence(scene: Scene, rng: Random, word: str, mention: dict[str, float] = MENTION) -> str:
    """A caption with another word for the toy: "a photo of a WORD on the beach"."""
    return caption(scene, rng, mention).replace(with_article(scene.subject.identity.noun), f"a {word}", 1)


class WordHostTask(Task):
    """Draw a picture with words that were read from it. Subclasses read (`rows`) and say what else acts.

    Args:
        base: frozen, for this task alone.
        latents: of the training pictures, (N, *latent_shape) unscaled.

    Attributes:
        words: how many tokens take the toy's place.
        keeps_noun: whether the noun follows them.
        drop_subject: how often the noun stands alone.
    """

    words = 1
    keeps_noun = False
    drop_subject = 0.0

    def __init__(
        self, base: Base, data: PlayroomData, held_out: PlayroomData, latents: np.ndarray,
        batch_size: int = 16, encoder: str = ENCODER,
    ) -> None:  # fmt: skip
        from diffusers.models.attention_processor import AttnProcessor

        self.base, self.data, self.held_out, self.latents = base, data, held_out, latents
        self.batch_size, self.encoder = batch_size, ImageEncoder(encoder)
        base.denoiser.set_attn_processor(AttnProcessor())  # the fused kernel's backward is slow on a CPU
        for module in base.modules.values():
            module.eval().requires_grad_(False)
        self.tokenizer = copy.deepcopy(base.tokenizer)
        self.first = len(self.tokenizer)
        self.tokens = tuple(f"<w-{number}>" for number in range(self.words))
        self.tokenizer.add_tokens(list(self.tokens))
        self.text_encoder = cast(Any, base.modules["text_encoder"])
        self.table = BatchRows(self.text_encoder.get_input_embeddings(), self.first)
        self.text_encoder.set_input_embeddings(self.table)
        self.alphas = cumulative_alphas(base.scheduler)

    # --- what subclasses do ---

    def rows(self, pixels: Tensor, nouns: Sequence[str]) -> Tensor:
        """Pictures to words. pixels: (n, 3, S, S) in [0, 1] -> (n, words, width)."""
        raise NotImplementedError

    def acting(self, pixels: Tensor, mask: Tensor, ids: Tensor) -> AbstractContextManager[Any]:
        """What else acts while the denoiser runs. pixels, mask: without background; ids: (n, length)."""
        return nullcontext()

    def penalty(self, rows: Tensor) -> Tensor:
        """Added to the loss."""
        return rows.new_zeros(())

    # --- the rest ---

    def settings(self) -> dict[str, Any]:
        said = {"base": self.base.signature, "encoder": self.encoder.signature, "pictures": len(self.data)}
        return said | {"batch_size": self.batch_size, "words": len(self.tokens)}

    def on_start(self, device: torch.device) -> None:
        self.base.to(device)
        self.encoder.model.to(device)
        self.encoder.mean, self.encoder.std = self.encoder.mean.to(device), self.encoder.std.to(device)
        self.alphas = self.alphas.to(device)

    def noun_rows(self, nouns: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The rows of some nouns in the base's vocabulary, (n, longest, width), and which are there."""
        ids = [self.tokenizer(noun, add_special_tokens=False)["input_ids"] for noun in nouns]
        longest = max(map(len, ids))
        padded = torch.tensor([each + [0] * (longest - len(each)) for each in ids], device=self.base.device)
        there = torch.tensor([[at < len(each) for at in range(longest)] for each in ids], device=self.base.device)
        return self.table.original(padded).detach(), there

    def usual_row(self) -> Tensor:
        """The mean of what the nouns end on, (width,): a word like any."""
        rows, there = self.noun_rows(CLASSES)
        return rows[torch.arange(len(rows)), there.sum(1) - 1].mean(0)

    def word(self, noun: str) -> str:
        return " ".join([*self.tokens, *([noun] if self.keeps_noun else [])])

    def said(self, sentences: Sequence[str], rows: Tensor) -> tuple[Tensor, Tensor]:
        """What the denoiser reads, (n, length, width), and the ids. rows: (n, words, width)."""
        ids = tokenize(self.tokenizer, list(sentences)).to(self.base.device)
        self.table.rows = rows
        return self.text_encoder(input_ids=ids).last_hidden_state, ids

    def pictures(self, data: PlayroomData, rows: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
        """(n, 3, S, S) in [0, 1], and the toys' masks (n, 1, S, S) of 0 and 1."""
        pixels = torch.from_numpy(data.images[list(rows)]).float() / 255
        mask = torch.from_numpy(data.masks[list(rows)][:, :1]).float() / 255
        return pixels.to(self.base.device), (mask >= INSIDE).float().to(self.base.device)

    def loss(self, step: int, rng: torch.Generator) -> dict[str, Tensor]:
        index = draw(rng, len(self.data), self.batch_size)
        chance = torch.rand(3, self.batch_size, generator=rng)
        words = Random(int(torch.randint(0, 1 << 40, (), generator=rng)))
        scenes = [self.data.scene(int(i)) for i in index]
        nouns = [scene.subject.identity.noun for scene in scenes]
        sentences = []
        for scene, noun, drops in zip(scenes, nouns, chance.T.tolist(), strict=True):
            text = sentence(scene, words, noun if drops[1] < self.drop_subject else self.word(noun))
            sentences.append("" if drops[0] < DROP_CAPTION else text)
        clean = torch.from_numpy(self.latents[index]).float() * self.base.vae.config.scaling_factor
        noise, t = torch.randn(clean.shape, generator=rng), sample_timesteps(self.batch_size, rng)
        pixels, mask = self.pictures(self.data, index)
        bare = (chance[2] < BARE).view(-1, 1, 1, 1).to(pixels)
        rows = self.rows(pixels * (1 - bare + bare * mask), nouns)
        error, weight = self.errors(clean, noise, t, sentences, rows, pixels * mask, mask)
        main = (error * weight).mean() / weight.mean()
        penalty = self.penalty(rows)
        return {"loss": main + penalty, "main": main.detach(), "penalty": penalty.detach()}

    def errors(
        self, clean: Tensor, noise: Tensor, t: Tensor, sentences: Sequence[str], rows: Tensor, alone: Tensor,
        mask: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Squared errors (n, C, h, w), and weights (n, 1, h, w)."""
        device = self.base.device
        clean, noise, t = clean.to(device), noise.to(device), t.to(device)
        text, ids = self.said(sentences, rows)
        alpha = self.alphas[t]
        with self.acting(alone, mask, ids):
            found = self.base.denoiser(noised(clean, noise, alpha), t, text, return_dict=False)[0]
        wanted = target(clean, noise, alpha, self.base.prediction_type)
        weight = 1 + SUBJECT_WEIGHT * F.adaptive_avg_pool2d(mask, LATENT_SIZE)
        return (found.float() - wanted) ** 2, weight

    @torch.no_grad()
    def preview(self, folder: Path, step: int) -> dict[str, float]:
        """A grid of held-out toys (read, drawn with another scene's sentence, that scene), and the loss with the right
        words and with another toy's."""
        count = 8
        read, other = [SCENES * i for i in range(count)], [SCENES * i + 1 for i in range(count)]
        scenes = [self.held_out.scene(row) for row in other]
        nouns = [scene.subject.identity.noun for scene in scenes]
        asked = [sentence(s, Random(n), self.word(nouns[n]), ASKED) for n, s in enumerate(scenes)]
        pixels, mask = self.pictures(self.held_out, read)
        alone = pixels * mask
        rows = self.rows(alone, nouns)
        drawn = self.drawn(asked, rows, alone, mask)
        shown = torch.stack([pixels * 2 - 1, drawn, self.pictures(self.held_out, other)[0] * 2 - 1], 1)
        picture_grid(shown.flatten(0, 1), folder / f"preview-{step:06d}.png", 6)
        return self.gap()

    @torch.no_grad()
    def drawn(self, sentences: Sequence[str], rows: Tensor, alone: Tensor, mask: Tensor) -> Tensor:
        """Pictures (n, 3, S, S) in [-1, 1]."""
        scheduler = copy.deepcopy(self.base.scheduler)
        scheduler.set_timesteps(STEPS)
        shape = (len(rows), *self.latents.shape[1:])
        latents = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(self.base.device)
        told, ids = self.said(sentences, rows)
        free, _ = self.said([""] * len(rows), rows)
        for t in scheduler.timesteps:
            without = self.base.denoiser(latents, t, free, return_dict=False)[0]
            with self.acting(alone, mask, ids):
                found = self.base.denoiser(latents, t, told, return_dict=False)[0]
            latents = scheduler.step(without + GUIDANCE * (found - without), t, latents).prev_sample
        return self.base.decode(latents)

    @torch.no_grad()
    def gap(self, count: int = 32) -> dict[str, float]:
        """Loss on held-out pictures with the words read from them, and with those of the next one."""
        from .vae import encode

        rng = torch.Generator().manual_seed(0)
        index = range(count)
        clean = encode(self.base.vae, self.held_out.pictures(index).to(self.base.device))[0].float()
        clean = clean.cpu() * self.base.vae.config.scaling_factor
        noise, t = torch.randn(clean.shape, generator=rng), sample_timesteps(count, rng)
        scenes = [self.held_out.scene(row) for row in index]
        nouns = [scene.subject.identity.noun for scene in scenes]
        sentences = [sentence(s, Random(n), self.word(nouns[n])) for n, s in enumerate(scenes)]
        pixels, mask = self.pictures(self.held_out, list(index))
        alone = pixels * mask
        rows = self.rows(alone, nouns)
        said = {}
        for name, shift in (("right", 0), ("other", SCENES)):
            other = (rows.roll(shift, 0), alone.roll(shift, 0))
            error, weight = self.errors(clean, noise, t, sentences, *other, mask)
            said[name] = float((error * weight).mean() / weight.mean())
        return said

    def save(self, folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        """config.json and model.safetensors, as `open_weights` reads them."""
        said = {
            "base": self.base.signature, "base_name": self.base.name, "image_encoder": ENCODER,
            "image_encoder_signature": self.encoder.signature, "background": "drop",
        }  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        plain = {name: tensor.detach().float().cpu().contiguous().clone() for name, tensor in tensors.items()}
        save_tensors(folder / "model.safetensors", plain, {"format": "pt"})
        write_json(folder / "config.json", config | said)
