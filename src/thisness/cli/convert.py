"""`thisness convert`: published pickles as folders that thisness reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    global_mapper: Annotated[Path, typer.Argument(help="ELITE's global_mapper.pt.")],
    local_mapper: Annotated[Path | None, typer.Argument(help="ELITE's local_mapper.pt.")] = None,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("elite-weights"),
) -> None:
    """Convert the published weights of ELITE to safetensors, opening them as tensors only.

    Then: thisness generate ... --method elite:weights=FOLDER
    """
    from thisness.adapters.elite_conversion import convert_elite

    typer.echo(f"{convert_elite(global_mapper, local_mapper, out)}")
