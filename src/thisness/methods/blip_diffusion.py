"""BLIP-Diffusion: Pre-trained Subject Representation for Controllable Text-to-Image Generation and Editing.

Li, Li, Hoi, NeurIPS 2023, arXiv 2305.14720; official code salesforce/LAVIS. Part -> function:

    section 3.1, picture and category to 16 rows                       `blip_qformer.QFormer`
    section 3.1, the rows between the words of the sentence            `adapters.attached_words`: a word of 16 tokens
    inference, the sentence said 20 times, cleaned                     `repeated`, `cleaned`
    the long negative prompt of the official notebook                  `NEGATIVE`

The rows stand where the placeholder stands, and the places of what comes after run on: that is what the official
context encoding computes, so whatever acts on learned words acts on them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..adapters import EMBEDDINGS, AdapterHandler
from ..adapters.handler import LORA
from ..adapters.lora import attached_lora
from ..adapters.words import vocabulary_rows
from ..bases import Base
from ..bases.locate import from_hub
from ..bases.quiet import quiet
from ..concept import Concept
from ..errors import ArtefactError, ConfigurationError
from ..files import load_tensors, read_json, sha256
from ..files.tensors import compare_shapes
from ..prompt import Prompt, placeholder_tokens
from ..subject import Subject
from .blip_qformer import QFormer, QFormerConfig, VisionConfig, configured
from .image_states import ImageEncoder, pixels_of, square
from .registry import register_method
from .updates import setting
from .zero_shot import CONFIG, WEIGHTS, AdapterWeights, ZeroShotMethod, open_weights

NAME = "blip-diffusion"
LORA_PART = "unet."  # low-rank weights of the denoiser, where they were trained with the querying transformer
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
NEGATIVE = (
    "over-exposure, under-exposure, saturated, duplicate, out of frame, lowres, cropped, worst quality, low quality, "
    "jpeg artifacts, morbid, mutilated, out of frame, ugly, bad anatomy, bad proportions, deformed, blurry, duplicate"
)
MAX_WORDS = 50  # of LAVIS's clean-up


@dataclass(frozen=True)
class BlipDiffusionSettings:
    """Of the official code, with the long negative prompt of its notebook; the preset "small" says sentences once."""

    weights: str = setting("", "a folder like Salesforce/blipdiffusion, or its hub id; the embedded ones by default")
    category: str = setting("", "what the picture shows, for the querying transformer; the subject's noun by default")
    repeat: int = setting(20, "how often the sentence is said, as far as it fits; 1 as it is")
    clean: bool = setting(True, "lower case and no punctuation, as LAVIS does it")
    negative: Literal["long", "none"] = setting("long", "what pictures should not show, where nothing else is given")
    resize: Literal["crop", "squash"] = setting("crop", "how pictures become square: the middle, or all of it")
    bert: str = setting("google-bert/bert-base-uncased", "tokenizer of the category, for published weights")

    def __post_init__(self) -> None:
        if not 1 <= self.repeat <= 100:
            raise ValueError(f"repeat {self.repeat} must be in 1 ... 100")


def cleaned(text: str) -> str:
    """LAVIS's clean-up of captions: lower case, without .!"()*#:;~ and what is over 50 words."""
    plain = re.sub(r"\s{2,}", " ", re.sub(r"([.!\"()*#:;~])", " ", text.lower())).strip()
    return " ".join(plain.split(" ")[:MAX_WORDS])


def repeated(text: str, slot: str, noun: str, times: int, tokenizer: Any, room: int) -> str:
    """A sentence said several times, as far as it fits; the copies have the noun alone.

    Args:
        text: "a {subject} sleeping".
        slot: "subject".
        noun: what the copies say in its place.
        times: how often at most.
        tokenizer: that counts.
        room: tokens with the marks, without the rows of the picture.

    Returns:
        "a {subject} sleeping, a dog sleeping, a dog"; the text itself if it was made by this before.
    """
    copy = text.replace(f"{{{slot}}}", noun)
    opening = text.partition(f"{{{slot}}}")[0] + noun
    if times == 1 or text.count(f"{{{slot}}}") != 1 or f", {opening}" in copy:
        return text
    whole = ", ".join([copy] * times)
    found = tokenizer(whole, return_offsets_mapping=True, verbose=False)
    if len(found["input_ids"]) > room:
        cut = found["offset_mapping"][room - 1][0]
        if whole[cut - 1 : cut].isalnum() and whole[cut : cut + 1].isalnum():
            cut = whole.rfind(" ", 0, cut)
        whole = whole[:cut].rstrip(" ")
    return text + whole[len(copy) :] if len(whole) > len(copy) else text


