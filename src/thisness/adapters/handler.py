"""Concepts made of learned words, low-rank weights and replaced weights: attached to a base, exported, whatever method
learned them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch import Tensor

from ..bases import Base
from ..concept import Concept
from ..errors import ArtefactError, ConfigurationError, nearest
from ..files import directory, listed, load_tensors, save_tensors, write_text
from .lora import attached_lora
from .replaced import replaced_weights
from .words import attached_words

EMBEDDINGS = "embeddings.safetensors"  # by text encoder: (tokens, width)
LORA = "lora.safetensors"  # PART.MODULE.lora_A.weight and PART.MODULE.lora_B.weight, to be applied with scale 1
REPLACED = "replaced.safetensors"  # PART.MODULE.weight, in the place of the base's own
UNET_KV = "unet_kv.safetensors"
CUSTOM_DIFFUSION = "pytorch_custom_diffusion_weights.safetensors"
FORMATS = ("diffusers",)


class AdapterHandler:
    """The `ConceptHandler` of textual inversion, of low-rank methods, of Custom Diffusion and what builds on it, and of
    what others trained in these ways."""

    @contextmanager
    def attach(self, concept: Concept, base: Base) -> Iterator[None]:
        """Words first, weights then; off again in reverse. Raises ArtefactError where something does not fit."""
        unknown = [file for file in concept.tensors if file not in (EMBEDDINGS, LORA, REPLACED)]
        if unknown:
            raise ArtefactError(
                f"{concept!r} holds {listed(unknown)}, which its method {concept.method!r} cannot attach"
            )
        concept.check_base(base, other_weights=True)
        with ExitStack() as stack:
            if EMBEDDINGS in concept.tensors:
                stack.enter_context(attached_words(base, concept.tokens, concept.tensors[EMBEDDINGS]))
            for part, tensors in by_part(concept.tensors.get(REPLACED, {}), base).items():
                stack.enter_context(replaced_weights(base.modules[part], tensors, owner=concept.name))
            for part, tensors in by_part(concept.tensors.get(LORA, {}), base).items():
                stack.enter_context(attached_lora(base.modules[part], tensors, concept.name))
            yield

    def export(self, concept: Concept, folder: Path, to: str) -> list[Path]:
        """Files as plain diffusers loads them, and `usage.txt` that says how: `learned_embeds.safetensors` (further
        words in files of their own), `pytorch_lora_weights.safetensors`, replaced weights twice (`to_diffusers`)."""
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
    """Tensors by the part of the base that they belong to.

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
    """Tensors by file name.

    Replaced weights are there twice. `unet_kv.safetensors` has the UNet's own names and is what to load. The other has
    the names of diffusers' Custom Diffusion example, with an empty tensor for each self-attention, without which its
    loader refuses it.
    """
    files: dict[str, dict[str, Tensor]] = {}
    if EMBEDDINGS in concept.tensors:
        rows = concept.tensors[EMBEDDINGS]
        if set(rows) != {"text_encoder"}:
            raise ConfigurationError(f"{concept!r}: words for several text encoders cannot be exported yet")
        first = 0
        for tokens in words_of(concept.tokens):  # a file holds one word: diffusers' loader insists on it
            files[_embeds_file(concept, tokens)] = {tokens[0]: rows["text_encoder"][first : first + len(tokens)]}
            first += len(tokens)
    if LORA in concept.tensors:
        files["pytorch_lora_weights.safetensors"] = {
            _legacy(key): tensor for key, tensor in concept.tensors[LORA].items()
        }
    if REPLACED in concept.tensors:
        plain = {key.removeprefix("unet."): tensor for key, tensor in concept.tensors[REPLACED].items()}
        files[UNET_KV] = plain
        if all(key.endswith((".attn2.to_k.weight", ".attn2.to_v.weight")) for key in plain):
            files[CUSTOM_DIFFUSION] = _custom_diffusion(plain)
    return files


def words_of(tokens: Sequence[str]) -> list[tuple[str, ...]]:
    """Tokens by word: "<rufus>" and "<rufus_1>" are one, which diffusers expands by itself; "<rufus-p-0>" another."""
    words: list[tuple[str, ...]] = []
    for token in tokens:
        if words and token == f"{words[-1][0][:-1]}_{len(words[-1])}>":
            words[-1] = (*words[-1], token)
        else:
            words.append((token,))
    return words


def _embeds_file(concept: Concept, tokens: tuple[str, ...]) -> str:
    further = "" if tokens[0] == concept.tokens[0] else "_" + tokens[0].strip("<>")
    return f"learned_embeds{further}.safetensors"


def _custom_diffusion(plain: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of diffusers' example, from the UNet's own."""
    named = {}
    for key, tensor in plain.items():
        site, _, end = key.removesuffix(".weight").rpartition(".")
        named[f"{site}.processor.{end}_custom_diffusion.weight"] = tensor
        named[f"{site.removesuffix('attn2')}attn1.processor"] = tensor.new_zeros(0)
    return named


def _legacy(key: str) -> str:
    """With the segment `text_model` that text encoders had before transformers 5: older tools require it."""
    flat = key.startswith("text_encoder.") and not key.startswith("text_encoder.text_model.")
    return key.replace("text_encoder.", "text_encoder.text_model.", 1) if flat else key


def usage(concept: Concept, files: dict[str, dict[str, Tensor]]) -> str:
    """How to load the files in plain diffusers, as text to read and to copy."""
    further = {token for word in words_of(concept.tokens) for token in word[1:]}  # diffusers expands the first to all
    word = " ".join(piece for piece in concept.word.text.split() if piece not in further)
    lines = [
        f"{concept.name} ({concept.noun}), learned by {concept.method} on {concept.manifest['base']['name']}",
        "",
        *(["from safetensors.torch import load_file"] if UNET_KV in files else []),
        "from diffusers import StableDiffusionPipeline",
        f"pipe = StableDiffusionPipeline.from_pretrained({concept.manifest['base']['name']!r})",
    ]
    for file, tensors in files.items():
        if file.startswith("learned_embeds"):
            (token,) = tensors
            lines.append(f'pipe.load_textual_inversion(".", weight_name="{file}", token="{token}")')
    if "pytorch_lora_weights.safetensors" in files:
        lines.append('pipe.load_lora_weights(".", weight_name="pytorch_lora_weights.safetensors")')
    if UNET_KV in files:
        lines.append(f'assert not pipe.unet.load_state_dict(load_file("{UNET_KV}"), strict=False).unexpected_keys')
    lines.append(f'pipe("a photo of a {word}").images[0].save("{concept.name}.png")')
    for attribute, phrases in concept.keeps.items():
        lines.append(f"to keep the {attribute} of a picture: {', '.join(map(repr, phrases))}")
    if CUSTOM_DIFFUSION in files:
        lines += [
            "",
            f"{CUSTOM_DIFFUSION} holds the same weights for tools that read the format of diffusers' example. In",
            "diffusers itself its loader changes nothing, and says nothing, unless it is given the pipeline:",
            f'pipe.unet.load_attn_procs(".", weight_name="{CUSTOM_DIFFUSION}", _pipeline=pipe)',
        ]
    return "\n".join(lines) + "\n"
