"""Is a folder of pictures fit to learn from, is this machine fit: findings, each one line with what to do."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from .errors import ImageError, ThisnessError
from .files import listed
from .images import load_mask, load_with_alpha
from .images.reading import INSIDE
from .subject import Subject, find_pictures

Level = Literal["good", "note", "warning", "error"]
LEVELS: tuple[Level, ...] = ("good", "note", "warning", "error")

BLURRED = 0.62  # of `blur`: sharp renders of 128 pixels reach 0.36, and 0.62 to 0.75 blurred with a sigma of 2 pixels
SAME, ALIKE = 0.015, 0.05  # mean difference of thumbnails, of the range of values
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        level: "good", "note" (worth knowing), "warning" (the result will suffer), "error" (it cannot be used).
        topic: what was looked at, in one word.
        text: what was found, and what to do.
    """

    level: Level
    topic: str
    text: str


@dataclass(frozen=True)
class Picture:
    """Measures of one picture; those of light and sharpness are of the subject, where there is a mask."""

    file: str
    size: tuple[int, int]  # width, height in pixels
    blur: float  # 0 sharp ... 1 blurred
    dark: float  # brightness that 90 % of the pixels stay under, 0 ... 1
    bright: float  # brightness that 90 % of the pixels are over, 0 ... 1
    coverage: float | None  # part of the picture that the mask covers
    soft: float  # part of the mask that is neither nearly black nor nearly white
    thumbnail: np.ndarray  # (32, 32, 3) in 0 ... 1


def worst(findings: Iterable[Finding]) -> Level:
    """The gravest level among findings; "good" where there are none."""
    return max((finding.level for finding in findings), key=LEVELS.index, default="good")


# --- pictures --------------------------------------------------------------------------------------------------------


def check_pictures(path: str | Path, *, resolution: int = 512, resize_mask: bool = False) -> list[Finding]:
    """Is this folder fit to learn from.

    Args:
        path: a folder, or one picture.
        resolution: of the base that is to learn, in pixels a side.
        resize_mask: as for `Subject.from_folder`.

    Returns:
        Findings; an "error" among them means that `Subject.from_folder` would refuse the folder.
    """
    try:
        pairs = find_pictures(path)
    except ImageError as error:
        return [Finding("error", "pictures", str(error))]
    findings: list[Finding] = []
    pictures: list[Picture] = []
    for file, mask_file in pairs:
        try:
            image, mask = load_with_alpha(file)
            if mask_file is not None:
                mask = load_mask(mask_file, image.size, resize=resize_mask)
            pictures.append(measure(file.name, image, mask, resolution))
        except ImageError as error:
            findings.append(Finding("error", "pictures", str(error)))
    return findings + (_findings(pictures, resolution) if pictures else [])


def check_subject(subject: Subject, *, resolution: int = 512) -> list[Finding]:
    """The same of pictures that were read already."""
    files = subject.files or [f"picture {number}" for number in range(len(subject.images))]
    masks = subject.masks or [None] * len(subject.images)
    parts = zip(files, subject.images, masks, strict=True)
    return _findings([measure(file, image, mask, resolution) for file, image, mask in parts], resolution)


def _findings(pictures: list[Picture], resolution: int) -> list[Finding]:
    return [
        _number(len(pictures)),
        *_sizes(pictures, resolution),
        *_sharpness(pictures),
        *_light(pictures),
        *_likeness(pictures),
        *_masks(pictures),
    ]


def measure(name: str, image: Image.Image, mask: np.ndarray | None, resolution: int) -> Picture:
    """Look at one picture.

    Args:
        name: of its file.
        image: RGB.
        mask: (H, W) in [0, 1], or None.
        resolution: light and sharpness are measured at the size at which the base sees the picture.
    """
    scale = min(resolution / min(image.size), 1.0)
    width, height = (max(round(length * scale), 1) for length in image.size)
    small = image.resize((width, height), Image.Resampling.LANCZOS)
    grey = np.asarray(small.convert("L"), np.float32) / 255
    coverage, soft, inside = None, 0.0, np.ones(grey.shape, bool)
    if mask is not None:
        coverage = float((mask >= INSIDE).mean())
        soft = float(((mask > 0.1) & (mask < 0.9)).mean() / max(coverage, 1e-6))
        inside = np.asarray(Image.fromarray(mask).resize(small.size, Image.Resampling.BOX)) >= INSIDE
        inside = inside if inside.any() else np.ones(grey.shape, bool)
    dark, bright = np.quantile(grey[inside], (0.9, 0.1))
    thumbnail = np.asarray(image.resize((32, 32), Image.Resampling.BOX), np.float32) / 255
    return Picture(name, image.size, blur(grey, inside), float(dark), float(bright), coverage, soft, thumbnail)


