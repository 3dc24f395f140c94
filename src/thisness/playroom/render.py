"""Scenes to pictures: a painter's rasteriser over approximate signed distances, batched with torch.

Every part is evaluated on every pixel of a batch at once: implicit function rho (1 on the outline), first-order
signed distance d = (rho - 1) r |p| / |grad|, coverage from d for antialiasing, a normal from rho for soft lighting,
a pattern in the part's own frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from .parts import COMPANION, FIELDS, SUBJECT, WORN, Clay
from .scenery import paint_background
from .styles import apply_style
from .toys import paint_toys
from .world import Scene, rng_of

PARTS_MULTIPLE = 8
COMPILE_FROM = 2000  # pictures from which compiling the rasteriser pays for itself


@dataclass(frozen=True)
class Rendering:
    """images: uint8 (N, 3, H, W); masks: uint8 (N, 2, H, W), coverage of the subject and of the companion, 0 to 255."""

    images: Tensor
    masks: Tensor


def parts_of(scene: Scene) -> np.ndarray:
    """The scene's parts in painting order, float32 (parts, len(FIELDS))."""
    rng = rng_of("paint", scene.seed)
    clay = Clay()
    paint_background(clay, scene.background, rng)
    paint_toys(clay, scene, rng)
    return np.asarray(clay.rows, dtype=np.float32)


def worn_cells(scene: Scene, side: int) -> np.ndarray:
    """Where what the toys wear is, on a coarse grid: float32 (side, side) of 0 and 1, from its parts' outlines.

    Nothing is painted: a cell counts where its middle is within a part, or within half a cell of it.
    """
    rows = parts_of(scene)
    worn = rows[rows[:, FIELDS.index("layer")] == WORN]
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side * 2 - 1
    x, y = axis[None, None], axis[None, :, None]
    part = {name: worn[:, at, None, None] for at, name in enumerate(FIELDS)}
    cos, sin = np.cos(part["angle"]), np.sin(part["angle"])
    u = cos * (x - part["x"]) + sin * (y - part["y"])
    v = cos * (y - part["y"]) - sin * (x - part["x"])
    past = np.maximum(np.abs(u) - part["half_length"], 0)
    radius = np.maximum(part["radius_start"], part["radius_end"])
    near = np.maximum(past - radius, np.abs(v) - radius * np.abs(part["squash"])) <= 1 / side
    return near.any(0).astype(np.float32) if len(worn) else np.zeros((side, side), np.float32)


def _paint(canvas: Tensor, x: Tensor, y: Tensor, row: Tensor, pixel: float) -> Tensor:
    """Composite one part per picture. canvas (B, 5, H, W): rgb, subject, companion; x (1, 1, W); y (1, H, 1); row
    (B, fields)."""
    part = {name: row[:, i].view(-1, 1, 1) for i, name in enumerate(FIELDS)}
    cos, sin = torch.cos(part["angle"]), torch.sin(part["angle"])
    dx, dy = x - part["x"], y - part["y"]
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    half = part["half_length"]
    along = torch.minimum(torch.maximum(u, -half), half)
    radius = part["radius_start"] + (part["radius_end"] - part["radius_start"]) * (along + half) / (2 * half + 1e-6)
    squash = part["squash"].abs()
    a, b = (u - along) / radius, v / (radius * squash)
    a2, b2, boxed = a * a, b * b, part["boxed"] > 0.5
    power = torch.where(boxed, a2 * a2 * a2 + b2 * b2 * b2, a2 + b2) + 1e-8
    rho = torch.where(boxed, torch.exp(torch.log(power) / 6), torch.sqrt(power))
    grad_a = torch.where(boxed, a2 * a2 * a, a)
    grad_b = torch.where(boxed, b2 * b2 * b, b) / squash
    length = torch.sqrt(grad_a * grad_a + grad_b * grad_b) + 1e-6
    rho2 = rho * rho
    distance = (rho - 1) * radius * torch.where(boxed, rho2 * rho2 * rho, rho) / length
    alpha = torch.clamp(0.5 - distance / (pixel + part["softness"]), 0, 1) * part["alpha"]

    inside = torch.clamp(rho, 0, 1)
    in2 = inside * inside
    slope = torch.where(boxed, in2 * in2 * inside * 0.8, inside) * part["shade"]
    nu, nv = grad_a / length * slope, grad_b / length * slope
    nx, ny, nz = cos * nu - sin * nv, sin * nu + cos * nv, torch.sqrt(torch.clamp(1 - slope * slope, 0.01, 1))
    diffuse = torch.clamp(-0.48 * nx - 0.62 * ny + 0.62 * nz, 0, 1)
    shine = torch.clamp(-0.28 * nx - 0.37 * ny + 0.885 * nz, 0, 1)
    for _ in range(4):
        shine = shine * shine
    lit = torch.where(part["shade"] > 0.01, 0.56 + 0.64 * diffuse, torch.ones_like(diffuse))
    highlight = part["gloss"] * shine * part["shade"]

    kind, frequency, threshold = part["pattern"], part["frequency"], part["threshold"]
    mirrored = v * torch.sign(part["squash"])
    wave_u, wave_v = torch.sin(u * frequency + part["phase_u"]), torch.sin(mirrored * frequency + part["phase_v"])
    blobs = torch.sin(u * frequency * 0.42 + 2 * part["phase_v"] + 0.8 * wave_v)
    blobs = blobs + torch.sin(mirrored * frequency * 0.47 + 2 * part["phase_u"]) - 0.25 - threshold
    value = torch.where(kind < 1.5, wave_u * wave_v * 1.6 - 0.45, torch.where(kind < 2.5, wave_u - threshold, blobs))
    second = torch.clamp(0.5 + value / (frequency * pixel), 0, 1) * (kind > 0.5)

    layers = []
    for i, (one, two) in enumerate((("red", "red2"), ("green", "green2"), ("blue", "blue2"))):
        colour = part[one] + (part[two] - part[one]) * second
        layers.append(canvas[:, i] * (1 - alpha) + alpha * torch.clamp(colour * lit + highlight, 0, 1))
    for i, who in enumerate((SUBJECT, COMPANION)):
        layers.append(canvas[:, 3 + i] * (1 - alpha) + alpha * (part["layer"] == who))
    return torch.stack(layers, 1)


