"""Pictures and the record that replays them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ..files import write_json
from ..images import Tile, grid, save_png, sheet


@dataclass
class Generation:
    """What `generate` made.

    Attributes:
        images: one RGB picture for each seed.
        record: JSON data from which `replay` makes them again.
        references: pictures of the subject, for the sheet.
        differences: of a replay: what is not as it was, in clear sentences; () if all is.
        stages: for each picture those on the way to it, where the method has such (EZIGen's loops); () if it has none.
    """

    images: list[Image.Image]
    record: dict[str, Any]
    references: tuple[Image.Image, ...] = ()
    differences: tuple[str, ...] = field(default=())
    stages: tuple[list[Image.Image], ...] = ()

    def save(self, folder: str | Path) -> list[Path]:
        """Write each picture as a PNG that carries its record, `record.json` and `sheet.png`.

        Files of the same names are replaced, others left alone.

        Args:
            folder: made if need be.

        Returns:
            The paths of the pictures.

        Raises:
            UserError: a file is where the folder should be.
            OSError: it cannot be written.
        """
        folder = Path(folder)
        digits = max(3, len(str(len(self.images) - 1)))
        paths = []
        for index, (image, seed) in enumerate(zip(self.images, self.record["seeds"], strict=True)):
            path = folder / f"{index:0{digits}d}-seed-{seed}.png"
            save_png(image, path, {**self.record, "index": index})
            paths.append(path)
        write_json(folder / "record.json", self.record)
        save_png(self.sheet(), folder / "sheet.png")
        return paths

    def sheet(self, *, columns: int | None = None, tile: int = 192) -> Image.Image:
        """All pictures on one page, the references at the left.

        Args:
            columns: pictures in a row; up to four by default.
            tile: side of a picture on the page, in pixels.
        """
        columns = columns or min(4, max(math.ceil(math.sqrt(len(self.images))), 2))
        tiles = [Tile(image, f"seed {seed}") for image, seed in zip(self.images, self.record["seeds"], strict=True)]
        return sheet(grid(tiles, columns), references=self.references, title=self.record["prompt"], tile=tile)

    def stages_sheet(self, *, tile: int = 192) -> Image.Image:
        """The pictures on the way to each, a row for each seed."""
        rows = [[Tile(image, f"loop {n}") for n, image in enumerate(stages)] for stages in self.stages]
        labels = [f"seed {seed}" for seed in self.record["seeds"]]
        return sheet(rows, references=self.references, title=self.record["prompt"], row_labels=labels, tile=tile)
