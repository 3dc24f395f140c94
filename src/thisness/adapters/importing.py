"""What others trained, as a concept: learned words and low-rank weights in the formats that are about.

Words: diffusers ("<token>": rows), AUTOMATIC1111 ("emb_params": rows), of SDXL's two encoders "clip_l" and "clip_g".
Low-rank weights: diffusers and PEFT (lora_A, lora_B), older diffusers (lora.down,
lora.up; processors), kohya-ss (lora_unet_..., with alpha).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..bases import Base
from ..concept import Concept, register_handler
from ..errors import ArtefactError, raise_all
from ..files import listed, load_tensors, safe_name, sha256
from ..prompt import clean_text, placeholder_tokens
from ..subject import checked_noun
from .handler import EMBEDDINGS, LORA, AdapterHandler, by_part
from .kohya import WORD_KEYS
from .lora import A, B, attached_lora, pairs_of
from .words import attached_words, text_parts

WORDS_METHOD, LORA_METHOD = "imported-words", "imported-lora"
_ENDS = (
    (".lora_A.weight", A), (".lora_B.weight", B),
    (".lora.down.weight", A), (".lora.up.weight", B),
    (".lora_down.weight", A), (".lora_up.weight", B),
    (".lora_linear_layer.down.weight", A), (".lora_linear_layer.up.weight", B),
    ("_lora.down.weight", A), ("_lora.up.weight", B),
)  # fmt: skip


@dataclass(frozen=True)
class _Source:
    """What stands in a manifest for the pictures that we never saw."""

    name: str
    noun: str
    hash: str
    images: tuple[()] = ()


def import_words(path: Path, base: Base, noun: str, name: str | None, keep_noun: bool) -> Concept:
    """As `Concept.from_textual_inversion`."""
    found = load_tensors(path)
    parts = list(text_parts(base))
    several = WORD_KEYS.get(base.family, {})
    keys = tuple(several[part] for part in parts) if len(parts) > 1 else tuple(found)
    if len(found) != len(parts) or set(found) != set(keys):
        expected = " and ".join(several.values()) if len(parts) > 1 else "one learned word for one text encoder"
        raise ArtefactError(f"{path} holds {listed(found)}: expected {expected}")
    rows = {part: torch.atleast_2d(found[key]).float().contiguous() for part, key in zip(parts, keys, strict=True)}
    for (encoder, own), key in zip(rows.items(), keys, strict=True):
        width = int(base.modules[encoder].get_input_embeddings().embedding_dim)  # type: ignore[operator]
        if own.ndim != 2 or own.shape[1] != width:
            raise ArtefactError(
                f"{path}: the rows of {key!r} are {tuple(own.shape)}, {base.name} reads width {width}: "
                "it was trained for another family of models"
            )
    name = name or safe_name(path.stem if keys[0] in ("emb_params", *several.values()) else keys[0], default="word")
    source = _Source(name, checked_noun(noun), sha256(path))
    tokens = placeholder_tokens(name, len(rows[parts[0]]))
    word = " ".join(tokens) + (f" {source.noun}" if keep_noun else "")
    tensors = {EMBEDDINGS: rows}
    settings = {"imported": path.name, "key": ", ".join(keys)}
    concept = Concept.create(
        WORDS_METHOD, source, base, word=word, tokens=tokens, tensors=tensors, settings=settings  # type: ignore[arg-type]
    )  # fmt: skip
    with attached_words(base, tokens, tensors[EMBEDDINGS]):
        return concept


def import_lora(path: Path, base: Base, noun: str, name: str | None, word: str | None) -> Concept:
    """As `Concept.from_lora`."""
    tensors = to_native(load_tensors(path), base, metadata_of(path), str(path))
    source = _Source(name or safe_name(path.stem, default="lora"), checked_noun(noun), sha256(path))
    text = clean_text(word, "the word") if word else source.noun
    settings = {"imported": path.name}
    concept = Concept.create(LORA_METHOD, source, base, word=text, tensors={LORA: tensors}, settings=settings)  # type: ignore[arg-type]
    for part, own in by_part(tensors, base).items():
        with attached_lora(base.modules[part], own, concept.name):
            pass  # shapes are checked by attaching
    return concept


def to_native(tensors: Mapping[str, Tensor], base: Base, metadata: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """Low-rank weights in our names, with alpha / rank multiplied into B.

    Args:
        tensors: in any of the formats above.
        base: whose modules they are for.
        metadata: of diffusers' files: "unet.lora_alpha", "unet.alpha_pattern" ...
        where: they came from, for messages.

    Raises:
        ArtefactError: no name matches the base, or some do not: all of them listed; other kinds of adapters.
    """
    modules = _module_names(base)
    found: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    unknown = []
    for key, tensor in tensors.items():
        end = next(((end, native) for end, native in _ENDS if key.endswith(end)), None)
        stem = key.removesuffix(".alpha") if key.endswith(".alpha") else key.removesuffix(end[0]) if end else key
        module = modules.get(_canonical(stem))
        if module is None or (end is None and not key.endswith(".alpha")):
            unknown.append(key)
        elif end is None:
            alphas[module] = float(tensor)
        else:
            found[f"{module}.{end[1]}"] = tensor.float()
    if not found:
        raise ArtefactError(
            f"{where}: none of its {len(tensors)} tensors belongs to {base.name} ({listed(tensors)}): "
            "it was made for another family of models, or is no low-rank adapter"
        )
    problems = [f"{listed(unknown)} belong to nothing in {base.name}"] if unknown else []
    raise_all(problems, ArtefactError, where)
    native = {}
    for module, (a, b) in pairs_of(found).items():
        alpha = alphas.get(module, _alpha_in(metadata, module))
        native[f"{module}.{A}"] = a.contiguous()
        native[f"{module}.{B}"] = (b if alpha is None else b * (alpha / a.shape[0])).contiguous()
    return native


def _module_names(base: Base) -> dict[str, str]:
    """Our name of each module by its canonical name, with which the formats agree."""
    names = {}
    for part, model in base.modules.items():
        if part == "vae":
            continue
        for module, _ in model.named_modules():
            if module:
                names[_canonical(f"{part}.{module}")] = f"{part}.{module}"
                if module.endswith("to_out.0"):  # processors of older files call it to_out
                    names.setdefault(_canonical(f"{part}.{module.removesuffix('.0')}") + "_", f"{part}.{module}")
    return names


def _canonical(name: str) -> str:
    """One spelling for all formats: underscores, no wrappers."""
    processor = ".processor." in name or name.endswith("_lora")
    name = re.sub(r"^(base_model\.model\.|lora_|diffusion_model\.)", "", name)
    name = re.sub(r"^(down_blocks|up_blocks|mid_block)(?=[._])", r"unet.\1", name)
    name = re.sub(r"^te1?(?=_)", "text_encoder", name)
    name = re.sub(r"^te2(?=_)", "text_encoder_2", name)
    name = name.replace(".processor.", ".").replace("text_model.", "").replace("text_model_", "")
    name = name.removesuffix("_lora")
    flat = name.replace(".", "_")
    return flat + "_" if processor and flat.endswith("to_out") else flat


def metadata_of(path: Path) -> dict[str, Any]:
    """What diffusers writes into the header of its files about an adapter."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get("lora_adapter_metadata")
    try:
        data = json.loads(text) if text else {}
    except ValueError:
        data = {}
    return data if isinstance(data, dict) else {}


def _alpha_in(metadata: Mapping[str, Any], module: str) -> float | None:
    part, _, rest = module.partition(".")
    pattern = metadata.get(f"{part}.alpha_pattern") or {}
    alpha = pattern.get(rest, metadata.get(f"{part}.lora_alpha"))
    return float(alpha) if alpha is not None else None


for _method in (WORDS_METHOD, LORA_METHOD):
    register_handler(_method, AdapterHandler())
