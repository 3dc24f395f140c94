"""The words of DETEX: one for the subject, and one for the pose and one for the background of each picture.

p_i = M^P(f_i), b_i = M^B(f_i)       `Mapper`, `Mapped`     f_i: features of picture i
T = [v; p_1 ... p_N; b_1 ... b_N]    `WordTable`
p_i - mean_j p_j + start             `WordTable`, where words are centred (not in the paper)
without mapper (an ablation)         `Free`
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

START_SHARE = 0.1  # of the attribute word's norm: how far a mapper's words are from it at first


class Mapper(nn.Module):
    """Three linear layers from an image feature to a word's row.

    Args:
        features: (pictures, size), of length 1; only to scale the last layer at the start.
        start: (width,) the row that all words start near.
        generator: of the random weights.
    """

    def __init__(self, features: Tensor, start: Tensor, generator: torch.Generator) -> None:
        super().__init__()
        size, width = features.shape[1], len(start)
        layers: list[nn.Module] = []
        for wide in (size, width):
            layers += [nn.Linear(wide, width), nn.LayerNorm(width), nn.LeakyReLU()]
        self.trunk = nn.Sequential(*layers)
        self.last = nn.Linear(width, width)
        with torch.no_grad():
            for linear in (each for each in self.modules() if isinstance(each, nn.Linear)):
                bound = linear.in_features**-0.5  # as nn.Linear draws them
                for parameter in (linear.weight, linear.bias):
                    parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2 - 1) * bound)
            moved = F.linear(self.trunk(scaled(features)), self.last.weight).norm(dim=1).mean()
            self.last.weight.mul_(START_SHARE * start.norm() / moved.clamp(min=1e-8))
            self.last.bias.copy_(start)

    def forward(self, features: Tensor) -> Tensor:
        """features: (pictures, size) -> rows (pictures, width)."""
        return self.last(self.trunk(scaled(features)))


def scaled(features: Tensor) -> Tensor:
    """Of length sqrt(size), so that coordinates are about 1. features: (pictures, size)."""
    return F.normalize(features, dim=-1) * features.shape[-1] ** 0.5


class Mapped(nn.Module):
    """Rows of all pictures, computed by one mapper, or by a mapper for each.

    Args:
        features: (pictures, size).
        mappers: one, or as many as pictures.
    """

    features: Tensor

    def __init__(self, features: Tensor, mappers: Sequence[Mapper]) -> None:
        super().__init__()
        self.register_buffer("features", features, persistent=False)
        self.mappers = nn.ModuleList(mappers)

    def forward(self) -> Tensor:
        """(pictures, width)."""
        if len(self.mappers) == 1:
            return self.mappers[0](self.features)
        return torch.cat([mapper(self.features[i : i + 1]) for i, mapper in enumerate(self.mappers)])


class Free(nn.Module):
    """Rows that are trained themselves. start: (width,); the first ones differ a little, as a mapper's do."""

    def __init__(self, pictures: int, start: Tensor, generator: torch.Generator) -> None:
        super().__init__()
        noise = torch.randn(pictures, len(start), generator=generator)
        self.rows = nn.Parameter(start + START_SHARE * start.norm() * F.normalize(noise, dim=1))

    def forward(self) -> Tensor:
        """(pictures, width)."""
        return self.rows


class WordTable(nn.Module):
    """All rows of a text encoder, computed anew whenever they are read, always in float32.

    Args:
        word: (1, width), the subject's.
        parts: what gives the rows of an attribute, in the order of their tokens.
        centres: for each part the (width,) row that the mean of its rows is held at; () leaves it free. What all
            pictures share then has no place but in the subject's word.
    """

    def __init__(self, word: nn.Parameter, parts: Sequence[nn.Module], centres: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.word, self.parts = word, nn.ModuleList(parts)
        self.centres = centres

    def forward(self) -> Tensor:
        """(1 + attributes * pictures, width)."""
        with torch.autocast(self.word.device.type, enabled=False):
            rows = [part() for part in self.parts]
            if self.centres:
                rows = [own - own.mean(0) + at.to(own) for own, at in zip(rows, self.centres, strict=True)]
            return torch.cat([self.word, *rows])
