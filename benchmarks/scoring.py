"""Pictures scored a second: our metrics against a one-by-one loop in the manner of the public harnesses.

    .venv/bin/python benchmarks/scoring.py
    .venv/bin/python benchmarks/scoring.py --device cuda --full

Both give CLIP-T, CLIP-I and DINO-I of the same pictures against the same references, in the same process, in turns.
The plain loop takes one picture at a time: for each metric it prepares the picture, encodes it, and encodes again what
it is compared with. Ours encodes each picture and sentence once, in batches. Weights are random where the embedded
encoders are not there; with --full, models of the size of CLIP ViT-L/14 and DINOv2 ViT-B/14. Target: 1.5 times as many
on the CPU, 3 times on a GPU.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import interleaved, median_ratio, parser, report, spread
from PIL import Image

from thisness.evaluation.encoders import known_encoders, open_encoder
from thisness.evaluation.encoders.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from thisness.evaluation.items import Item, Picture
from thisness.evaluation.metrics import make_metrics
from thisness.files import write_json

TARGETS = {"cpu": 1.5, "cuda": 3.0}
SENTENCE = "a photo of a dog sleeping on the beach"


def main() -> None:
    options = parser(str(__doc__), repeats=5)
    options.add_argument("--device", default="cpu")
    options.add_argument("--full", action="store_true", help="CLIP ViT-L/14 and DINOv2 ViT-B/14, with random weights")
    options.add_argument("--pictures", type=int, default=64, help="made pictures of one subject")
    options.add_argument("--references", type=int, default=4)
    options.add_argument("--size", type=int, help="side of the pictures, in pixels (512 with --full, else 128)")
    options.add_argument("--batch-size", type=int, default=16)
    options.add_argument("--one-reference", action="store_true", help="compare with the first reference only")
    given = options.parse_args()
    size = given.size or (512 if given.full else 128)
    with encoder_folders(given.full) as (clip, dino):
        items = made_items(given.pictures, given.references, size)
        how = "first" if given.one_reference else "mean"
        texts = [f"clip-t:encoder={clip}", f"clip-i:encoder={clip},references={how}"]
        texts.append(f"dino-i:encoder={dino},references={how}")
        kept = [open_encoder(name, device=given.device) for name in (clip, dino)]  # loading is not what is timed

        def ours() -> list[list[float | None]]:
            """A new cache each time: nothing is known from the round before."""
            metrics = make_metrics(texts, device=given.device, batch_size=given.batch_size)
            return [metric.score(items) for metric in metrics]

        plain_loop = PlainLoop(str(clip), str(dino), given.device, given.one_reference)
        difference = float(np.abs(np.array(ours(), float) - np.array(plain_loop(items))).max())
        seconds = interleaved({"plain": lambda: plain_loop(items), "ours": ours}, given.repeats)
        names = " and ".join(encoder.name for encoder in kept)
    rows = [
        {
            "loop": name,
            "pictures/s": given.pictures / statistics.median(taken),
            "s": statistics.median(taken),
            "+- s": spread(taken),
        }
        for name, taken in seconds.items()
    ]
    report(
        f"Scoring: {names} on {given.device}, CLIP-T + CLIP-I + DINO-I, {given.pictures} pictures of {size}x{size} "
        f"against {1 if given.one_reference else given.references} of {given.references} references, "
        f"batches of {given.batch_size}, {given.repeats} rounds",
        rows,
        given.json,
        ratio=median_ratio(seconds["plain"], seconds["ours"]),
        target_ratio=TARGETS["cuda" if given.device.startswith("cuda") else "cpu"],
        largest_difference_of_a_value=difference,
    )


class PlainLoop:
    """One picture at a time by transformers' processors and models; nothing is kept."""

    def __init__(self, clip: str, dino: str, device: str, one_reference: bool) -> None:
        opened = [open_encoder(name, device=device) for name in (clip, dino)]
        self.clip, self.dino = (encoder.model for encoder in opened)
        self.tokenizer, self.device, self.one = opened[0].tokenizer, device, one_reference
        self.processors = [_processor(encoder.preprocessing) for encoder in opened]

    @torch.no_grad()
    def __call__(self, items: list[Item]) -> list[list[float]]:
        """Values by metric, by item."""
        rows = []
        for item in items:
            references = item.references[:1] if self.one else item.references
            rows.append(
                [
                    self._cosine(self._text(item.sentence), self._clip(item.picture)),
                    self._mean(self._clip, item.picture, references),
                    self._mean(self._dino, item.picture, references),
                ]
            )
        return [list(column) for column in zip(*rows, strict=True)]

    def _mean(self, encode: Any, picture: Picture, references: tuple[Picture, ...]) -> float:
        """The made picture once, each reference anew: as harnesses do that take two folders."""
        made = encode(picture)
        return sum(self._cosine(made, encode(each)) for each in references) / len(references)

    def _cosine(self, a: torch.Tensor, b: torch.Tensor) -> float:
        return float(torch.nn.functional.cosine_similarity(a, b))

    def _clip(self, picture: Picture) -> torch.Tensor:
        return self.clip.get_image_features(pixel_values=self._pixels(0, picture)).pooler_output

    def _dino(self, picture: Picture) -> torch.Tensor:
        return self.dino(pixel_values=self._pixels(1, picture)).last_hidden_state[:, 0]

    def _text(self, sentence: str) -> torch.Tensor:
        words = self.tokenizer(sentence, return_tensors="pt").to(self.device)
        return self.clip.get_text_features(**words).pooler_output

    def _pixels(self, which: int, picture: Picture) -> torch.Tensor:
        return self.processors[which](images=picture.image, return_tensors="pt").pixel_values.to(self.device)


