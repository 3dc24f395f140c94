"""`thisness demo`: the main job, on the embedded models: four pictures of a toy in, a sheet of new scenes out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thisness.cli.generate import BaseOption, DeviceOption
from thisness.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from thisness.bases import Base
    from thisness.concept import Concept
    from thisness.subject import Subject

METHOD = "dreambooth-lora"
CREATURE_SCENES = (  # pose, place, sentence: twelve, since up to four may be what the references show
    ("sleeping", "beach", "a {subject} sleeping on the beach"),
    ("jumping", "snow", "a {subject} jumping in the snow"),
    ("sitting", "forest", "a {subject} sitting wearing a red hat in the forest"),
    ("running", "grass", "a {subject} running with a blue ball on the grass"),
    ("waving", "night", "a {subject} waving at night"),
    ("standing", "kitchen", "a {subject} standing wearing glasses in the kitchen"),
    ("sitting", "city", "a {subject} sitting with a guitar in the city"),
    ("standing", "mountains", "a {subject} standing wearing a blue scarf in the mountains"),
    ("waving", "desert", "a {subject} waving wearing a yellow hat in the desert"),
    ("sleeping", "living room", "a {subject} sleeping with a book in the living room"),
    ("running", "beach", "a {subject} running on the beach"),
    ("sitting", "snow", "a {subject} sitting wearing a red scarf in the snow"),
)
THING_SCENES = (
    ("upright", "beach", "a {subject} on the beach"),
    ("tilted", "snow", "a {subject} tilted in the snow"),
    ("upside down", "forest", "a {subject} upside down in the forest"),
    ("upright", "grass", "a {subject} with a blue ball on the grass"),
    ("tilted", "night", "a {subject} tilted at night"),
    ("upright", "kitchen", "a {subject} with a book in the kitchen"),
    ("upside down", "city", "a {subject} upside down in the city"),
    ("upright", "mountains", "a {subject} with a red balloon in the mountains"),
    ("tilted", "desert", "a {subject} tilted in the desert"),
    ("upright", "living room", "a {subject} with a guitar in the living room"),
    ("tilted", "beach", "a {subject} tilted on the beach"),
    ("upside down", "snow", "a {subject} upside down in the snow"),
)
SCENES = 8
QUICK: dict[str, Any] = {"steps": 2, "prior_pictures": 0}
QUICK_SCENES, QUICK_SAMPLING = 2, 2
TILE = 256  # side of a picture on the sheet, in pixels


def demo(
    out: Annotated[Path, typer.Option(help="Folder for all that it makes.")] = Path("demo"),
    toy: Annotated[str, typer.Option(help="A held-out toy: rufus, mimi, bruno, hazel ...")] = "rufus",
    seed: Annotated[int, typer.Option(min=0, help="Of the learning and of the pictures.")] = 0,
    base: BaseOption = "playroom-sd",
    quick: Annotated[bool, typer.Option("--quick", help="Two steps, two scenes: only to see that it runs.")] = False,
    device: DeviceOption = "auto",
) -> None:
    """Show the main job: learn one toy from four pictures, and draw it in new scenes.

    No model was trained on the toy. Writes a sheet with the reference pictures at the left and the new scenes beside
    them. A call that was cut short goes on where it was; what is done is not done again.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file: name a folder")
    from thisness.playroom.subjects import held_out_identity, subject_index, write_subject

    started = time.monotonic()
    index = subject_index(toy)
    noun = held_out_identity(index).noun
    _say(f"1/4 four pictures of {toy}, a toy {noun} that no model was trained on: {out / 'references'}")
    write_subject(out / "references", index)

    _say(f"2/4 loading {base}")
    from thisness.cli.loading import open_base
    from thisness.methods import learn
    from thisness.subject import Subject

    subject = Subject.from_folder(out / "references", noun=noun, name=toy)
    loaded = open_base(base, device, None)

    _say(f"3/4 learning {toy} by {METHOD}: {out / 'concept'}")
    concept = learn(METHOD, subject, loaded, folder=out / "concept", seed=seed, **(QUICK if quick else {}))

    scenes = new_scenes(index)[: QUICK_SCENES if quick else SCENES]
    _say(f"4/4 drawing {toy} in {len(scenes)} new scenes: {out / 'scenes'}")
    pictures = _draw(loaded, concept, scenes, seed, QUICK_SAMPLING if quick else None, out / "scenes")
    path = out / "sheet.png"
    _write_sheet(path, subject, scenes, pictures)
    _say(f"done in {time.monotonic() - started:.0f} s")
    typer.echo(f"{path}")


