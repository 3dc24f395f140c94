"""What a run says, written for people: one HTML file, Markdown with figures, JSON. Nothing here imports torch."""

from __future__ import annotations

from pathlib import Path

from ...errors import UserError
from ...files import write_json, write_text
from ...images import save_png
from . import data, html, markdown
from .content import Report, RunLike, gather
from .figures import Mark, dots, scatter
from .kinds import direction
from .thumbnails import Thumbnails

__all__ = ["Report", "RunLike", "gather", "write_report"]

FOLDER = "report"


def write_report(
    run: str | Path | RunLike, out: str | Path | None = None, *, x: str | None = None, y: str | None = None
) -> list[Path]:
    """Write `report.html`, `report.md` with its figures, and `report.json`.

    Args:
        run: a run's folder, or what `read_run` gave.
        out: where to; the folder `report` inside of the run's by default. Made if need be.
        x, y: metrics of the headline picture, across and up; by default the first of prompt following and the first of
            identity.

    Returns:
        The files: the page first.

    Raises:
        UserError: not a run, nothing measured yet, no such metric.
    """
    if isinstance(run, (str, Path)):
        from ..results import read_run

        out = Path(run) / FOLDER if out is None else out
        run = read_run(run)
    if out is None:
        raise UserError("a run that was not read from a folder needs a folder to write to: out=...")
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file: name a folder")
    report = gather(run, x, y)
    marks = [Mark(e.recipe, e.values[report.x], e.values[report.y], e.front, e.failed) for e in report.recipes]
    lower = [metric for metric, _ in report.sides if direction(report.identities.get(metric, {})) < 0]
    labels = [metric + " (lower is better)" * (metric in lower) for metric in (report.x, report.y)]
    headline = scatter(marks, f"prompt following: {labels[0]}", f"identity: {labels[1]}", stairs=not lower)
    families = None
    if len(report.families) > 1:
        values = [[[pair[side] for pair in found] for _, found in report.families] for _, side in report.sides]
        panels = [metric for metric, _ in report.sides]
        families = dots([name or "no family" for name, _ in report.families], panels, values)
    thumbnails = Thumbnails()
    figures = {"headline.png": headline.image(), "families.png": families.image() if families else None}
    figures["examples.png"] = markdown.example_sheet(report, thumbnails)
    figures["side-by-side.png"] = markdown.gallery_sheet(report, thumbnails)
    written = []
    for name, image in figures.items():
        if image is not None:
            save_png(image, out / name)
            written.append(out / name)
    write_text(out / "report.html", html.page(report, headline, families, thumbnails))
    write_text(out / "report.md", markdown.text(report, [path.name for path in written]))
    write_json(out / "report.json", data.data(report))
    return [out / "report.html", out / "report.md", out / "report.json", *written]