@cache
def _compiled_paint():
    return torch.compile(_paint, dynamic=False)


@torch.no_grad()
def _rasterise(rows: Sequence[np.ndarray], size: int, compiled: bool, device: str) -> Tensor:
    count = -(-max(len(r) for r in rows) // PARTS_MULTIPLE) * PARTS_MULTIPLE
    table = np.zeros((len(rows), count, len(FIELDS)), np.float32)
    nothing = {"x": 9, "radius_start": 1e-3, "radius_end": 1e-3, "squash": 1, "frequency": 1}  # off the picture
    for name, value in nothing.items():
        table[:, :, FIELDS.index(name)] = value
    for i, r in enumerate(rows):
        table[i, : len(r)] = r
    parts = torch.from_numpy(table).to(device)
    axis = ((torch.arange(size, device=device) + 0.5) / size * 2 - 1).float()
    x, y = axis.view(1, 1, -1), axis.view(1, -1, 1)
    canvas = torch.zeros(len(rows), 5, size, size, device=device)
    paint = _compiled_paint() if compiled else _paint
    for i in range(count):
        canvas = paint(canvas, x, y, parts[:, i].contiguous(), 2.0 / size)
    return canvas


@torch.no_grad()
def render(
    scenes: Sequence[Scene], size: int = 128, *, batch_size: int = 64, compiled: bool | None = None, device: str = "cpu"
) -> Rendering:
    """Render scenes in their order.

    Args:
        scenes: any number of them.
        size: side of the square pictures in pixels.
        batch_size: pictures painted at once.
        compiled: run the rasteriser through `torch.compile` (needs a C++ compiler); by default from 2,000 pictures
            on. The compiled one may differ from the plain one in single bits.
        device: where to paint; the result is on the CPU.

    Returns:
        `Rendering` with images (N, 3, size, size) and masks (N, 2, size, size), uint8.
    """
    compiled = len(scenes) >= COMPILE_FROM if compiled is None else compiled
    rows = [parts_of(scene) for scene in scenes]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # alike counts together: no empty parts painted
    images = torch.empty(len(rows), 3, size, size, dtype=torch.uint8)
    masks = torch.empty(len(rows), 2, size, size, dtype=torch.uint8)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        padded = chosen + chosen[-1:] * (batch_size - len(chosen) if compiled else 0)  # compiled for one batch size
        canvas = _rasterise([rows[i] for i in padded], size, compiled, device)[: len(chosen)]
        pictures = apply_style(canvas[:, :3], [scenes[i].style for i in chosen], [scenes[i].seed for i in chosen])
        index = torch.tensor(chosen)
        images[index] = (pictures.clamp(0, 1) * 255).round().to(torch.uint8).cpu()
        masks[index] = (canvas[:, 3:].clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    return Rendering(images, masks)
