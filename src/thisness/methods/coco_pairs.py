"""Pairs to learn from out of COCO and YouTube-VIS, for those who have them.

    COCO           objects of a picture are read, the same picture is drawn            `CocoPairs`
    YouTube-VIS    a thing in one frame is read, it is drawn in another frame          `YouTubeVISPairs`

Source: Duan et al., EZIGen (arXiv 2409.08091), training; numbers from the released code: at most 4 objects of 1,000
pixels, the longest caption, frames an eighth of the video apart. Not as there: pictures are cropped to a square about
what is read, not squeezed; without objects a picture is left out, not read as black.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..errors import ArtefactError
from ..files import inside, read_json, sha256
from ..images import load_image
from .pairs import Pair, made_pair, signature_of
from .templates import OBJECT


class CocoPairs:
    """Pictures of COCO with their objects, largest first; crowds and small objects are left out.

    Args:
        annotations: instances_train2014.json.
        pictures: the folder train2014.
        captions: captions_train2014.json; "a photo of a cat and a dog" without.
        size: side in pixels.
        least: pixels that an object has.
        most: objects that are read.

    Raises:
        ArtefactError: files of another form, pictures that are not there, no usable object; a picture or mask that
            cannot be used when it is read.
    """

    varied, same = False, True

    def __init__(
        self, annotations: str | Path, pictures: str | Path, captions: str | Path | None = None, *, size: int = 512,
        least: int = 1000, most: int = 4,
    ) -> None:  # fmt: skip
        self.folder, self.size, self.most, self.name = Path(pictures), size, most, f"coco:{annotations}"
        self._files, self._least = [Path(each) for each in (annotations, captions) if each is not None], least
        data = _opened(annotations, ("images", "annotations", "categories"), "COCO's instances")
        self.nouns, self.categories = _nouns(data, annotations)
        images = {int(each["id"]): each for each in _entries(data, "images", _IMAGE, annotations)}
        objects: dict[int, list[dict[str, Any]]] = {}
        for each in _entries(data, "annotations", ("image_id", "category_id", "segmentation", "area"), annotations):
            _known(each, self.nouns, annotations)
            if each["image_id"] not in images:
                raise ArtefactError(f"{annotations}: annotation {each['id']}: image_id {each['image_id']} is no image")
            if not each.get("iscrowd") and each["area"] >= least:
                objects.setdefault(each["image_id"], []).append(each)
        self.rows = [
            (images[number], sorted(objects[number], key=lambda each: (-each["area"], each["id"])))
            for number in sorted(objects)
        ]
        if not self.rows:
            raise ArtefactError(f"{annotations}: no object of {least} pixels in it: take a smaller least")
        _present(self.folder, [image["file_name"] for image, _ in self.rows])
        self.captions = _captions(captions) if captions is not None else {}

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def signature(self) -> str:
        """Over the files of annotations and captions, and what is taken of them."""
        return signature_of("coco", [sha256(each) for each in self._files], self._least, self.most)

    def draw(self, index: int, seed: int) -> Pair:
        """The same as `self[index]`, whatever the seed."""
        return self[index]

    def __getitem__(self, index: int) -> Pair:
        entry, objects = self.rows[index]
        shape = (int(entry["height"]), int(entry["width"]))
        image = _picture(self.folder, entry["file_name"], shape)
        masks = [(each, _mask(each["segmentation"], shape, f"annotation {each['id']}")) for each in objects]
        found = [(each, mask) for each, mask in masks if mask.any()][: self.most]
        if not found:
            raise ArtefactError(f"{entry['file_name']}: the masks of all its objects are empty")
        nouns = tuple(self.nouns[each["category_id"]] for each, _ in found)
        caption = self.captions.get(int(entry["id"])) or "a photo of " + " and ".join(f"a {noun}" for noun in nouns)
        return made_pair(
            image, [(image, mask) for _, mask in found], nouns, caption, self.size, entry["file_name"],
            categories=tuple(self.categories[each["category_id"]] for each, _ in found),
        )  # fmt: skip


class YouTubeVISPairs:
    """Things in two frames of a video: read in one, drawn in the other. One index for each thing.

    Args:
        annotations: instances.json of the training part (train.json in the first release).
        frames: the folder JPEGImages.
        size: side in pixels.
        least: pixels that the thing has in a frame.
        apart: least distance of the frames, by the length of the video.

    Raises:
        ArtefactError: as `CocoPairs`.
    """

    varied, same = True, False

    def __init__(
        self, annotations: str | Path, frames: str | Path, *, size: int = 512, least: int = 1000, apart: float = 1 / 8
    ) -> None:
        self.folder, self.size, self.name = Path(frames), size, f"youtube-vis:{annotations}"
        self._file, self._taken = Path(annotations), (least, apart)
        data = _opened(annotations, ("videos", "annotations", "categories"), "YouTube-VIS's instances")
        self.nouns, self.categories = _nouns(data, annotations)
        needed = ("file_names", "height", "width")
        videos = {int(each["id"]): each for each in _entries(data, "videos", needed, annotations)}
        self.rows: list[tuple[dict[str, Any], dict[str, Any], list[tuple[int, int]]]] = []
        for each in _entries(data, "annotations", ("video_id", "category_id", "segmentations", "areas"), annotations):
            _known(each, self.nouns, annotations)
            if each["video_id"] not in videos:
                raise ArtefactError(f"{annotations}: annotation {each['id']}: video_id {each['video_id']} is no video")
            video = videos[each["video_id"]]
            length = len(video["file_names"])
            for name in ("segmentations", "areas"):
                if len(each[name]) != length:
                    raise ArtefactError(
                        f"{annotations}: annotation {each['id']}: {len(each[name])} {name} for a video of {length} "
                        "frames"
                    )
            shown = [n for n in range(length) if each["segmentations"][n] and (each["areas"][n] or 0) >= least]
            far = [(a, b) for a in shown for b in shown if abs(a - b) >= max(apart * length, 1)]
            if far and not each.get("iscrowd"):
                self.rows.append((video, each, far))
        if not self.rows:
            raise ArtefactError(
                f"{annotations}: no thing of {least} pixels in two frames: take a smaller least or apart"
            )
        _present(self.folder, [name for video, _, _ in self.rows for name in video["file_names"]])

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def signature(self) -> str:
        """Over the file of annotations, and what is taken of it."""
        return signature_of("youtube-vis", sha256(self._file), self._taken)

    def __getitem__(self, index: int) -> Pair:
        return self.draw(index, 0)

    def draw(self, index: int, seed: int) -> Pair:
        """A pair of frames, and a sentence, that the seed decides."""
        video, thing, far = self.rows[index]
        choice = Random(seed)
        frames = choice.choice(far)
        shape = (int(video["height"]), int(video["width"]))
        shown = []
        for n in frames:
            image = _picture(self.folder, video["file_names"][n], shape)
            shown.append((image, _mask(thing["segmentations"][n], shape, f"annotation {thing['id']}, frame {n}")))
            if not shown[-1][1].any():
                raise ArtefactError(f"annotation {thing['id']}, frame {n}: the mask is empty")
        noun = self.nouns[thing["category_id"]]
        caption = choice.choice(OBJECT).replace("{subject}", noun)
        (_, (image, mask)) = shown
        return made_pair(
            image, shown[:1], (noun,), caption, self.size, video["file_names"][frames[1]], drawn=[mask], frames=frames,
            categories=(self.categories[thing["category_id"]],),
        )  # fmt: skip


def decoded(told: Mapping[str, Any], shape: tuple[int, int]) -> np.ndarray:
    """A mask from its run lengths, down the columns: lists of numbers, or COCO's string of groups of 5 bits.

    Args:
        told: "counts" and "size" (height, width).
        shape: that it must have.

    Returns:
        (H, W) uint8 of 0 and 1.

    Raises:
        ArtefactError: another form or size.
    """
    try:
        size = tuple(int(each) for each in told["size"])
        counts = told["counts"]
        runs = _numbers(counts) if isinstance(counts, str) else [int(each) for each in counts]
        if min(runs) < 0 or len(size) != 2:
            raise ValueError
    except (KeyError, TypeError, ValueError, IndexError):
        raise ArtefactError(
            "a mask's run lengths cannot be read: expected counts and size, as COCO writes them"
        ) from None
    if size != shape:
        raise ArtefactError(f"mask of {size[1]}x{size[0]} for a picture of {shape[1]}x{shape[0]}")
    if sum(runs) != shape[0] * shape[1]:
        raise ArtefactError(f"runs of {sum(runs)} pixels for a mask of {shape[1]}x{shape[0]}")
    return np.repeat(np.arange(len(runs)) % 2, runs).astype(np.uint8).reshape(shape[1], shape[0]).T


def _numbers(text: str) -> list[int]:
    """Run lengths of COCO's string; from the fourth on differences to the one two before."""
    values: list[int] = []
    at = 0
    while at < len(text):
        value, shift, more = 0, 0, True
        while more:
            code = ord(text[at]) - 48
            if not 0 <= code < 64:
                raise ValueError
            value |= (code & 0x1F) << shift
            more, at, shift = bool(code & 0x20), at + 1, shift + 5
            if not more and code & 0x10:
                value -= 1 << shift
        values.append(value + values[-2] if len(values) > 2 else value)
    return values