def blur(grey: np.ndarray, inside: np.ndarray | None = None, width: int = 9) -> float:
    """How little a picture changes when it is blurred once more: 0 for a sharp one, 1 for one without any edge.

    Args:
        grey: (H, W) in [0, 1].
        inside: (H, W) booleans: where to look; None everywhere.
        width: of the box that blurs, in pixels.

    Source: Crete et al., The blur effect: perception and estimation with a new no-reference perceptual blur metric,
        2007, equations 1 to 6.
    """
    where = np.ones(grey.shape, bool) if inside is None else inside
    estimates = []
    for axis in (0, 1):
        picture, region = (grey, where) if axis == 0 else (grey.T, where.T)
        if picture.shape[0] <= width:
            continue
        padded = np.pad(picture, ((width // 2, width // 2), (0, 0)), mode="edge")
        sums = np.cumsum(np.pad(padded, ((1, 0), (0, 0))), axis=0, dtype=np.float64)
        again = (sums[width:] - sums[:-width]) / width
        step, step_again = np.abs(np.diff(picture, axis=0)), np.abs(np.diff(again, axis=0))
        lost = np.maximum(step - step_again, 0)
        both = region[1:] & region[:-1]
        total = step[both].sum()
        estimates.append(1.0 - float(lost[both].sum() / total) if total > 1e-6 else 1.0)
    return max(estimates, default=1.0)


def _number(count: int) -> Finding:
    if count == 1:
        text = "1 picture: its pose, light and background are learned with the thing; 3 to 6 different ones are better"
        return Finding("warning", "number", text)
    if count == 2:
        return Finding("note", "number", "2 pictures: 3 to 6 from different sides are better")
    if count <= 20:
        return Finding("good", "number", f"{count} pictures")
    return Finding("note", "number", f"{count} pictures: more than 20 rarely help; keep the best from different sides")


def _sizes(pictures: list[Picture], resolution: int) -> list[Finding]:
    small = [f"{p.file} {p.size[0]}x{p.size[1]}" for p in pictures if min(p.size) < resolution]
    long = [f"{p.file} {p.size[0]}x{p.size[1]}" for p in pictures if max(p.size) > 2 * min(p.size)]
    findings = []
    if small:
        text = f"{listed(small)}: smaller than the {resolution} of the base, so they are enlarged and look soft"
        findings.append(Finding("warning", "size", text))
    if long:
        text = f"{listed(long)}: more than twice as long as wide, and cropped to a square: crop them to the thing"
        findings.append(Finding("note", "size", text))
    smallest = min(min(p.size) for p in pictures)
    return findings or [Finding("good", "size", f"shortest side {smallest} pixels, the base takes {resolution}")]


def _sharpness(pictures: list[Picture]) -> list[Finding]:
    soft = [f"{p.file} ({p.blur:.2f})" for p in pictures if p.blur > BLURRED]
    if soft:
        text = f"{listed(soft)}: blurred (0 sharp ... 1, limit {BLURRED}): take them again, or leave them out"
        return [Finding("warning", "sharpness", text)]
    return [Finding("good", "sharpness", f"all sharp (blur at most {max(p.blur for p in pictures):.2f})")]


def _light(pictures: list[Picture]) -> list[Finding]:
    findings = []
    if dark := [p.file for p in pictures if p.dark < 0.2]:
        findings.append(
            Finding("warning", "light", f"{listed(dark)}: very dark: colours are lost; brighten or replace")
        )
    if bright := [p.file for p in pictures if p.bright > 0.92]:
        text = f"{listed(bright)}: nearly white all over: overexposed, or the thing is too small: replace or crop"
        findings.append(Finding("warning", "light", text))
    return findings or [Finding("good", "light", "neither too dark nor too bright")]


def _likeness(pictures: list[Picture]) -> list[Finding]:
    pairs = [
        (one.file, other.file, float(np.abs(one.thumbnail - other.thumbnail).mean()))
        for one, other in combinations(pictures, 2)
    ]
    findings = []
    if same := [f"{one} = {other}" for one, other, difference in pairs if difference < SAME]:
        findings.append(Finding("warning", "duplicates", f"{listed(same)}: the same picture twice: keep one of each"))
    if pairs and not same and max(difference for *_, difference in pairs) < ALIKE:
        text = "the pictures hardly differ: pose and background will be learned as parts of the thing; vary them"
        findings.append(Finding("warning", "duplicates", text))
    return findings or [Finding("good", "duplicates", "all pictures differ")] if pairs else []


def _masks(pictures: list[Picture]) -> list[Finding]:
    without = [p.file for p in pictures if p.coverage is None]
    if len(without) == len(pictures):
        text = "none: the background is learned with the thing; to leave it out put NAME_mask.png beside NAME"
        return [Finding("note", "masks", text)]
    findings = []
    if without:
        findings.append(Finding("warning", "masks", f"{listed(without)}: without a mask while others have one: add it"))
    if tiny := [f"{p.file} ({p.coverage:.1%})" for p in pictures if p.coverage is not None and p.coverage < 0.03]:
        findings.append(Finding("warning", "masks", f"{listed(tiny)}: the thing is tiny: crop to it"))
    if full := [p.file for p in pictures if p.coverage is not None and p.coverage > 0.98]:
        text = f"{listed(full)}: the mask covers all of it, which is as good as none: is it inverted?"
        findings.append(Finding("note", "masks", text))
    if grey := [p.file for p in pictures if p.soft > 0.5]:
        text = f"{listed(grey)}: the mask is mostly grey: it counts in part only; paint the thing white"
        findings.append(Finding("warning", "masks", text))
    return findings or [Finding("good", "masks", f"{len(pictures)} masks")]


# --- machine ---------------------------------------------------------------------------------------------------------


def check_machine(folder: str | Path = ".") -> list[Finding]:
    """Is this machine fit. Imports torch.

    Args:
        folder: where results would be written.
    """
    return [_python(), _cores(), _memory(), _disk(Path(folder)), *_libraries(), *_torch()]


def _python() -> Finding:
    text = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    good = sys.version_info >= (3, 11)
    return Finding("good" if good else "error", "python", text + ("" if good else ": 3.11 or later is needed"))


def _cores() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores < 2:
        return Finding("warning", "cores", "1 core: everything works, but learning takes twice as long")
    return Finding("good", "cores", f"{cores} cores")


def _memory() -> Finding:
    total, free = memory_bytes()
    if total is None or free is None:
        return Finding("note", "memory", "unknown on this system: the embedded models need 2 GiB, SD 1.5 about 8")
    text = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if free < 2 * GIB:
        return Finding("error", "memory", f"{text}: the embedded models need 2: close other programs")
    if free < 8 * GIB:
        return Finding("note", "memory", f"{text}: enough for the embedded models; SD 1.5 needs about 8")
    return Finding("good", "memory", text)


def memory_bytes() -> tuple[int | None, int | None]:
    """Memory of this machine, or of the container that this process is in: all, and what is free."""
    try:
        pages = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        kib = {line.split(":")[0]: int(line.split()[1]) for line in pages}
        total, free = kib["MemTotal"] * 1024, kib["MemAvailable"] * 1024
    except (OSError, KeyError, ValueError, IndexError):
        try:
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError, AttributeError):
            return None, None
        free = total
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):  # "max": no limit
        return total, free
    return min(total, limit), min(free, max(limit - used, 0))


def _disk(folder: Path) -> Finding:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    text = f"{free / GIB:.1f} GiB free in {existing}"
    if not os.access(existing, os.W_OK):
        return Finding("error", "disk", f"{existing} cannot be written to: choose another folder")
    if free < GIB // 2:
        return Finding("error", "disk", f"{text}: at least 0.5 is needed: make room")
    if free < 10 * GIB:
        return Finding(
            "note", "disk", f"{text}: enough for the embedded models; SD 1.5 takes 5, and its checkpoints more"
        )
    return Finding("good", "disk", text)


def _libraries() -> list[Finding]:
    found, missing = [], []
    for name in ("diffusers", "transformers", "peft", "accelerate", "safetensors"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    findings = [Finding("good", "libraries", ", ".join(found))] if found else []
    if missing:
        findings.append(Finding("error", "libraries", f"not installed: {', '.join(missing)}: run go.py again"))
    return findings


def _torch() -> list[Finding]:
    try:
        import torch

        if not torch.equal(torch.eye(3) @ torch.ones(3), torch.ones(3)):
            raise ThisnessError("a product of matrices came out wrong")
    except Exception as error:  # a broken build fails in many ways, and each is the finding
        return [Finding("error", "torch", f"does not work ({type(error).__name__}: {error}): run go.py again")]
    findings = [Finding("good", "torch", f"{torch.__version__}, {torch.get_num_threads()} threads")]
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        text = "none: the embedded models need none; a full-size model takes minutes a picture and hours to learn"
        findings.append(Finding("note", "accelerator", text))
    elif device.type == "cuda":
        properties = torch.cuda.get_device_properties(0)
        memory = properties.total_memory / GIB
        text = f"{properties.name}, {memory:.0f} GiB"
        enough = memory >= 7.5
        findings.append(
            Finding(
                "good" if enough else "note", "accelerator", text + ("" if enough else ": SD 1.5 learns in about 8")
            )
        )
    else:
        findings.append(Finding("good", "accelerator", str(device.type)))
    if importlib.util.find_spec("torchvision") is not None:
        try:
            importlib.import_module("torchvision")
        except Exception:  # its operators do not match the build of torch
            text = "torchvision is installed and does not fit this torch, which breaks diffusers: uninstall it"
            findings.append(Finding("error", "torchvision", text))
    return findings
