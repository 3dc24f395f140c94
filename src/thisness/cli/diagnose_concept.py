"""`thisness diagnose concept`: has a learned word lost the meaning of its class?"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from thisness.cli.generate import BaseOption, DeviceOption, DtypeOption
from thisness.errors import UserError


def concept(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A learned or imported concept.")],
    base: BaseOption = "playroom-sd",
    anchor: Annotated[str, typer.Option(metavar="WORD", help="The class word; the concept's noun by default.")] = "",
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Your own sentences, one a line, each with the class word or {subject} once."
        ),
    ] = None,
    simple: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The same for sentences that only show the subject.")
    ] = None,
    count: Annotated[int, typer.Option(min=8, max=5000, help="Built-in sentences of each kind.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of the built-in sentences.")] = 0,
    pool: Annotated[
        str, typer.Option(help="What stands for a sentence: eos (its end mark), last (position), mean (of its words).")
    ] = "eos",
    temperature: Annotated[float | None, typer.Option(help="Of the KL distance; 0.07 by default.")] = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="As the paper's code: last position, KL at 1, each set's own covariance.")
    ] = False,
    other_base: Annotated[
        bool, typer.Option("--other-base", help="Use a concept on another model of its family, e.g. a finetune.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="For the page, the picture and the numbers; collapse/NAME.")
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
) -> None:
    """Show whether, when and how far a concept's word has collapsed: whether what stands around it is still read.

    Compares sentences with the word with the same sentences with its class word on the untouched base, and norm and
    angle of the word's rows with the vocabulary. `learn --track-collapse` records how it came about. Writes a page
    (collapse.html), a picture of it (collapse.png) and the numbers (collapse.json), and says the verdict.
    """
    if out is not None and out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file: name a folder")
    if temperature is not None and temperature <= 0:
        raise UserError(f"--temperature {temperature}: must be above 0")

    from thisness.concept import Concept

    learned = Concept.load(folder)
    noun = " ".join((anchor or learned.noun).split())

    from thisness.diagnostics.collapse_prompts import read_prompts

    context = read_prompts(prompts, noun) if prompts is not None else []
    shown = read_prompts(simple, noun) if simple is not None else []

    from thisness.cli.loading import open_base
    from thisness.diagnostics.collapse_experiment import diagnose_collapse

    loaded = open_base(base, device, dtype)
    learned.check_base(loaded, other_weights=other_base)
    with closing(_Bar()) as bar:
        found = diagnose_collapse(
            loaded,
            learned,
            anchor=noun,
            folder=folder,
            context=context,
            simple=shown,
            count=count,
            seed=seed,
            pool=pool,  # type: ignore[arg-type]
            temperature=temperature,
            paper=paper,
            done=bar,
        )
    for path in found.save(out if out is not None else Path("collapse") / learned.name):
        typer.echo(f"{path}")
    for note in found.notes:
        typer.echo(f"note: {note}")
    for sentence in found.sentences:
        typer.echo(sentence)
    typer.echo(found.conclusion)


class _Bar:
    """Counts sentences on stderr, from the first one on: input that is refused has one line."""

    def __init__(self) -> None:
        self.bar: Any = None

    def __call__(self, number: int) -> None:
        if self.bar is None:
            from tqdm import tqdm

            self.bar = tqdm(desc="encoding", unit=" sentences", dynamic_ncols=True)
        self.bar.update(number)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