def polygons(told: Sequence[Sequence[float]], shape: tuple[int, int]) -> np.ndarray:
    """A mask from outlines [x, y, x, y ...]: (H, W) uint8 of 0 and 1."""
    canvas = Image.new("L", (shape[1], shape[0]))
    for outline in told:
        ImageDraw.Draw(canvas).polygon([float(each) for each in outline], fill=1, outline=1)
    return np.asarray(canvas)


def _mask(told: Any, shape: tuple[int, int], what: str) -> np.ndarray:
    try:
        if isinstance(told, Mapping):
            return decoded(told, shape).astype(np.float32)
        return polygons(told, shape).astype(np.float32)
    except ArtefactError as error:
        raise ArtefactError(f"{what}: {error}") from None
    except (TypeError, ValueError):
        raise ArtefactError(f"{what}: the segmentation is neither outlines nor run lengths") from None


_IMAGE = ("file_name", "height", "width")


def _opened(path: str | Path, keys: Sequence[str], what: str) -> dict[str, Any]:
    path = Path(path)
    if path.is_dir():
        files = sorted(each.name for each in path.glob("*.json"))
        found = f": {', '.join(files[:5])}" if files else ""
        raise ArtefactError(f"{path} is a folder: give the file of {what}{found}")
    data = read_json(path)
    lacking = [key for key in keys if not isinstance(data, dict) or not isinstance(data.get(key), list)]
    if lacking:
        named = " and ".join(repr(key) for key in lacking)
        there = ", ".join(data) if isinstance(data, dict) else type(data).__name__
        raise ArtefactError(f"{path}: no {named} in it (it has {there[:100]}): give the file of {what}")
    return data


