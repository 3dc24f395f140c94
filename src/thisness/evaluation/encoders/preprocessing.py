"""Pictures to the numbers that an encoder takes: by Pillow and torch alone, the same as transformers' processors.

Resizing is Pillow's (antialiased, on 8-bit pixels). The longer side of a picture whose shorter side is given is cut to
a whole number, and the crop starts at a whole number cut likewise, as transformers and torchvision's `Resize` do it;
torchvision's `CenterCrop` rounds instead, which moves the crop by one pixel where the margin is odd.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ...errors import ArtefactError, ConfigurationError, ImageError

if TYPE_CHECKING:
    from torch import Tensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INTERPOLATIONS = tuple(each.name.lower() for each in Image.Resampling)


@dataclass(frozen=True)
class Preprocessing:
    """What happens to a picture before an encoder sees it.

    Args:
        resize: length of the shorter side, in pixels; or (height, width) exactly; None leaves the picture as it is.
        crop: (height, width) cut from the middle after that; None for all of it.
        mean, std: by channel, of values in [0, 1].
        interpolation: of INTERPOLATIONS.
        scale: what 8-bit values are multiplied by.
    """

    resize: int | tuple[int, int] | None
    crop: tuple[int, int] | None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bicubic"
    scale: float = 1 / 255

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise ConfigurationError(
                f"interpolation {self.interpolation!r}: expected one of {', '.join(INTERPOLATIONS)}"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ConfigurationError(f"mean {self.mean} and std {self.std}: expected three numbers each, std over 0")
        if self.crop is not None and self.resize is not None:
            least = (self.resize, self.resize) if isinstance(self.resize, int) else self.resize
            if self.crop[0] > least[0] or self.crop[1] > least[1]:
                raise ConfigurationError(f"crop {self.crop} is larger than what resize {self.resize} leaves")

    def to_dict(self) -> dict[str, Any]:
        """JSON data for a metric's identity."""
        return {**asdict(self), "by": "Pillow, cut to whole pixels"}

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """float32 (n, 3, height, width). The pictures must come out at one size.

        Raises:
            ImageError: pictures of several sizes where nothing brings them to one, or smaller than the crop.
        """
        import torch

        shaped = [
            np.asarray(self._shaped(image.convert("RGB"), Image.Resampling[self.interpolation.upper()]))
            for image in images
        ]
        sizes = {array.shape for array in shaped}
        if len(sizes) > 1:
            raise ImageError(
                f"pictures of {len(sizes)} sizes cannot be encoded together: the encoder's preprocessing neither "
                "resizes nor crops them to one; give it a preprocessing that does"
            )
        pixels = torch.from_numpy(np.stack(shaped)).permute(0, 3, 1, 2).to(torch.float32)  # of its own: no 8-bit sums
        mean, std = (torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return pixels.mul_(self.scale).sub_(mean).div_(std).contiguous()

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """A mask (H, W) in [0, 1] brought where the picture's pixels go; bilinear."""
        shaped = self._shaped(Image.fromarray(np.asarray(mask, np.float32)), Image.Resampling.BILINEAR)
        return np.clip(np.asarray(shaped, np.float32), 0, 1)

    def _shaped(self, image: Image.Image, how: Image.Resampling) -> Image.Image:
        if self.resize is not None:
            width, height = _target(image.size, self.resize)
            if (width, height) != image.size:
                image = image.resize((width, height), how)
        if self.crop is None or self.crop == (image.height, image.width):
            return image
        height, width = self.crop
        if image.height < height or image.width < width:
            raise ImageError(f"a picture of {image.width}x{image.height} is smaller than the crop {width}x{height}")
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, whole_number_is_square: bool, where: str) -> Preprocessing:
        """What a preprocessor_config.json says.

        Args:
            config: its content.
            whole_number_is_square: whether "size": 224, as older files write it, means 224x224 (vision transformers)
                or the shorter side (CLIP).
            where: named in messages.

        Raises:
            ArtefactError: it says nothing that this class can do.
        """
        try:
            resize = _size(config.get("size"), whole_number_is_square) if config.get("do_resize", True) else None
            crop = _size(config.get("crop_size"), True) if config.get("do_center_crop", False) else None
            if isinstance(crop, int):
                crop = (crop, crop)
            normal = config.get("do_normalize", True)
            return cls(
                resize=resize,
                crop=crop,
                mean=tuple(map(float, config["image_mean"])) if normal else (0.0, 0.0, 0.0),
                std=tuple(map(float, config["image_std"])) if normal else (1.0, 1.0, 1.0),
                interpolation=Image.Resampling(int(config.get("resample", 3))).name.lower(),
                scale=float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0,
            )
        except (KeyError, ValueError, TypeError) as error:
            raise ArtefactError(
                f"{where}: its preprocessing cannot be read ({type(error).__name__}: {error})"
            ) from error


def _target(size: tuple[int, int], resize: int | tuple[int, int]) -> tuple[int, int]:
    """(width, height) after resizing."""
    if not isinstance(resize, int):
        return resize[1], resize[0]
    width, height = size
    if width <= height:
        return resize, max(resize, int(resize * height / width))
    return max(resize, int(resize * width / height)), resize


def _size(value: Any, square: bool) -> int | tuple[int, int] | None:
    """Any of the forms in which a preprocessor_config.json gives a size."""
    if value is None:
        return None
    if isinstance(value, int):
        return (value, value) if square else value
    if isinstance(value, Mapping):
        if "shortest_edge" in value and "longest_edge" not in value:
            return int(value["shortest_edge"])
        if "height" in value and "width" in value:
            return int(value["height"]), int(value["width"])
    if isinstance(value, Sequence) and len(value) == 2:
        return int(value[0]), int(value[1])
    raise ValueError(f"size {value!r}")
