"""`thisness demo`: the main job, on the embedded models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from thisness.cli.generate import BaseOption, DeviceOption

if TYPE_CHECKING:
    pass

CREATURE_SCENES = (
    "a {subject} sleeping on the beach",
    "a {subject} jumping in the snow",
    "a {subject} sitting wearing a red hat in the forest",
    "a {subject} running with a blue ball on the grass",
    "a {subject} waving at night",
    "a {subject} standing wearing glasses in the kitchen",
    "a {subject} sitting with a guitar in the city",
    "a watercolour of a {subject} standing in the mountains",
)
THING_SCENES = (
    "a {subject} on the beach",
    "a {subject} tilted in the snow",
    "a {subject} upside down in the forest",
    "a {subject} with a blue ball on the grass",
    "a {subject} at night",
    "a {subject} with a book in the living room",
    "a {subject} tilted in the city",
    "a watercolour of a {subject} in the mountains",
)
METHOD = "dreambooth-lora"


def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for the references, the concept, the pictures and the sheet.")
    ] = Path("demo"),
    toy: Annotated[str, typer.Option(help="Which held-out toy: rufus, mimi, bruno, hazel ...")] = "rufus",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the learning and of the pictures.")] = 0,
    base: BaseOption = "playroom-sd",
    quick: Annotated[
        bool, typer.Option("--quick", help="Two learning steps, two scenes: only to see that it runs.")
    ] = False,
    device: DeviceOption = "auto",
) -> None:
    """Show the main job: learn one toy from four pictures, and draw it in new scenes.

    No model was trained on the toy. Writes a sheet with the reference pictures at the left and the new scenes beside
    them. A call that was cut short goes on where it was; what is done already is not done again.
    """
