"""Concepts made of learned words, low-rank weights and replaced weights: attached to a base, exported, whatever method
learned them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch import Tensor

from ..bases import FAMILIES, Base
from ..bases.registry import find
from ..concept import Concept
from ..errors import ArtefactError, ConfigurationError, nearest
from ..files import directory, listed, load_tensors, save_tensors, write_text
from .kohya import WORD_KEYS, kohya_lora, kohya_words
from .lora import attached_lora
from .replaced import replaced_weights
from .words import attached_words

EMBEDDINGS = "embeddings.safetensors"  # by text encoder: (tokens, width)
LORA = "lora.safetensors"  # PART.MODULE.lora_A.weight and PART.MODULE.lora_B.weight, to be applied with scale 1
REPLACED = "replaced.safetensors"  # PART.MODULE.weight, in the place of the base's own
UNET_KV = "unet_kv.safetensors"
CUSTOM_DIFFUSION = "pytorch_custom_diffusion_weights.safetensors"
FORMATS = ("diffusers", "kohya")


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

    def export(self, concept: Concept, folder: Path, to: str, base: Base | None = None) -> list[Path]:
        """Files as other programs load them, and `usage.txt` that says how.

        diffusers: `learned_embeds.safetensors` (further words in files of their own),
        `pytorch_lora_weights.safetensors`, replaced weights twice (`to_diffusers`). kohya, as AUTOMATIC1111 and ComfyUI
        read it: `NAME.safetensors` (the word), `NAME_lora.safetensors`; replaced weights have no place in it.

        Raises:
            ConfigurationError: another format, or one that does not hold what was learned.
        """
        check_format(to, FORMATS)
        files = to_diffusers(concept) if to == "diffusers" else to_kohya(concept)
        text = usage(concept, files) if to == "diffusers" else kohya_usage(concept, files)
        with directory(folder) as building:
            for name, (tensors, metadata) in files.items():
                save_tensors(building / name, tensors, {"format": "pt", **metadata})
                load_tensors(building / name, expect={key: tuple(tensor.shape) for key, tensor in tensors.items()})
            write_text(building / "usage.txt", text)
        return [folder / name for name in (*files, "usage.txt")]


Files = dict[str, tuple[dict[str, Tensor], dict[str, str]]]
"""Tensors and metadata by file name."""


def check_format(to: str, known: Sequence[str], why: str = "") -> None:
    """Raises ConfigurationError for a format that is not among those known."""
    if to not in known:
        raise ConfigurationError(f"no export to {to!r}{nearest(to, known)}: {why}use {' or '.join(known)}")


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


def to_diffusers(concept: Concept) -> Files:
    """What to write.

    Replaced weights are there twice. `unet_kv.safetensors` has the UNet's own names and is what to load. The other has
    the names of diffusers' Custom Diffusion example, with an empty tensor for each self-attention, without which its
    loader refuses it.
    """
    files: Files = {}
    if EMBEDDINGS in concept.tensors:
        first = 0
        for tokens in words_of(concept.tokens):  # a file holds one word: diffusers' loader insists on it
            learned = {name: rows[first : first + len(tokens)] for name, rows in concept.tensors[EMBEDDINGS].items()}
            if len(learned) == 1:
                named = {tokens[0]: learned["text_encoder"]}
            else:
                named = {key: learned[name] for name, key in WORD_KEYS[concept.manifest["base"]["family"]].items()}
            files[_embeds_file(concept, tokens)] = named, {}
            first += len(tokens)
    if LORA in concept.tensors:
        lora = {_legacy(key): tensor for key, tensor in concept.tensors[LORA].items()}
        files["pytorch_lora_weights.safetensors"] = lora, {}
    if REPLACED in concept.tensors:
        plain = {key.removeprefix("unet."): tensor for key, tensor in concept.tensors[REPLACED].items()}
        files[UNET_KV] = plain, {}
        if all(key.endswith((".attn2.to_k.weight", ".attn2.to_v.weight")) for key in plain):
            files[CUSTOM_DIFFUSION] = _custom_diffusion(plain), {}
    return files


def to_kohya(concept: Concept) -> Files:
    """What to write.

    Raises:
        ConfigurationError: what was learned has no place in the format.
    """
    if REPLACED in concept.tensors:
        raise ConfigurationError(
            f"{concept.name!r} replaces weights of the model ({concept.method}), and the format of kohya holds words "
            "and low-rank weights only: export to diffusers"
        )
    if concept.manifest["base"]["family"] == "flux":
        raise ConfigurationError("the format of kohya for FLUX is not written here: export to diffusers")
    files: Files = {}
    if EMBEDDINGS in concept.tensors:
        files[f"{concept.name}.safetensors"] = kohya_words(concept.tensors[EMBEDDINGS]), {}
    if LORA in concept.tensors:
        several = concept.manifest["base"]["family"] == "sdxl"
        files[f"{concept.name}_lora.safetensors"] = kohya_lora(concept.tensors[LORA], several, concept.name)
    return files


def kohya_usage(concept: Concept, files: Files) -> str:
    """Where the files go and what to write in a prompt, for AUTOMATIC1111; ComfyUI differs in the folders' names."""
    words = [piece for piece in concept.word.text.split() if piece not in concept.tokens[1:]]
    word = " ".join(concept.name if piece in concept.tokens else piece for piece in words)
    lines = [f"{concept.name} ({concept.noun}), learned by {concept.method} on {concept.manifest['base']['name']}", ""]
    prompt = f"a photo of a {word}"
    for file in files:
        low_rank = file.endswith("_lora.safetensors")
        lines.append(f"{file}: into {'models/Lora' if low_rank else 'embeddings'}")
        prompt += f" <lora:{file.removesuffix('.safetensors')}:1>" if low_rank else ""
    return "\n".join([*lines, f"prompt: {prompt}", ""])


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