class BlipDiffusionHandler(AdapterHandler):
    """Attaches the rows that were read, and the low-rank weights that go with them."""

    @contextmanager
    def attach(self, concept: Concept, base: Base) -> Iterator[None]:
        """Raises ArtefactError where something does not fit."""
        lora = self._lora(concept, base)
        with super().attach(concept, base):
            if lora:
                with attached_lora(base.denoiser, lora, concept.name):
                    yield
            else:
                yield

    def sentence(self, concept: Concept, prompt: Prompt, negative: str, base: Base) -> tuple[Prompt, str]:
        """The sentence and the negative one as the concept's settings want them."""
        settings, slots = concept.settings, prompt.slots
        text = cleaned(prompt.text) if settings["clean"] else prompt.text
        if len(slots) == 1:
            room = base.tokenizer.model_max_length - len(concept.tokens)
            text = repeated(text, slots[0], concept.noun, settings["repeat"], base.tokenizer, room)
        return Prompt(text), negative or (NEGATIVE if settings["negative"] == "long" else "")

    def export(self, concept: Concept, folder: Path, to: str, base: Base | None = None) -> list[Path]:
        """The rows as a learned word of several tokens, and the low-rank weights."""
        if concept.settings["lora"]:
            if base is None:
                from ..bases import load_base

                base = load_base(str(concept.manifest["base"]["name"]))
            lora = {f"{LORA_PART}{name}": tensor for name, tensor in self._lora(concept, base).items()}
            concept = concept.with_tensors({EMBEDDINGS: concept.tensors[EMBEDDINGS], LORA: lora})
        return super().export(concept, folder, to, base)

    @staticmethod
    def _lora(concept: Concept, base: Base) -> dict[str, Tensor]:
        if not concept.settings["lora"]:
            return {}
        weights = open_weights(NAME, concept.settings["weights"], base, concept.settings["signature"])
        return lora_of(weights)


def lora_of(weights: AdapterWeights) -> dict[str, Tensor]:
    """Low-rank weights of the denoiser that belong to a querying transformer; {} for published ones."""
    return {name.removeprefix(LORA_PART): t for name, t in weights.tensors.items() if name.startswith(LORA_PART)}


@register_method(NAME)
class BlipDiffusion(ZeroShotMethod):
    """One picture and its category to a word of several tokens before the noun."""

    Settings = BlipDiffusionSettings
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "small": {"repeat": 1, "clean": False, "negative": "none"},
    }
    handler = BlipDiffusionHandler()

    @torch.no_grad()
    def read(self, subject: Subject, base: Base, settings: BlipDiffusionSettings) -> Concept:
        if base.family != "sd":
            raise ConfigurationError(
                f"{NAME} is made for Stable Diffusion 1.x, and {base.name!r} is of the family {base.family}"
            )
        weights = open_blip(settings.weights, base)
        model = build(weights, base)
        category = settings.category or subject.noun
        if "image_encoder" in weights.config:
            encoder = ImageEncoder(weights.config["image_encoder"], weights.config.get("image_encoder_signature", ""))
            picture, mask = square(subject, encoder.size)
            if mask is not None and weights.config.get("background", "keep") == "drop":
                picture = picture * mask
            states = normalised(encoder.states(picture, [int(weights.config["level"])])[0])
            words = vocabulary_rows(base, category)["text_encoder"][None].cpu()
        else:
            states = model.visual_encoder(published_pixels(subject, model.visual_encoder.config, settings.resize))
            words = category_ids(category, settings.bert, model.config.vocab_size)
        rows = model(states, words)[0]
        tokens = placeholder_tokens(subject.name, len(rows))
        said = {**asdict(settings), "signature": weights.signature, "lora": bool(lora_of(weights))}
        word = f"{' '.join(tokens)} {subject.noun}"
        tensors = {EMBEDDINGS: {"text_encoder": rows.float().contiguous()}}
        return Concept.create(NAME, subject, base, word=word, tokens=tokens, tensors=tensors, settings=said)


