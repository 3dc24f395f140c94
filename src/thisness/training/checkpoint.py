"""Checkpoints of a training run: complete or not there at all.

A run's folder holds `run.json` (what is being run, compared on every resume), `log.jsonl`, and
`checkpoints/step-N/` with

    weights.safetensors     what is trained, "module/parameter"
    optimizer.safetensors   the optimizer's moments, "parameter index/name"
    average.safetensors     the exponential moving average, if there is one
    loop.safetensors        random states of every process, running sums of the log
    extra.safetensors       tensors of the task's own state, if any
    state.json              step, seconds, and what else is not a tensor
    COMPLETE.json           hashes of all of the above, written last

A folder without its marker, or with a file that does not match it, is passed over: the one before it is used.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import ArtefactError, ConfigurationError, ThisnessError
from ..files import directory, load_tensors, save_tensors, verify_directory, write_json

STEP_FOLDER = re.compile(r"step-(\d{9})")
TENSOR_FILES = ("weights", "optimizer", "average", "loop", "extra")


@dataclass
class Checkpoint:
    """Everything that decides how a run goes on. Tensors live on the CPU."""

    step: int
    state: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # by file: see TENSOR_FILES


def step_folder(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step-{step:09d}"


def steps_on_disk(folder: Path) -> list[int]:
    """Steps of all checkpoint folders, newest first, whether complete or not."""
    root = folder / "checkpoints"
    if not root.is_dir():
        return []
    matches = (STEP_FOLDER.fullmatch(path.name) for path in root.iterdir() if path.is_dir())
    return sorted((int(match[1]) for match in matches if match), reverse=True)


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write a checkpoint beside the older ones, then drop all but the newest `keep`.

    Raises:
        ThisnessError: it could not be written (disk full, no permission); older checkpoints are as they were.
    """
    target = step_folder(folder, checkpoint.step)
    try:
        with directory(target, overwrite=True) as building:
            for name in TENSOR_FILES:
                if checkpoint.tensors.get(name):
                    save_tensors(building / f"{name}.safetensors", checkpoint.tensors[name])
            write_json(building / "state.json", {"step": checkpoint.step, **checkpoint.state})
    except Exception as error:
        if not _is_write_failure(error):
            raise
        older = [step for step in steps_on_disk(folder) if step < checkpoint.step]
        rest = f"the checkpoint of step {older[0]} is intact" if older else "there is no earlier checkpoint"
        raise ThisnessError(
            f"cannot write the checkpoint of step {checkpoint.step} to {target.parent} ({_write_failure(error)}); "
            f"{rest}: make room there and run the same command again"
        ) from error
    for step in steps_on_disk(folder)[max(keep, 1) :]:
        shutil.rmtree(step_folder(folder, step), ignore_errors=True)
    return target


def load_newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest complete checkpoint (None if there is none), and one line on each that had to be passed over."""
    skipped: list[str] = []
    for step in steps_on_disk(folder):
        path = step_folder(folder, step)
        try:
            verify_directory(path)
            state = json.loads((path / "state.json").read_text(encoding="utf-8"))
            files = {name: path / f"{name}.safetensors" for name in TENSOR_FILES}
            tensors = {name: load_tensors(file) for name, file in files.items() if file.exists()}
            return Checkpoint(int(state.pop("step")), state, tensors), skipped
        except (ArtefactError, OSError, ValueError, KeyError) as error:
            skipped.append(f"passing over the checkpoint of step {step}: {error}")
    return None, skipped


def remove_run(folder: Path) -> None:
    """Forget an earlier run in this folder: its checkpoints, its log and its description, nothing else."""
    for step in steps_on_disk(folder):
        shutil.rmtree(step_folder(folder, step))
    for name in ("run.json", "log.jsonl"):
        (folder / name).unlink(missing_ok=True)


def check_same_run(folder: Path, run: Mapping[str, Any], may_change: frozenset[str]) -> None:
    """Refuse to go on with a run under another configuration; otherwise note the present one.

    Args:
        run: nested JSON data that describes the run.
        may_change: dotted names that have no influence on the result.

    Raises:
        ConfigurationError: lists every difference, old and new.
    """
    path = folder / "run.json"
    new = json.loads(json.dumps(run))
    if path.exists():
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ArtefactError(f"{path} is not readable JSON ({error}): start anew in another folder") from error
        before, after = _flatten(old), _flatten(new)
        names = sorted((before.keys() | after.keys()) - may_change)
        missing = "(not there)"
        changes = [
            f"{name}: {before.get(name, missing)} -> {after.get(name, missing)}"
            for name in names
            if before.get(name, missing) != after.get(name, missing)
        ]
        if changes:
            raise ConfigurationError(
                f"the run in {folder} was started with another configuration ({'; '.join(changes)}): "
                "use the old one to go on, or another folder to start anew (or --fresh; from Python resume=False)"
            )
    elif any((folder / "checkpoints").glob("step-*")):  # the folder was deleted under a run that then saved itself
        raise ConfigurationError(
            f"{folder} has checkpoints but no run.json, so nobody knows of which configuration they are: "
            "delete the folder, or name another to start anew (or --fresh; from Python resume=False)"
        )
    write_json(path, new)


def _is_write_failure(error: BaseException) -> bool:
    return isinstance(error, OSError) or "os error" in str(error) or "No space left" in str(error)


def _write_failure(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
