"""The common table: recipes on `playroom small`, made, scored and written to docs/results/playroom.md.

    .venv/bin/python benchmarks/results.py            goes on where it was stopped

Two runs, on the embedded Stable Diffusion and on the embedded FLUX, read as one: same toys, sentences, seeds. The runs
themselves (pictures, concepts, scores) stay in --run and RUN-flux; what a reader of the repository needs, the
table and its figures, goes to docs/results/.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from pages import save_figure
from PIL import Image

RECIPES = {
    "base": "base",
    "textual-inversion": "textual-inversion",
    "textual-inversion-tea": "textual-inversion+tea",
    "dreambooth-lora": "dreambooth-lora",
    "custom-diffusion": "custom-diffusion",
    "custom-diffusion-tea": "custom-diffusion+tea",
    "ip-adapter": "ip-adapter",
    "ip-adapter-harmonizing": "ip-adapter+harmonizing",
    "ip-adapter-plus": "ip-adapter-plus",
    "elite": "elite",
    "blip-diffusion": "blip-diffusion",
    "ezigen": "ezigen",
}
"""By label. Not among them yet: dreambooth and detex, which learn for minutes a toy."""
FLUX_RECIPES = {"flux-base": "base", "ominicontrol": "ominicontrol", "aligngen": "aligngen"}
"""On the embedded FLUX: a run of its own beside the other."""
SHEETS = ("examples", "side-by-side")
ROOT = Path(__file__).resolve().parent.parent


def publish(runs: Sequence[Path], page: Path) -> list[Path]:
    """Write the runs' report as a Markdown page, its figures in a folder of the page's name beside it."""
    from thisness.evaluation.joining import joined
    from thisness.evaluation.report import write_report
    from thisness.evaluation.results import read_run
    from thisness.files import directory, write_text

    with tempfile.TemporaryDirectory() as temporary:
        written = write_report(joined([read_run(run) for run in runs]), temporary, x="oracle:follow", y="dino-i")
        figures = [path for path in written if path.suffix == ".png"]
        text = next(path for path in written if path.suffix == ".md").read_text()
        names = {path: f"{path.stem}.webp" if path.stem in SHEETS else path.name for path in figures}
        for path, name in names.items():
            text = re.sub(rf"\]\((?:\./)?{re.escape(path.name)}\)", f"]({page.stem}/{name})", text)
        page.parent.mkdir(parents=True, exist_ok=True)
        with directory(page.with_suffix(""), overwrite=True) as building:
            for path, name in names.items():
                save_figure(Image.open(path), building / name)
        write_text(page, text)
    return [page, *(page.with_suffix("") / name for name in names.values())]


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default=_text(RECIPES), help="on playroom-sd")
    parser.add_argument("--flux-recipes", default=_text(FLUX_RECIPES), help='on playroom-flux; or ""')
    parser.add_argument("--size", default="small", help="of the Playroom benchmark: smoke, small, full")
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "playroom", help="and RUN-flux")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results" / "playroom.md")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only-page", action="store_true", help="write the page from what the runs hold")
    given = parser.parse_args(words)

    from thisness.cli import run

    code = 0
    runs = {
        "playroom-sd": (given.run, given.recipes),
        "playroom-flux": (given.run.with_name(f"{given.run.name}-flux"), given.flux_recipes),
    }
    for base, (out, recipes) in runs.items():
        if recipes and not given.only_page and code in (0, 1):
            asked = ["bench", "run", "playroom", "--extend", "--size", given.size, "--base", base, "--judge", "oracle"]
            code = max(code, run([*asked, "--recipes", recipes, "--workers", str(given.workers), "--out", str(out)]))
    if code in (0, 1):  # 1: some pictures could not be made; the page says which
        there = [out for out, _ in runs.values() if (out / "run.json").is_file()]
        for path in publish(there, given.page):
            print(path)
    return code


def _text(recipes: Mapping[str, str]) -> str:
    return ";".join(f"{label}={recipe}" for label, recipe in recipes.items())


if __name__ == "__main__":
    sys.exit(main())