def normalised(states: Tensor) -> Tensor:
    """Token states of an encoder without its final norm, each to mean 0 and deviation 1."""
    return torch.nn.functional.layer_norm(states, states.shape[-1:])


def open_blip(given: str, base: Base) -> AdapterWeights:
    """The weights, wherever they are: embedded, of ours, or laid out as published (a folder "qformer" in them).

    Raises:
        ArtefactError: not there, or other weights.
        UserError: a hub id that cannot be had.
    """
    path = Path(given).expanduser()
    folder = path if not given or path.is_dir() or given.startswith((".", "/", "~")) else _published(given)
    if not given or not (folder / "qformer").is_dir():
        return open_weights(NAME, given, base)
    file = folder / "qformer" / WEIGHTS
    if not file.is_file():
        pickled = next(iter(sorted((folder / "qformer").glob("*.bin"))), None)
        if pickled is not None:
            load_tensors(pickled)  # refuses, and says how to convert it
        raise ArtefactError(f"{given}: qformer/{WEIGHTS} is missing")
    config = read_json(folder / "qformer" / CONFIG)
    said = {"vision": config.get("vision_config", {}), "qformer": dict(config.get("qformer_config", {}))}
    said["qformer"]["num_query_tokens"] = config.get("num_query_tokens", QFormerConfig.num_query_tokens)
    tensors = {name: tensor.float() for name, tensor in load_tensors(file).items()}
    return AdapterWeights(given, said, tensors, sha256(file))


def _published(hub_id: str) -> Path:
    return from_hub(hub_id, ("qformer/*.json", "qformer/*.safetensors", CONFIG, WEIGHTS))


def build(weights: AdapterWeights, base: Base) -> QFormer:
    """The model that the weights are of.

    Raises:
        ArtefactError: names or shapes that differ from its config: all of them; or rows of another width than the
            base's text encoder reads.
    """
    vision = weights.config.get("vision")
    with torch.device("meta"):
        model = QFormer(
            configured(QFormerConfig, weights.config.get("qformer", {})),
            None if vision is None else configured(VisionConfig, vision),
        )
    tensors = {
        name: tensor
        for name, tensor in weights.tensors.items()
        if not name.startswith(LORA_PART) and not name.endswith("position_ids")
    }
    expect = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    compare_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, expect, weights.name)
    model.load_state_dict(tensors, assign=True)
    width = model.config.out_size or model.config.hidden_size
    reads = int(base.modules["text_encoder"].get_input_embeddings().embedding_dim)  # type: ignore[operator]
    if width != reads:
        raise ArtefactError(
            f"{weights.name} gives rows of {width}, and the text encoder of {base.name!r} reads {reads}: use the base "
            "that they were made for"
        )
    return model.eval().requires_grad_(False)


def published_pixels(subject: Subject, config: VisionConfig, resize: str) -> Tensor:
    """The first picture as the published model takes it: (1, 3, size, size), normalised as CLIP's."""
    from PIL import Image

    image, size = subject.images[0], config.image_size
    if resize == "crop":
        shorter = min(image.size)
        width, height = (max(size, round(side * size / shorter)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    else:
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (pixels_of(image) - mean) / std


def category_ids(category: str, tokenizer: str, vocabulary: int) -> Tensor:
    """Ids of BERT with its marks, (1, length).

    Raises:
        ArtefactError: another vocabulary than the model was trained with (one more for [DEC]).
        UserError: the tokenizer cannot be had.
    """
    from transformers import BertTokenizer

    path = Path(tokenizer).expanduser()
    folder = path if path.is_dir() else from_hub(tokenizer, ("vocab.txt", "tokenizer*.json"))
    try:
        with quiet():
            known = BertTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ArtefactError(f"bert {tokenizer}: {str(error).splitlines()[0]}") from error
    if len(known) + 1 != vocabulary:
        raise ArtefactError(
            f"bert {tokenizer} has {len(known)} words, and the querying transformer was trained with {vocabulary - 1}: "
            "give the tokenizer of bert-base-uncased (bert=FOLDER)"
        )
    return torch.tensor([known(category.lower())["input_ids"]])
