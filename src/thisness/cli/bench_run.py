"""`thisness bench run`: make and score the pictures of a benchmark, resumable."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from thisness.cli.generate import BaseOption, DeviceOption
from thisness.cli.options import parse_seeds, program
from thisness.errors import ThisnessError, UserError


def run(
    benchmark: Annotated[str, typer.Argument(help="playroom, dreambench, dreambench++, ... or a folder's loader.")],
    recipes: Annotated[
        list[str],
        typer.Option(
            metavar="NAMES",
            help="base,dreambooth-lora:steps=200+tea:alpha=0.2;LABEL=... : methods, settings, parts; repeatable.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="The run's folder; typed again, the run goes on.")],
    size: Annotated[str | None, typer.Option(help="smoke, small or full, where the benchmark has sizes.")] = None,
    folder: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where your copy of the benchmark lies.")
    ] = None,
    subjects: Annotated[str, typer.Option(metavar="NAMES", help="Only these subjects, separated by commas.")] = "",
    families: Annotated[str, typer.Option(metavar="NAMES", help="Only these families of prompts: pose,style.")] = "",
    seeds: Annotated[str, typer.Option(help="Seeds and ranges instead of the benchmark's: 0-3,7.")] = "",
    base: BaseOption = "playroom-sd",
    metrics: Annotated[
        str, typer.Option(metavar="NAMES", help="A preset or metrics, by commas; the benchmark's preset by default.")
    ] = "",
    judge: Annotated[
        list[str] | None, typer.Option(help="oracle, openai:model=..., transformers:..., proxy; repeatable.")
    ] = None,
    masker: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Finds the subject in made pictures: playroom (its default), a SAM or CLIPSeg, none."
        ),
    ] = None,
    sampling: Annotated[
        str, typer.Option(metavar="KEY=VALUE,...", help="Of the sampler, for all recipes: steps=10,guidance=3.")
    ] = "",
    batch_size: Annotated[int, typer.Option(min=1, max=1024, help="Pictures made at once.")] = 4,
    engine: Annotated[str, typer.Option(help="local, ray, or ray=ADDRESS of a cluster.")] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Processes with a model each; one a core or accelerator.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, max=256, help="Of each worker on the CPU; decides the last bits.")] = 1,
    extend: Annotated[
        bool, typer.Option("--extend", help="Keep what FOLDER has, and add more recipes, subjects, prompts or seeds.")
    ] = False,
    stop_after: Annotated[
        float | None, typer.Option(min=0.0, metavar="SECONDS", help="Stop then; the same command goes on.")
    ] = None,
    device: DeviceOption = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Make and score every picture: recipes x subjects x prompts x seeds.

    Goes on where it was stopped or killed when the same is typed again: nothing is lost, nothing done twice. Exit code
    1 where some pictures could not be made or scored; the others are there, and the same command tries again.
    """
    from thisness.evaluation.recipes import parse_recipes, split_recipes
    from thisness.recipe import parse_spec

    parsed = parse_recipes(recipes)
    numbers = parse_seeds(seeds) if seeds else ()
    settings = parse_spec(f"sampling:{sampling}", "sampling").values if sampling else {}

    from thisness.cli.loading import DTYPES, choose_device
    from thisness.evaluation.finishing import failed_lines
    from thisness.evaluation.runner import run_benchmark

    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    chosen = choose_device(device)
    try:
        finished = run_benchmark(
            benchmark,
            parsed,
            out,
            base=base,
            device=chosen,
            dtype=dtype,
            engine=engine,
            workers=workers if workers is not None else _workers(chosen, threads),
            threads=threads,
            metrics=split_recipes([metrics]) or None,
            judges=judge or (),
            masker=masker,
            folder=folder,
            size=size,
            subjects=_names(subjects),
            families=_names(families),
            seeds=numbers,
            batch_size=batch_size,
            sampling=settings,
            extend=extend,
            stop_after=stop_after,
            command=shlex.join([*program().split(), *sys.argv[1:]]) if sys.argv[1:2] == ["bench"] else "",
        )
    except KeyboardInterrupt:
        _stopped(out)
    for line in finished.summary:
        typer.echo(line)
    problems = [*failed_lines(finished.failures), *finished.problems]
    for line in [*problems, *finished.notes][:20]:
        typer.echo(line, err=True)
    if len(problems) + len(finished.notes) > 20:
        typer.echo(f"and {len(problems) + len(finished.notes) - 20} more", err=True)
    if not finished.whole:
        raise ThisnessError(
            f"{sum(finished.failures.values())} pictures not made, {len(finished.problems)} scorings failed "
            f"(listed above); the others are in {out}; the same command tries these again"
        )
    typer.echo(f"{out}: {program()} bench report {out}")


def _stopped(out: Path) -> NoReturn:
    """Ctrl-C or SIGTERM: one line, and the exit code that says which."""
    from thisness import cli
    from thisness.methods.registry import Stopped

    stopped = Stopped(f"stopped; what was made is in {out}: the same command goes on from there")
    stopped.exit_code = 143 if cli._terminated else 130  # type: ignore[misc]
    raise stopped from None


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _workers(device: str, threads: int) -> int:
    """One for each accelerator, or as many as the cores carry."""
    import os

    import torch

    if device.split(":")[0] != "cpu":
        return max(torch.accelerator.device_count(), 1) if ":" not in device else 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores // threads, 8))