def _source(concept: Concept) -> str:
    """Where plain diffusers finds the base, as an expression: names of ours mean nothing to it."""
    name = concept.manifest["base"]["name"]
    facts = find(name)
    if facts is not None and facts.folder:
        return f"files('thisness').joinpath({facts.folder!r})"
    return repr(facts.hub if facts is not None and name == facts.name else name)


def usage(concept: Concept, files: Files) -> str:
    """How to load the files in plain diffusers, as text to read and to copy."""
    further = {token for word in words_of(concept.tokens) for token in word[1:]}  # diffusers expands the first to all
    word = " ".join(piece for piece in concept.word.text.split() if piece not in further)
    family = concept.manifest["base"]["family"]
    pipeline = FAMILIES[family].pipeline_class
    two_encoders = len(concept.tensors.get(EMBEDDINGS, {})) > 1
    lines = [
        f"{concept.name} ({concept.noun}), learned by {concept.method} on {concept.manifest['base']['name']}",
        "",
        *(["from importlib.resources import files"] if _source(concept).startswith("files(") else []),
        *(["from safetensors.torch import load_file"] if UNET_KV in files or two_encoders else []),
        f"from diffusers import {pipeline}",
        f"pipe = {pipeline}.from_pretrained({_source(concept)})",
    ]
    for tokens in words_of(concept.tokens) if EMBEDDINGS in concept.tensors else ():
        file, token = _embeds_file(concept, tokens), tokens[0]
        if not two_encoders:
            lines.append(f'pipe.load_textual_inversion(".", weight_name="{file}", token="{token}")')
            continue
        lines.append(f'words = load_file("{file}")')
        for encoder, key in WORD_KEYS[family].items():
            end = encoder.removeprefix("text_encoder")
            parts = f"text_encoder=pipe.text_encoder{end}, tokenizer=pipe.tokenizer{end}"
            lines.append(f'pipe.load_textual_inversion(words["{key}"], token="{token}", {parts})')
    if two_encoders:  # published configs say 2, for which transformers takes the learned word for the end mark
        pooling = {"sdxl": ("_2.text_model", "_2"), "flux": ("", "")}[family]
        lines.append(f"pipe.text_encoder{pooling[0]}.eos_token_id = pipe.tokenizer{pooling[1]}.eos_token_id")
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
