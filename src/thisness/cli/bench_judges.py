"""`thisness bench ratings`, `agreement`, `fit-proxy`: what ratings say, whether raters agree, what a metric knows."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thisness.errors import UserError

if TYPE_CHECKING:
    from thisness.evaluation.judges.raters import Rater
    from thisness.evaluation.results import Run

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The folder that `bench run --out` wrote.")]
ColumnOption = Annotated[str, typer.Option(help="Of the files of ratings: cp or pf.")]
JsonOption = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write it as JSON, too.")]


def ratings(
    file: Annotated[Path, typer.Argument(help="JSON Lines: id, column, category, kind, pass, score.")],
    passes: Annotated[int | None, typer.Option(min=1, help="Of each picture; the most there are by default.")] = None,
    json_out: JsonOption = None,
) -> None:
    """Print the table of DreamBench++ for a file of ratings: CP, PF, by category and kind, and CP x PF."""
    from thisness.evaluation.judges import krippendorff_alpha, protocol_table, read_recorded

    rated = read_recorded(file)
    table = protocol_table(rated, passes)
    alphas: dict[str, float] = {}
    typer.echo(f"{'column':<8}{'of':<18}{'share':>7}{'pictures':>10}{'failed':>8}")
    for column, overall in table.overall.items():
        groups = {"all": overall, **table.by_category[column], **table.by_kind[column]}
        for name, share in groups.items():
            if name:
                typer.echo(f"{column:<8}{name:<18}{share.mean:>7.3f}{share.pictures:>10}{share.failures:>8}")
        rows = [row.passes for row in rated if row.column == column]
        try:
            most = max(map(len, rows))
            alphas[column] = krippendorff_alpha([[r[n] if n < len(r) else None for r in rows] for n in range(most)])
        except UserError:
            continue  # one pass, or all ratings alike
    if table.product is not None:
        typer.echo(f"CP x PF {table.product:.3f}")
    for column, alpha in alphas.items():
        typer.echo(f"{column}: passes agree by Krippendorff's alpha {alpha:.3f}")
    if json_out:
        from thisness.files import write_json

        write_json(json_out, {**asdict(table), "product": table.product, "alpha of passes": alphas})


def agreement(
    run: RunArgument,
    judge: Annotated[list[str] | None, typer.Option(metavar="COLUMN", help="Of the run: oracle:follow.")] = None,
    ratings: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="Ratings of its pictures.")] = None,
    column: ColumnOption = "pf",
    json_out: JsonOption = None,
) -> None:
    """Say how far raters of a run agree: on pictures (Krippendorff's alpha), and on the recipes' ranks (Kendall)."""
    from thisness.evaluation.judges.raters import agreement as compared
    from thisness.evaluation.results import read_run

    opened = read_run(run)
    found = compared(opened, _raters(opened, judge, ratings, column))
    for name, count in found.pictures.items():
        typer.echo(f"{name}: {count} of {len(opened.scored)} pictures")
    typer.echo(f"Krippendorff's alpha {found.alpha:.3f} over {found.shared} pictures that two or more rated")
    ranks: list[dict[str, Any]] = []
    for (one, other), (tau, recipes) in found.ranks.items():
        said = "no ranking" if tau is None else f"Kendall's tau-b {tau:.3f}"
        typer.echo(f"{one} and {other}: {said} of {recipes} recipes")
        ranks.append({"first": one, "second": other, "tau": tau, "recipes": recipes})
    if json_out:
        from thisness.files import write_json

        write_json(json_out, {**asdict(found), "ranks": ranks})


def fit_proxy(
    run: RunArgument,
    metric: Annotated[str, typer.Option(help="Of the run: dino-i, clip-t, ...")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The map to write, for --judge proxy:map=FILE.")],
    judge: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Its scores: a judge's column of the run ...")
    ] = None,
    ratings: Annotated[
        Path | None, typer.Option(metavar="FILE", help="... or a file of ratings of its pictures.")
    ] = None,
    column: Annotated[str, typer.Option(help="What was rated: cp or pf.")] = "cp",
) -> None:
    """Fit the map from a metric's values to ratings of the same pictures, for the judge `proxy`."""
    if (judge is None) == (ratings is None):
        raise UserError("whose ratings? give --judge COLUMN of the run, or --ratings FILE, one of the two")
    from thisness.evaluation.judges.raters import fitted
    from thisness.evaluation.results import read_run

    opened = read_run(run)
    (rater,) = _raters(opened, [judge] if judge else [], [ratings] if ratings else [], column)
    made = fitted(opened, metric, rater, column)
    made.save(out)
    typer.echo(f"{out}: {metric} to {rater.name}, {made.pairs} pictures, Kendall's tau-b {made.tau:.3f}")


def _raters(run: Run, judges: list[str] | None, files: list[Path] | None, column: str) -> list[Rater]:
    from thisness.errors import nearest
    from thisness.evaluation.judges.protocol import COLUMNS
    from thisness.evaluation.judges.raters import file_of, judge_of

    if column not in COLUMNS:
        raise UserError(f"--column {column!r}{nearest(column, COLUMNS)}: expected {' or '.join(COLUMNS)}")
    return [judge_of(run, name) for name in judges or ()] + [file_of(run, path, column) for path in files or ()]
