"""The common table: recipes on `playroom small`, made, scored and written to docs/results/playroom.md.

    .venv/bin/python benchmarks/results.py            goes on where it was stopped

The run itself (pictures, concepts, scores, the HTML page) stays in --run; what a reader of the repository needs, the
table and its figures, goes to docs/results/.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
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
"""By label. Not among them yet: dreambooth and detex, which learn for minutes a toy; aligngen has another base."""
ROOT = Path(__file__).resolve().parent.parent


def publish(run: Path, page: Path) -> list[Path]:
    """Write the run's report as a Markdown page, its figures in a folder of the page's name beside it."""
    from thisness.evaluation.report import write_report
    from thisness.files import directory, write_text

    with tempfile.TemporaryDirectory() as temporary:
        written = write_report(run, temporary, x="oracle:follow", y="dino-i")
        figures = [path for path in written if path.suffix == ".png"]
        text = next(path for path in written if path.suffix == ".md").read_text()
        for path in figures:
            text = re.sub(rf"\]\((?:\./)?{re.escape(path.name)}\)", f"]({page.stem}/{path.name})", text)
        page.parent.mkdir(parents=True, exist_ok=True)
        with directory(page.with_suffix(""), overwrite=True) as building:
            for path in figures:
                save_figure(Image.open(path), building / path.name)
        write_text(page, text)
    return [page, *(page.with_suffix("") / path.name for path in figures)]


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default=";".join(f"{label}={recipe}" for label, recipe in RECIPES.items()))
    parser.add_argument("--size", default="small", help="of the Playroom benchmark: smoke, small, full")
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "playroom")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results" / "playroom.md")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only-page", action="store_true", help="write the page from what the run holds")
    given = parser.parse_args(words)

    from thisness.cli import run

    code = 0
    if not given.only_page:
        asked = [
            "bench",
            "run",
            "playroom",
            "--extend",
            "--size",
            given.size,
            "--recipes",
            given.recipes,
            "--judge",
            "oracle",
        ]
        code = run([*asked, "--workers", str(given.workers), "--out", str(given.run)])
    if code in (0, 1):  # 1: some pictures could not be made; the page says which
        for path in publish(given.run, given.page):
            print(path)
    return code


if __name__ == "__main__":
    sys.exit(main())
