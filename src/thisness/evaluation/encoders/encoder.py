"""One object for every encoder: pictures, patches and sentences to vectors, and what decides them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ...errors import ConfigurationError, ThisnessError, UserError, nearest
from .families import Family, Features
from .preprocessing import Preprocessing

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

What = Literal["images", "patches", "text"]


class Encoder:
    """A vision model, perhaps with a text side, that turns what it is given into vectors.

    Made by `open_encoder`. All vectors come back float32, on the CPU, as the model gives them: not normalised.

    Args:
        model: of transformers, on its device.
        family: how to ask it.
        preprocessing: of pictures.
        pooling: one of the family's.
        source: JSON: model, revision, weights, kind.
        tokenizer: of its text side; None without one.
        batch_size: pictures at once.

    Attributes:
        identity: JSON: all that decides a picture's vector: model, revision, hash of the weights, preprocessing,
            pooling, precision. Not the device: its arithmetic differs in the last digits only.
    """

    def __init__(
        self, model: Any, family: Family, preprocessing: Preprocessing, pooling: str | None, source: Mapping[str, Any],
        tokenizer: Any = None, batch_size: int = 16,
    ) -> None:  # fmt: skip
        pooling = pooling or family.poolings[0]
        if pooling not in family.poolings:
            raise ConfigurationError(
                f"{source['model']} has no pooling {pooling!r}{nearest(pooling, family.poolings)}: "
                f"it has {', '.join(family.poolings)}"
            )
        self.model, self.family, self.preprocessing, self.pooling = model, family, preprocessing, pooling
        self.tokenizer, self.batch_size = tokenizer, batch_size
        self.identity: dict[str, Any] = {
            **source,
            "preprocessing": preprocessing.to_dict(),
            "pooling": pooling,
            "precision": "float32",
        }

    @property
    def name(self) -> str:
        return str(self.identity["model"])

    @property
    def has_text(self) -> bool:
        return self.tokenizer is not None

    def identity_of(self, what: What) -> dict[str, Any]:
        """What decides the vectors of pictures, patches, or sentences."""
        said = {**self.identity, "what": what}
        if what != "images":
            said.pop("pooling")
        if what == "text":
            said.pop("preprocessing")
        return said

    def images(self, pictures: Sequence[Image.Image]) -> Tensor:
        """(n, d), one vector a picture."""
        return self._encoded(pictures, patches=False)[0]

    def patches(self, pictures: Sequence[Image.Image]) -> tuple[Tensor, tuple[int, int]]:
        """Patch tokens (n, h * w, e) of the last hidden state, row by row, and (h, w)."""
        _, patches, grid = self._encoded(pictures, patches=True)
        return patches, grid

    def images_and_patches(self, pictures: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """Both of one pass: (n, d) and (n, h * w, e)."""
        return self._encoded(pictures, patches=True)[:2]

    def coverage(self, masks: Sequence[np.ndarray], grid: tuple[int, int]) -> np.ndarray:
        """How much of each patch a mask covers.

        Args:
            masks: (H, W) in [0, 1], each of its own size.
            grid: (h, w) as given by `patches`.

        Returns:
            (n, h * w) float32 in [0, 1].
        """
        rows = []
        for mask in masks:
            placed = self.preprocessing.mask(mask)
            height, width = placed.shape[0] // grid[0] * grid[0], placed.shape[1] // grid[1] * grid[1]
            blocks = placed[:height, :width].reshape(grid[0], height // grid[0], grid[1], width // grid[1])
            rows.append(blocks.mean((1, 3)).ravel())
        return np.stack(rows).astype(np.float32)

    def check_text(self, sentences: Sequence[str]) -> None:
        """Refuse what the text side cannot take, without encoding it.

        Raises:
            UserError: there is no text side.
            PromptError: a sentence is too long (what would be cut is shown) or cannot be read.
        """
        self._tokens(sentences)

    def text(self, sentences: Sequence[str]) -> Tensor:
        """(n, d), comparable with `images` where the pooling is "projected".

        Raises: as `check_text`.
        """
        import torch

        ids, mask = self._tokens(sentences)
        parts = []
        with torch.no_grad():
            for start in range(0, len(ids), self.batch_size):
                rows = slice(start, start + self.batch_size)
                device = self.model.device
                parts.append(self.family.text(self.model, ids[rows].to(device), mask[rows].to(device)).float().cpu())
        return self._finite(torch.cat(parts), "sentences")

    def _tokens(self, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
        import torch

        from ...prompt import FilledPrompt, clean_text

        if self.tokenizer is None:
            raise UserError(
                f"{self.name} has no text side: for clip-t give an encoder that compares pictures with text, "
                "as clip-b32, clip-l14 or playroom-clip"
            )
        limit = self.family.text_length(self.model)
        spans = [
            FilledPrompt.plain(clean_text(each, "the sentence")).tokenize(self.tokenizer, limit) for each in sentences
        ]
        mask = [[int(role != "pad") for role in span.roles] for span in spans]
        return torch.tensor([span.ids for span in spans]), torch.tensor(mask)

    def _encoded(self, pictures: Sequence[Image.Image], patches: bool) -> tuple[Tensor, Tensor, tuple[int, int]]:
        import torch

        if not pictures:
            raise ValueError("no pictures to encode")
        vectors, tokens, grid = [], [], (0, 0)
        with torch.no_grad():
            for start in range(0, len(pictures), self.batch_size):
                pixels = self.preprocessing(pictures[start : start + self.batch_size])
                said = self.family.features(self.model, pixels.to(self.model.device))
                vectors.append(self._pooled(said).float().cpu())
                grid = said.grid
                if patches:
                    tokens.append(said.tokens[:, said.prefix :].float().cpu())
        images = self._finite(torch.cat(vectors), "pictures")
        return images, self._finite(torch.cat(tokens), "patches") if patches else images, grid

    def _pooled(self, said: Features) -> Tensor:
        if self.pooling == "projected":
            assert said.pooled is not None, "families with this pooling have it"
            return said.pooled
        if self.pooling == "cls":
            return said.tokens[:, 0]
        return said.tokens[:, said.prefix if self.pooling == "patches" else 0 :].mean(1)

    def _finite(self, values: Tensor, what: str) -> Tensor:
        if not bool(values.isfinite().all()):
            raise ThisnessError(f"{self.name} gives NaN or infinity for {what}: its weights are damaged")
        return values


def fingerprint(identity: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that differ wherever two identities do."""
    text = json.dumps(identity, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