def _entries(data: Mapping[str, Any], name: str, needed: Sequence[str], path: str | Path) -> Iterator[dict[str, Any]]:
    single = {"images": "image", "annotations": "annotation", "videos": "video"}[name]
    for index, each in enumerate(data[name]):
        if not isinstance(each, dict) or "id" not in each:
            raise ArtefactError(f"{path}: {name}[{index}] has no 'id'")
        lacking = [key for key in needed if key not in each]
        if lacking:
            raise ArtefactError(f"{path}: {single} {each['id']} has no {' and no '.join(map(repr, lacking))}")
        yield each


def _nouns(data: Mapping[str, Any], path: str | Path) -> tuple[dict[int, str], dict[int, str]]:
    """Names of the categories by their ids, and of what is above each, "" where it is not said."""
    try:
        names = {int(each["id"]): str(each["name"]).replace("_", " ") for each in data["categories"]}
        return names, {int(each["id"]): str(each.get("supercategory") or "") for each in data["categories"]}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ArtefactError(f"{path}: a category has no id or no name") from None


def _known(annotation: Mapping[str, Any], nouns: Mapping[int, str], path: str | Path) -> None:
    if annotation["category_id"] not in nouns:
        raise ArtefactError(
            f"{path}: annotation {annotation['id']}: category_id {annotation['category_id']} is not among the "
            "categories"
        )


def _captions(path: str | Path) -> dict[int, str]:
    """The longest of each picture."""
    data = _opened(path, ("annotations",), "COCO's captions")
    found: dict[int, str] = {}
    for each in data["annotations"]:
        if not isinstance(each, dict) or not isinstance(each.get("caption"), str) or "image_id" not in each:
            raise ArtefactError(f"{path}: no 'caption' in it: give the file of COCO's captions")
        text = " ".join(each["caption"].split())
        if len(text) > len(found.get(each["image_id"], "")):
            found[each["image_id"]] = text
    return found


def _present(folder: Path, names: Sequence[str]) -> None:
    """Raises: ArtefactError: some of the pictures are not there."""
    if not folder.is_dir():
        raise ArtefactError(f"{folder}: no such folder of pictures")
    parents = {str(Path(name).parent) for name in names}
    there = {
        str(Path(parent) / each.name) for parent in parents if (folder / parent).is_dir()
        for each in (folder / parent).iterdir()
    }  # fmt: skip
    missing = sorted({name for name in names if str(Path(name)) not in there})
    if not missing:
        return
    count = len(set(names))
    if len(missing) == count:
        deeper = next((each for each in sorted(folder.iterdir()) if (each / missing[0]).is_file()), None)
        said = f": they are in {deeper}: give that folder" if deeper else f", for instance {missing[0]}"
        raise ArtefactError(f"none of {count} pictures that the annotations name is in {folder}{said}")
    raise ArtefactError(f"{folder}: {len(missing)} of {count} pictures are missing: {', '.join(missing[:3])} ...")


def _picture(folder: Path, name: str, shape: tuple[int, int]) -> Image.Image:
    image = load_image(inside(folder, name))
    if image.size != (shape[1], shape[0]):
        raise ArtefactError(
            f"{name} is {image.width}x{image.height}, and the annotations say {shape[1]}x{shape[0]}: give the "
            "pictures that they were made for"
        )
    return image
