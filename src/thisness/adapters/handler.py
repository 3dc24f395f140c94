"""Concepts made of learned words and low-rank weights: attached to a base, exported, whatever method learned them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch import Tensor

from ..bases import Base
from ..concept import Concept
from ..errors import ArtefactError, ConfigurationError, nearest
from ..files import directory, listed, load_tensors, save_tensors, write_text
from .lora import attached_lora
from .words import attached_words

EMBEDDINGS = "embeddings.safetensors"  # by text encoder: (tokens, width)
LORA = "lora.safetensors"  # PART.MODULE.lora_A.weight and PART.MODULE.lora_B.weight, to be applied with scale 1
FORMATS = ("diffusers",)


class AdapterHandler:
    """The `ConceptHandler` of textual inversion, of low-rank methods, and of what others trained in these ways."""

    @contextmanager
    def attach(self, concept: Concept, base: Base) -> Iterator[None]:
        """Words first, weights then; off again in reverse. Raises ArtefactError where something does not fit."""
        unknown = [file for file in concept.tensors if file not in (EMBEDDINGS, LORA)]
        if unknown:
            raise ArtefactError(
                f"{concept!r} holds {listed(unknown)}, which its method {concept.method!r} cannot attach"
            )
        concept.check_base(base, other_weights=True)
        with ExitStack() as stack:
            if EMBEDDINGS in concept.tensors:
                stack.enter_context(attached_words(base, concept.tokens, concept.tensors[EMBEDDINGS]))
            for part, tensors in by_part(concept.tensors.get(LORA, {}), base).items():
                stack.enter_context(attached_lora(base.modules[part], tensors, concept.name))
            yield

    def export(self, concept: Concept, folder: Path, to: str) -> list[Path]:
        """`learned_embeds.safetensors` and `pytorch_lora_weights.safetensors`, as plain diffusers loads them."""
        if to not in FORMATS:
            raise ConfigurationError(f"no export to {to!r}{nearest(to, FORMATS)}: use one of {', '.join(FORMATS)}")
        files = to_diffusers(concept)
        with directory(folder) as building:
            for name, tensors in files.items():
                save_tensors(building / name, tensors, {"format": "pt"})
                load_tensors(building / name, expect={key: tuple(tensor.shape) for key, tensor in tensors.items()})
            write_text(building / "usage.txt", usage(concept, files))
        return [folder / name for name in (*files, "usage.txt")]


def by_part(tensors: dict[str, Tensor], base: Base) -> dict[str, dict[str, Tensor]]:
    """Low-rank tensors by the part of the base that they belong to.

    Raises:
        ArtefactError: names that begin with no part of the base.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    homeless = []
    for key, tensor in tensors.items():
        part, _, rest = key.partition(".")
        if part in base.modules:
            parts.setdefault(part, {})[rest] = tensor
        else:
            homeless.append(key)
    if homeless:
        raise ArtefactError(f"{listed(homeless)}: names begin with a part of the base ({', '.join(base.modules)})")
    return parts


def to_diffusers(concept: Concept) -> dict[str, dict[str, Tensor]]:
    """Tensors by file name."""
    files: dict[str, dict[str, Tensor]] = {}
    if EMBEDDINGS in concept.tensors:
        rows = concept.tensors[EMBEDDINGS]
        if set(rows) != {"text_encoder"}:
            raise ConfigurationError(f"{concept!r}: words for several text encoders cannot be exported yet")
        files["learned_embeds.safetensors"] = {concept.tokens[0]: rows["text_encoder"]}
    if LORA in concept.tensors:
        files["pytorch_lora_weights.safetensors"] = {
            _legacy(key): tensor for key, tensor in concept.tensors[LORA].items()
        }
    return files


def _legacy(key: str) -> str:
    """With the segment `text_model` that text encoders had before transformers 5: older tools require it."""
    flat = key.startswith("text_encoder.") and not key.startswith("text_encoder.text_model.")
    return key.replace("text_encoder.", "text_encoder.text_model.", 1) if flat else key


def usage(concept: Concept, files: dict[str, dict[str, Tensor]]) -> str:
    """How to load the files in plain diffusers, as text to read and to copy."""
    token = concept.tokens[0] if concept.tokens else ""
    # diffusers itself expands the first token to all of them
    word = " ".join(piece for piece in concept.word.text.split() if piece not in concept.tokens[1:])
    lines = [
        f"{concept.name} ({concept.noun}), learned by {concept.method} on {concept.manifest['base']['name']}",
        "",
        "from diffusers import StableDiffusionPipeline",
        f"pipe = StableDiffusionPipeline.from_pretrained({concept.manifest['base']['name']!r})",
    ]
    if "learned_embeds.safetensors" in files:
        lines.append(f'pipe.load_textual_inversion(".", weight_name="learned_embeds.safetensors", token="{token}")')
    if "pytorch_lora_weights.safetensors" in files:
        lines.append('pipe.load_lora_weights(".", weight_name="pytorch_lora_weights.safetensors")')
    lines.append(f'pipe("a photo of a {word}").images[0].save("{concept.name}.png")')
    return "\n".join(lines) + "\n"
