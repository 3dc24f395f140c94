"""Masks of pictures: which there are and from where, missing ones made by a model, a sheet to look at.

What makes masks, by the kind of model (the user names one; nothing is fetched otherwise):

    SAM      Kirillov et al., Segment Anything (2023), section 3: prompted by the picture's middle as a point and by a
             box that leaves out a tenth at each side; of its three answers the one it holds best. It is not told the
             noun: what is in the middle is the thing.
    CLIPSeg  Lueddecke and Ecker, Image Segmentation Using Text and Image Prompts (2022): told the noun; positions
             whose probability reaches a threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .errors import ConfigurationError, ImageError, UserError, raise_all
from .files import listed
from .images import Tile, check_mask, load_mask, load_with_alpha, save_png, sheet
from .images.reading import INSIDE
from .subject import MASK, find_pictures

if TYPE_CHECKING:
    import torch

FULL = 0.95  # of the picture: a mask beyond it tells little from none
THRESHOLD = 0.4  # probability from which CLIPSeg's answer is the thing
MARGIN = 0.1  # of each side, outside the box that SAM is given
KINDS = ("sam", "clipseg")
EXAMPLES = "facebook/sam-vit-base, or CIDAS/clipseg-rd64-refined, which is told the noun"
_FILES = ("*.json", "*.safetensors", "vocab.txt", "merges.txt")


@dataclass(frozen=True, eq=False)
class MaskReport:
    """What is known of one picture's mask.

    Attributes:
        file: the picture.
        image: RGB.
        source: "file", "transparency", "made", or "" where there is none.
        mask: (H, W) float32 in [0, 1], of the picture's size, 1 the subject; or None.
        mask_file: where it lies or goes, if it is a file.
        problem: why it cannot be used, in one clause; "" if it can.
        warning: what to look at; "" if nothing.
    """

    file: Path
    image: Image.Image
    source: str = ""
    mask: np.ndarray | None = None
    mask_file: Path | None = None
    problem: str = ""
    warning: str = ""

    @property
    def area(self) -> float:
        """Of the picture, in per cent; 0 without a mask."""
        return 0.0 if self.mask is None else 100 * float((self.mask >= INSIDE).mean())


def find_masks(path: str | Path, *, resize_mask: bool = False) -> list[MaskReport]:
    """Look at the masks of a folder of pictures, or of one picture.

    Args:
        resize_mask: a mask of another size counts as one scaled to its picture.

    Raises:
        ImageError: no pictures, or pictures that cannot be read; all of it at once.
    """
    found, problems = [], []
    for file, mask_file in find_pictures(path):
        try:
            image, alpha = load_with_alpha(file)
        except ImageError as error:
            problems.append(str(error))
            continue
        try:
            if mask_file is not None:
                mask = load_mask(mask_file, image.size, resize=resize_mask)
                found.append(MaskReport(file, image, "file", mask, mask_file, warning=warning_of(mask)))
            elif alpha is not None:
                mask = check_mask(alpha, image.size, name=f"{file}: its transparency as a mask")
                found.append(MaskReport(file, image, "transparency", mask, warning=warning_of(mask)))
            else:
                found.append(MaskReport(file, image))
        except ImageError as error:
            source = "file" if mask_file is not None else "transparency"
            found.append(MaskReport(file, image, source, None, mask_file, problem=str(error)))
    raise_all(problems, ImageError)
    return found


def warning_of(mask: np.ndarray) -> str:
    """What is odd about a mask, in a clause; "" if nothing."""
    inside = float((mask >= INSIDE).mean())
    if inside == 0:
        return "empty: nothing was found"
    if inside > FULL:
        return f"covers {100 * inside:.0f} % of the picture: hardly more than no mask"
    return ""


def target_of(file: Path, out: Path) -> Path:
    """Where the mask of a picture goes: NAME_mask.png."""
    return out / f"{file.stem}{MASK}.png"


def make_missing(
    reports: Sequence[MaskReport], noun: str, model: str | Masker, out: str | Path, *, overwrite: bool = False,
    device: str = "cpu", threshold: float = THRESHOLD,
) -> list[MaskReport]:  # fmt: skip
    """Make the masks that are missing, write them, and report all anew.

    An empty one is reported and not written. With `overwrite` masks that are files are made anew, too.

    Args:
        reports: of `find_masks`.
        noun: what kind of thing it is; SAM is not told.
        model: a hub id or a folder; or one that is loaded.
        out: folder that NAME_mask.png is written to, beside nothing that is there unless `overwrite`.

    Raises:
        ImageError: masks are there that would be overwritten, or stay beside the new ones; all of it at once.
        UserError: as `load_masker`.
    """
    out = Path(out)
    wanted = [r for r in reports if r.source == "" or (overwrite and r.source == "file")]
    problems = []
    for report in wanted:
        target = target_of(report.file, out)
        if target.exists() and not overwrite:
            problems.append(f"{target} is there: --overwrite replaces it")
        others = [p for p in out.glob(f"{report.file.stem}{MASK}.*") if p != target] if out.is_dir() else []
        if others:
            problems.append(f"{others[0]} is there, which would be a second mask: remove it")
    raise_all(problems, ImageError)
    if not wanted:
        return list(reports)
    masker = load_masker(model, noun, device, threshold) if isinstance(model, str) else model
    made: dict[Path, MaskReport] = {}
    from tqdm import tqdm

    for report in tqdm(wanted, desc="masks", unit="picture", disable=None):
        (mask,) = masker([report.image], noun)
        target, warning = target_of(report.file, out), warning_of(mask)
        empty = not (mask >= INSIDE).any()
        if not empty:
            save_png(Image.fromarray(np.round(mask * 255).astype(np.uint8)), target)
        made[report.file] = MaskReport(
            report.file, report.image, "" if empty else "made", None if empty else mask, None if empty else target,
            warning=warning,
        )  # fmt: skip
    return [made.get(report.file, report) for report in reports]


# --- models ---


class Masker:
    """A loaded model that finds the subject in pictures.

    Args:
        kind: one of KINDS.
        model, processor: of transformers.
        threshold: probability from which CLIPSeg's answer is the thing.
    """

    def __init__(self, kind: str, model: Any, processor: Any, threshold: float = THRESHOLD) -> None:
        self.kind, self.model, self.processor, self.threshold = kind, model, processor, threshold

    def __call__(self, images: Sequence[Image.Image], noun: str) -> list[np.ndarray]:
        """(H, W) float32 of 0 and 1 for each picture, of its size; all 0 where nothing was found.

        Raises:
            UserError: CLIPSeg without a noun.
        """
        import torch

        if self.kind == "clipseg" and not noun.strip():
            raise UserError("this model finds a thing by its name: say what it is (--noun dog)")
        find = self._by_point if self.kind == "sam" else self._by_name
        with torch.inference_mode():
            return [find(image.convert("RGB"), noun) for image in images]

    def _by_point(self, image: Image.Image, noun: str) -> np.ndarray:
        width, height = image.size
        box = [MARGIN * width, MARGIN * height, (1 - MARGIN) * width, (1 - MARGIN) * height]
        inputs = self.processor(
            images=image, input_points=[[[width / 2, height / 2]]], input_boxes=[[box]], return_tensors="pt"
        )
        sizes, reshaped = inputs["original_sizes"], inputs["reshaped_input_sizes"]
        answer = self.model(**self._placed(inputs), multimask_output=True)
        best = int(answer.iou_scores[0, 0].argmax())
        masks = self.processor.image_processor.post_process_masks(answer.pred_masks.float().cpu(), sizes, reshaped)
        return masks[0][0, best].numpy().astype(np.float32)

    def _by_name(self, image: Image.Image, noun: str) -> np.ndarray:
        import torch

        inputs = self.processor(text=[f"a photo of a {noun}"], images=[image], return_tensors="pt")
        logits = self.model(**self._placed(inputs)).logits.float().cpu()
        logits = logits.reshape(1, 1, *logits.shape[-2:])
        size = (image.height, image.width)
        scaled = torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False)
        return (scaled[0, 0].sigmoid() >= self.threshold).numpy().astype(np.float32)

    def _placed(self, inputs: Any) -> dict[str, torch.Tensor]:
        names = ("pixel_values", "input_points", "input_boxes", "input_ids", "attention_mask")
        return {
            name: value.to(self.model.device, self.model.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
            if name in names
        }


def load_masker(model: str, noun: str = "", device: str = "cpu", threshold: float = THRESHOLD) -> Masker:
    """Load a model that makes masks.

    Args:
        model: a hub id, or a folder, of a SAM or CLIPSeg model of transformers; safetensors only.
        noun: what it is to find; only to say at once that it is missing.
        device: where it runs.
        threshold: see `Masker`, in 0 ... 1.

    Raises:
        UserError: no such model, CLIPSeg without a noun, or a threshold out of range.
        ConfigurationError: a model of another kind, or one whose parts do not fit.
    """
    if not 0 < threshold < 1:
        raise UserError(f"threshold {threshold} must lie between 0 and 1")
    folder = _folder(model)
    import transformers

    from .bases.quiet import quiet

    try:
        with quiet():
            kind = transformers.AutoConfig.from_pretrained(folder).model_type
            if kind not in KINDS:
                raise ConfigurationError(f"{model} is a model of the kind {kind!r}: expected one of {', '.join(KINDS)}")
            if kind == "clipseg" and not noun.strip():
                raise UserError(f"{model} finds a thing by its name: say what it is (--noun dog)")
            chosen: Any = transformers.SamModel if kind == "sam" else transformers.CLIPSegForImageSegmentation
            loaded, report = chosen.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
            images = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
            if kind == "sam":
                processor: Any = transformers.SamProcessor(images)
            else:
                tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
                processor = transformers.CLIPSegProcessor(image_processor=images, tokenizer=tokenizer)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigurationError(f"{model} cannot be loaded: {str(error).splitlines()[0]}") from error
    if missing := report["missing_keys"]:
        raise ConfigurationError(f"{model} is not whole: {len(missing)} of its weights are not there")
    if kind == "clipseg" and len(processor.tokenizer) != loaded.config.text_config.vocab_size:
        raise ConfigurationError(
            f"{model}: its tokenizer knows {len(processor.tokenizer)} tokens, its text encoder "
            f"{loaded.config.text_config.vocab_size}: the tokenizer's files are missing"
        )
    return Masker(kind, loaded.eval().requires_grad_(False).to(device), processor, threshold)


def make_masks(
    images: Sequence[Image.Image], noun: str, model: str | Masker, *, device: str = "cpu", threshold: float = THRESHOLD
) -> list[np.ndarray]:
    """The subject in pictures that have no masks, generated ones for instance.

    Args:
        images: RGB, of any sizes.
        noun: what to find; SAM is not told.
        model: a hub id or a folder; or what `load_masker` gave, to load it once.

    Returns:
        For each picture (H, W) float32 of 0 and 1; all 0 where nothing was found.

    Raises:
        UserError, ConfigurationError: as `load_masker`.
    """
    masker = load_masker(model, noun, device, threshold) if isinstance(model, str) else model
    return masker(images, noun)


def _folder(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(f"no model {name!r}: name a folder, or a hub id such as {EXAMPLES}")
    from .bases.locate import from_hub

    return from_hub(name, _FILES, instead="give --model a local folder")


# --- to look at ---


def mask_sheet(reports: Sequence[MaskReport], *, tile: int = 192) -> Image.Image:
    """One row for each picture: itself, its mask, the mask laid over it, and what there is to say."""
    rows = []
    for report in reports:
        small = report.image.copy()
        small.thumbnail((2 * tile, 2 * tile), Image.Resampling.LANCZOS)
        said = report.problem.replace(f"{report.file.parent}/", "") or report.warning
        row = [Tile(small, report.file.name)]
        if report.mask is None:
            rows.append([*row, Tile(Image.new("RGB", small.size, "#e9e9e6"), said or "no mask")])
            continue
        mask = Image.fromarray(np.round(report.mask * 255).astype(np.uint8)).resize(small.size)
        where = {"file": report.mask_file.name if report.mask_file else "", "made": "made"}.get(report.source, "")
        row.append(Tile(mask.convert("RGB"), where or report.source))
        row.append(Tile(_over(small, mask), f"{report.area:.1f} %" + (f", {said}" if said else "")))
        rows.append(row)
    return sheet(rows, title="Masks: picture, mask, mask over picture (area)", tile=tile)


def _over(image: Image.Image, mask: Image.Image) -> Image.Image:
    """The subject as it is, the rest pale and red."""
    tint = Image.blend(image, Image.new("RGB", image.size, "#d6336c"), 0.6)
    return Image.composite(image, tint, mask)


def missing_line(reports: Sequence[MaskReport]) -> str:
    """What is still to do, in one line; "" where every picture has a mask that can be used."""
    problems = [report.problem for report in reports if report.problem]
    none = [report for report in reports if not report.source and not report.problem]
    empty = [report.file.name for report in none if report.warning]
    absent = [report.file.name for report in none if not report.warning]
    if absent:
        problems.append(
            f"{len(absent)} of {len(reports)} pictures have no mask ({listed(absent)}): paint NAME{MASK}.png (white "
            f"the thing), or name a model that makes it (--model {EXAMPLES})"
        )
    if empty:
        problems.append(f"the model found nothing in {listed(empty)}: paint NAME{MASK}.png (white the thing)")
    return "; ".join(problems)
