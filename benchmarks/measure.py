"""What the benchmarks share: interleaved timing, medians, a table and a JSON file that says on what it was measured."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def interleaved(functions: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 1) -> dict[str, list[float]]:
    """Time several functions in turns, so that what else the machine does falls on all of them alike.

    Args:
        functions: what is timed, by name.
        repeats: rounds that count; in every other round the order is reversed.
        warmup: rounds before them that do not count.

    Returns:
        Seconds of each call, by name, in the order of the rounds.
    """
    names = list(functions)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(warmup + repeats):
        for name in names if turn % 2 == 0 else reversed(names):
            start = time.perf_counter()
            functions[name]()
            passed = time.perf_counter() - start
            if turn >= warmup:
                seconds[name].append(passed)
        print(f"\rround {turn + 1}/{warmup + repeats}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return seconds


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Median of the ratios within each round: a slow moment of the machine then touches both sides of one ratio."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def spread(values: Sequence[float]) -> float:
    """Half the distance between the quartiles, in the values' own unit; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4)
    return (high - low) / 2


def machine() -> dict[str, Any]:
    """On what it was measured: versions, processor, threads, load."""
    import diffusers
    import torch
    import transformers

    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        named = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = named[0] if named else processor
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None,
    }


def parser(purpose: str, repeats: int) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    options = argparse.ArgumentParser(
        description=purpose.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    options.add_argument("--repeats", type=int, default=repeats, help="rounds that count")
    options.add_argument("--json", type=Path, help="write the figures to this file, too")
    return options


def report(title: str, rows: Sequence[Mapping[str, Any]], json_path: Path | None, **summary: Any) -> dict[str, Any]:
    """Print the rows as a table with the machine under it, and write the same as JSON.

    Args:
        title: what was measured.
        rows: one mapping each, all with the same keys.
        json_path: where the JSON goes, or None.
        summary: further figures, printed one a line under the table.

    Returns:
        What the JSON holds.
    """

    def shown(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    columns = list(rows[0])
    widths = {key: max(len(key), *(len(shown(row[key])) for row in rows)) for key in columns}
    print(title)
    print("  ".join(key.ljust(widths[key]) for key in columns))
    for row in rows:
        print("  ".join(shown(row[key]).ljust(widths[key]) for key in columns))
    for key, value in summary.items():
        print(f"{key.replace('_', ' ')}: {shown(value)}")
    where = machine()
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    result = {"title": title, "rows": [dict(row) for row in rows], **summary, "machine": where}
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result