def _processor(said: Any) -> Any:
    """transformers' own processor that does the same."""
    from transformers import CLIPImageProcessorPil, ViTImageProcessorPil

    shared = {"image_mean": list(said.mean), "image_std": list(said.std), "resample": 3}
    if isinstance(said.resize, int):
        height, width = said.crop
        crop = {"height": height, "width": width}
        return CLIPImageProcessorPil(size={"shortest_edge": said.resize}, crop_size=crop, **shared)
    return ViTImageProcessorPil(size={"height": said.resize[0], "width": said.resize[1]}, **shared)


def made_items(count: int, references: int, size: int) -> list[Item]:
    """Pictures of smooth noise: what is in them does not change the time."""
    rng = np.random.default_rng(0)

    def picture() -> Picture:
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        return Picture(small.resize((size, size), Image.Resampling.BICUBIC))

    own = tuple(picture() for _ in range(references))
    made = [picture() for _ in range(count)]
    for each in (*own, *made):
        assert each.hash  # the runner knows it already: it is in its plan
    return [Item(f"{at}", "r", "s", "c", at, each, own, "dog", SENTENCE) for at, each in enumerate(made)]


@contextmanager
def encoder_folders(full: bool) -> Iterator[tuple[str | Path, str | Path]]:
    """The embedded encoders, or folders of models of a size with random weights."""
    embedded = [name for name, facts in known_encoders().items() if "folder" in facts]
    if not full and all(_is_there(name) for name in embedded):
        yield "playroom-clip", "playroom-identity"
        return
    with tempfile.TemporaryDirectory(prefix="thisness-") as folder:
        yield _random_clip(Path(folder), full), _random_dino(Path(folder), full)


def _is_there(name: str) -> bool:
    from thisness.errors import UserError

    try:
        open_encoder(name)
    except UserError:
        return False
    return True


def _random_clip(folder: Path, full: bool) -> Path:
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    from thisness.bases.locate import locate

    torch.manual_seed(0)
    tokens = CLIPTokenizer.from_pretrained(locate("playroom-sd", ("*",))[0] / "tokenizer")
    marks = {"vocab_size": len(tokens), "bos_token_id": tokens.bos_token_id, "eos_token_id": tokens.eos_token_id}
    if full:
        text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "max_position_embeddings": 77}
        sight = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24}
        sight |= {"patch_size": 14, "image_size": 224}
        path, width, size = folder / "random-clip-vit-large-patch14", 768, 224
    else:
        text = {"hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 4, "max_position_embeddings": 48}
        text |= {"num_hidden_layers": 3}
        sight = {"hidden_size": 160, "intermediate_size": 480, "num_attention_heads": 4, "num_hidden_layers": 6}
        sight |= {"patch_size": 16, "image_size": 128}
        path, width, size = folder / "random-playroom-clip", 192, 128
    CLIPModel(CLIPConfig(text_config={**text, **marks}, vision_config=sight, projection_dim=width)).save_pretrained(
        path
    )
    tokens.save_pretrained(path)
    _write_preprocessor(path, {"shortest_edge": size}, size, (0.5,) * 3, (0.5,) * 3)
    return path


def _random_dino(folder: Path, full: bool) -> Path:
    from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

    torch.manual_seed(1)
    if full:
        path = folder / "random-dinov2-base"
        Dinov2Model(Dinov2Config(image_size=518, patch_size=14)).save_pretrained(path)  # the defaults are ViT-B
        _write_preprocessor(path, {"shortest_edge": 256}, 224, IMAGENET_MEAN, IMAGENET_STD)
        return path
    path = folder / "random-playroom-identity"
    sizes = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 6, "num_attention_heads": 4}
    ViTModel(ViTConfig(**sizes, image_size=128, patch_size=16), add_pooling_layer=False).save_pretrained(path)
    _write_preprocessor(path, {"height": 128, "width": 128}, None, (0.5,) * 3, (0.5,) * 3)
    return path


def _write_preprocessor(folder: Path, size: dict, crop: int | None, mean: Any, std: Any) -> None:
    more = {"do_center_crop": True, "crop_size": {"height": crop, "width": crop}} if crop else {}
    write_json(
        folder / "preprocessor_config.json",
        {"size": size, "resample": 3, "image_mean": list(mean), "image_std": list(std), **more},
    )


if __name__ == "__main__":
    main()