def new_scenes(index: int) -> list[str]:
    """Sentences for held-out toy number `index`, none of them a scene of its reference pictures; new places first."""
    from thisness.playroom.subjects import reference_scenes
    from thisness.playroom.world import THINGS

    references = reference_scenes(index)
    seen = {(scene.subject.pose, scene.background) for scene in references}
    places = {scene.background for scene in references}
    choices = THING_SCENES if references[0].subject.identity.noun in THINGS else CREATURE_SCENES
    new = [(place in places, sentence) for pose, place, sentence in choices if (pose, place) not in seen]
    return [sentence for _, sentence in sorted(new, key=lambda choice: choice[0])]


def _say(text: str) -> None:
    """Progress goes to the error stream; the standard one has only the path of the sheet."""
    typer.echo(text, err=True)


def _draw(
    base: Base, concept: Concept, scenes: Sequence[str], seed: int, steps: int | None, folder: Path
) -> list[Image]:
    """One picture of each scene; those that an earlier call left in the folder are taken as they are."""
    from tqdm import tqdm

    from thisness.generation import generate
    from thisness.images import save_png
    from thisness.sampling import SamplingOptions

    pictures = []
    for number, scene in enumerate(tqdm(scenes, desc="drawing", unit="picture", dynamic_ncols=True, disable=None)):
        path = folder / f"{number:02d}.png"
        picture = _drawn_already(path, base, concept, scene, seed, steps)
        if picture is None:
            made = generate(base, scene, concept=concept, seeds=(seed,), options=SamplingOptions(steps=steps))
            picture = made.images[0]
            save_png(picture, path, {**made.record, "index": 0})
        pictures.append(picture)
    return pictures


def _drawn_already(path: Path, base: Base, concept: Concept, scene: str, seed: int, steps: int | None) -> Image | None:
    """The picture of an earlier call, if it is whole and was made of the very same."""
    from thisness.generation import pixel_hash
    from thisness.images import load_image, read_record

    if not path.is_file():
        return None
    try:
        record, picture = read_record(path) or {}, load_image(path)
        same = (
            record["prompt"] == scene
            and record["seeds"] == [seed]
            and record["base"]["signature"] == base.signature
            and record["concepts"]["subject"]["hash"] == concept.hash
            and record["recipe"]["sampling"]["steps"] == (steps or base.steps)
            and record["images"][0]["sha256"] == pixel_hash(picture)
        )
    except (UserError, KeyError, IndexError, TypeError):
        return None
    return picture if same else None


def _write_sheet(path: Path, subject: Subject, scenes: Sequence[str], pictures: Sequence[Image]) -> None:
    """References at the left, new scenes at the right, each under its sentence."""
    from PIL.Image import Resampling

    from thisness.images import Tile, grid, save_png, sheet

    name = subject.name.capitalize()
    tiles = [
        Tile(picture.resize((TILE, TILE), Resampling.LANCZOS), scene.replace("a {subject}", name))
        for scene, picture in zip(scenes, pictures, strict=True)
    ]
    page = sheet(
        grid(tiles, 4),
        references=[picture.resize((TILE, TILE), Resampling.LANCZOS) for picture in subject.images],
        heading=f"This is {name}",
        title=f"Left: the only pictures of {name}, a toy {subject.noun}, that the model was shown. "
        "Right: the same toy in new scenes, drawn from the sentences.",
        tile=TILE,
    )
    save_png(page, path)
