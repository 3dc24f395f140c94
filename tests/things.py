"""Pairs for tests, drawn here: folders of things, and COCO and YouTube-VIS in their exact layout; colours say who is
where."""

import json

import numpy as np
from PIL import Image

THINGS = {"rex": ((200, 20, 20), "dog"), "mug": ((20, 20, 200), "cup")}


def draw_thing(folder, colour, count=3, noun="", masks=True, size=(40, 30)):
    """Pictures 0.png ...: a square of the thing's colour, before a grey that says which picture it is."""
    folder.mkdir(parents=True)
    for n in range(count):
        pixels = np.full((size[1], size[0], 3), 80 + 20 * n, np.uint8)
        mask = np.zeros((size[1], size[0]), np.uint8)
        mask[8:20, 6 + 3 * n : 18 + 3 * n] = 255
        pixels[mask > 0] = colour
        Image.fromarray(pixels).save(folder / f"{n}.png")
        if masks:
            Image.fromarray(mask).save(folder / f"{n}_mask.png")
    if noun:
        (folder / "noun.txt").write_text(noun)
    return folder


def draw_things(folder):
    """One folder for each of THINGS, with masks and nouns."""
    for name, (colour, noun) in THINGS.items():
        draw_thing(folder / name, colour, noun=noun)
    return folder


RED, BLUE, GREY = (200, 20, 20), (20, 20, 200), (90, 90, 90)


def runs(mask):
    """Uncompressed RLE: lengths of zeros and ones in turn, down the columns."""
    flat, counts, value = mask.T.ravel(), [], 0
    while flat.size:
        other = np.flatnonzero(flat != value)
        length = int(other[0]) if other.size else flat.size
        counts.append(length)
        flat, value = flat[length:], 1 - value
    return {"counts": counts, "size": list(mask.shape)}


def box(x, y, w, h):
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def coco(folder):
    pictures = folder / "train2014"
    pictures.mkdir(parents=True)
    pixels = np.full((60, 90, 3), GREY, np.uint8)
    pixels[10:40, 5:35], pixels[15:50, 50:85] = RED, BLUE
    Image.fromarray(pixels).save(pictures / "COCO_train2014_000000000009.jpg", quality=100, subsampling=0)
    Image.fromarray(pixels[:, ::-1]).save(pictures / "COCO_train2014_000000000025.jpg", quality=100)
    crowd = runs(np.ones((60, 90), np.uint8))
    instances = {
        "info": {}, "licenses": [],
        "images": [
            {"id": 9, "file_name": "COCO_train2014_000000000009.jpg", "width": 90, "height": 60},
            {"id": 25, "file_name": "COCO_train2014_000000000025.jpg", "width": 90, "height": 60},
        ],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 18, "iscrowd": 0, "area": 900.0, "bbox": [5, 10, 30, 30],
             "segmentation": box(5, 10, 29, 29)},
            {"id": 2, "image_id": 9, "category_id": 17, "iscrowd": 0, "area": 1225.0, "bbox": [50, 15, 35, 35],
             "segmentation": box(50, 15, 34, 34)},
            {"id": 3, "image_id": 9, "category_id": 18, "iscrowd": 0, "area": 4.0, "bbox": [0, 0, 2, 2],
             "segmentation": box(0, 0, 2, 2)},
            {"id": 4, "image_id": 25, "category_id": 18, "iscrowd": 1, "area": 5400.0, "bbox": [0, 0, 90, 60],
             "segmentation": crowd},
        ],
        "categories": [
            {"id": 17, "name": "cat", "supercategory": "animal"}, {"id": 18, "name": "dog", "supercategory": "animal"},
        ],
    }  # fmt: skip
    captions = {
        "images": instances["images"],
        "annotations": [
            {"id": 1, "image_id": 9, "caption": "A dog and a cat."},
            {"id": 2, "image_id": 9, "caption": "A red dog stands beside a blue cat. "},
        ],
    }
    (folder / "annotations").mkdir()
    for name, data in (("instances_train2014", instances), ("captions_train2014", captions)):
        (folder / "annotations" / f"{name}.json").write_text(json.dumps(data))
    return folder / "annotations" / "instances_train2014.json", pictures


def vis(folder, frames=8):
    data = {
        "info": {}, "licenses": [],
        "videos": [{
            "id": 1, "width": 80, "height": 60, "length": frames,
            "file_names": [f"0043f083b5/{5 * n:05d}.jpg" for n in range(frames)],
        }],
        "categories": [{"id": 1, "name": "person", "supercategory": "object"},
                       {"id": 6, "name": "dog", "supercategory": "object"}],
        "annotations": [],
    }  # fmt: skip
    (folder / "JPEGImages" / "0043f083b5").mkdir(parents=True)
    masks = []
    for n in range(frames):
        mask = np.zeros((60, 80), np.uint8)
        mask[20:45, 4 * n : 4 * n + 25] = 1
        pixels = np.where(mask[..., None] == 1, np.array(RED), np.array(GREY) + 8 * n).astype(np.uint8)
        Image.fromarray(pixels).save(
            folder / "JPEGImages" / data["videos"][0]["file_names"][n], quality=100, subsampling=0
        )
        masks.append(None if n == 3 else runs(mask))
    short = [runs(np.eye(60, 80, dtype=np.uint8))] + [None] * (frames - 1)
    for number, (category, segmentations) in enumerate(((6, masks), (1, short)), 1):
        data["annotations"].append({
            "id": number, "video_id": 1, "category_id": category, "iscrowd": 0, "width": 80, "height": 60,
            "length": frames, "segmentations": segmentations, "bboxes": [s and [0, 0, 1, 1] for s in segmentations],
            "areas": [s and sum(s["counts"][1::2]) for s in segmentations],
        })  # fmt: skip
    (folder / "instances.json").write_text(json.dumps(data))
    return folder / "instances.json", folder / "JPEGImages"
