"""Runs of the zero-shot experiments: recipes with weights of one's own, pictures of a run, a trade-off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pages import save_figure

if TYPE_CHECKING:
    from thisness.evaluation.items import Scored
    from thisness.evaluation.results import Run
    from thisness.images import Tile

ROOT = Path(__file__).resolve().parent.parent


def spec(method: str, weights: Path | None = None, **settings: Any) -> str:
    """A method as a recipe says it; weights: a folder that has one for the method, else the embedded ones are used."""
    if weights is not None and (weights / method).is_dir():
        settings = {**settings, "weights": f'"{(weights / method).resolve()}"'}
    said = ",".join(f"{name}={value}" for name, value in settings.items())
    return f"{method}:{said}" if said else method


def bench(
    out: Path, size: str, asked: Mapping[str, str], *, subjects: str = "", seeds: str = "", families: str = "",
    judge: str = "oracle", sampling: str = "", workers: int = 2, base: str = "playroom-sd",
    benchmark: str = "playroom", folder: str = "", metrics: str = "", masker: str = "",
) -> int:  # fmt: skip
    """One run of `thisness bench run`; 0 or 1 (some pictures could not be made): something is to be read.

    benchmark, folder: whose pictures and sentences, and where the user's copy lies; sizes are the Playroom's.
    """
    from thisness.cli import run as thisness

    words = ["bench", "run", benchmark, "--extend", "--out", str(out), "--workers", str(workers), "--base", base]
    words += ["--recipes", ";".join(f"{label}={recipe}" for label, recipe in asked.items())]
    said = {
        "size": size if benchmark == "playroom" else "", "folder": folder, "judge": judge, "metrics": metrics,
        "masker": masker, "subjects": subjects, "seeds": seeds, "families": families, "sampling": sampling,
    }  # fmt: skip
    for name, value in said.items():
        words += [f"--{name}", value] if value else []
    return thisness(words)


def read(folder: Path) -> Run | None:
    """A run, if there is one."""
    from thisness.evaluation.results import read_run

    return read_run(folder) if (folder / "run.json").is_file() else None


def sampling_of(text: str) -> Any:
    """Options of the sampler from "steps=10,guidance=3"."""
    from thisness.recipe import parse_spec
    from thisness.sampling import SamplingOptions

    given: dict[str, Any] = dict(parse_spec(f"sampling:{text}", "sampling").values) if text else {}
    return SamplingOptions(**given)


def opened(path: Path) -> Any:
    from PIL import Image

    return Image.open(path).convert("RGB")


def sheet_of(
    run: Run, rows: Mapping[str, Sequence[Scored]], labels: Sequence[str], path: Path, title: str, toys: int = 6
) -> list[str]:
    """For some toys the reference and one sentence by each recipe, with the run's first seed; lines of Markdown."""
    from thisness.images import Tile, sheet

    seed = min(run.benchmark["seeds"])
    grid: list[list[Tile]] = []
    names = list(run.references)
    for name in names[:: max(1, len(names) // toys)][:toys]:
        found = {label: [r for r in rows.get(label, ()) if r.subject == name and r.seed == seed] for label in labels}
        cases = [row.case for label in labels for row in found[label] if row.image]
        if not cases:
            continue
        chosen = {label: next((r for r in found[label] if r.case == cases[0] and r.image), None) for label in labels}
        said = next(row.sentence for row in chosen.values() if row is not None)
        line = [Tile(opened(run.references[name][0]), said)]
        grid.append(
            line
            + [
                Tile(opened(row.image), label.removeprefix(f"{labels[0]}-"))
                for label, row in chosen.items()
                if row and row.image
            ]
        )
    if grid:
        save_figure(sheet(grid, title=title, tile=128), path)
    return link(title, path) if grid else []


def tradeoff(
    rows: Mapping[str, Sequence[Scored]], labels: Sequence[str], path: Path, across: tuple[str, str],
    up: tuple[str, str], *, joined: bool = False,
) -> list[str]:  # fmt: skip
    """The report's own picture: (metric, title) across and up, the front dashed; joined: values of one knob."""
    from thisness.evaluation.report.figures import Mark, scatter
    from thisness.evaluation.statistics import estimate, front

    there = [label for label in labels if rows.get(label)]
    if not there:
        return []
    found = {label: (estimate(rows[label], across[0]), estimate(rows[label], up[0])) for label in there}
    best = set(front({label: (x.mean, y.mean) for label, (x, y) in found.items()}))
    marks = [Mark(label, x, y, label in best) for label, (x, y) in found.items()]
    save_figure(scatter(marks, across[1], up[1], path=joined).image(), path)
    return link(f"{up[1]} against {across[1]}", path)


def link(title: str, path: Path) -> list[str]:
    """Lines of Markdown that show a picture in the page's own folder."""
    return [f"![{title}]({path.parent.name}/{path.name})", ""]


def table(rows: Mapping[str, Sequence[Scored]], labels: Sequence[str], metrics: Sequence[tuple[str, str]]) -> list[str]:
    """A row for each recipe: means over toys with their intervals; metrics: (title, name)."""
    from pages import cell

    lines = ["| | " + " | ".join(title for title, _ in metrics) + " | pictures |", "|---" * (len(metrics) + 2) + "|"]
    for label in labels:
        if rows.get(label):
            cells = " | ".join(cell(rows[label], None, metric) for _, metric in metrics)
            lines.append(f"| {label} | {cells} | {sum(row.image is not None for row in rows[label])} |")
    return lines


def differences(
    rows: Mapping[str, Sequence[Scored]], pairs: Sequence[tuple[str, str]], metrics: Sequence[tuple[str, str]]
) -> list[str]:
    """A row for each pair of recipes: how much higher the first is on the same toys, sentences and seeds."""
    from pages import compared

    lines = ["| | " + " | ".join(title for title, _ in metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
    for one, other in pairs:
        if rows.get(one) and rows.get(other):
            cells = " | ".join(compared(rows[one], rows[other], None, metric) for _, metric in metrics)
            lines.append(f"| {one} - {other} | {cells} |")
    return lines
