"""Loading a base: its family by the pipeline it was saved as, then part by part; safetensors only, no foreign code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..errors import ArtefactError, ConfigurationError
from ..files import PICKLED, listed, read_json
from .base import Base, Part
from .flux import Flux
from .locate import locate
from .quiet import quiet
from .stable_diffusion import StableDiffusion
from .stable_diffusion_xl import StableDiffusionXL

FAMILIES: dict[str, type[Base]] = {family.family: family for family in (StableDiffusion, StableDiffusionXL, Flux)}


def family_of(pipeline_class: str) -> type[Base]:
    """The family that a class of diffusers pipelines belongs to.

    Raises:
        ConfigurationError: none knows it.
    """
    for family in FAMILIES.values():
        if family.pipeline_class == pipeline_class:
            return family
    supported = ", ".join(family.pipeline_class for family in FAMILIES.values())
    raise ConfigurationError(f"a {pipeline_class} is not supported: expected {supported}")


def load_base(
    name: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None, offload: bool = False
) -> Base:
    """Load a text-to-image model.

    Only safetensors are read, only classes of diffusers and transformers are made; a repository's own code is never
    run, and a safety checker is neither fetched nor used.

    Args:
        name: a registered name ("playroom-sd", "sd1.5" ...), a local diffusers folder, or a hub id.
        device: where its parts go.
        dtype: of all parts; float32 where None.
        offload: keep the parts on the CPU, and bring each to `device` only while it runs (`Base.offload`).

    Raises:
        UserError: it is not there, cannot be fetched, or is not a model of a family known here; one line.
    """
    patterns = sorted({pattern for family in FAMILIES.values() for pattern in hub_patterns(family)})
    folder, called, facts = locate(str(name), patterns)
    index = read_json(folder / "model_index.json") if (folder / "model_index.json").is_file() else None
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise ArtefactError(
            f"{name} is no diffusers folder: model_index.json is missing, or names a pipeline with code of its own"
        )
    family = family_of(index["_class_name"])
    wanted = dtype or torch.float32
    # the signature samples rounded to bfloat16: rounding to float16 first would change it
    loaded = torch.float32 if wanted == torch.float16 else wanted
    with quiet():
        parts = {part.name: _load_part(folder, part, index, loaded) for part in family.part_list}
    base = family(parts, called, facts, index)
    return base.to(dtype=wanted).offload(device) if offload else base.to(device, wanted)


def hub_patterns(family: type[Base]) -> list[str]:
    """The files of a hub repository that a family reads."""
    weights = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
    patterns = ["model_index.json"]
    for part in family.part_list:
        if part.kind == "tokenizer":
            patterns += [f"{part.name}/*.json", f"{part.name}/merges.txt", f"{part.name}/spiece.model"]
        else:
            patterns.append(f"{part.name}/*.json")
        if part.kind == "model":
            stem = weights[part.library]
            patterns += [f"{part.name}/{stem}.safetensors", f"{part.name}/{stem}-*-of-*.safetensors"]
    return patterns


def _load_part(folder: Path, part: Part, index: dict[str, Any], dtype: torch.dtype) -> Any:
    where = folder / part.name
    if not where.is_dir():
        raise ArtefactError(f"{folder} has no folder {part.name}: it is not a whole {index['_class_name']}")
    cls = _class_of(part, index)
    if part.kind == "model" and not any(where.glob("*.safetensors")):
        pickles = [file.name for file in where.iterdir() if file.suffix in PICKLED]
        raise ArtefactError(
            f"{where} has no safetensors"
            + (f" but {listed(pickles)}, which can run any code when opened: refused. " if pickles else ": ")
            + "Save the pipeline again with save_pretrained(folder, safe_serialization=True)"
        )
    try:
        if part.kind == "scheduler":
            return cls.from_pretrained(where)
        if part.kind == "tokenizer":
            return cls.from_pretrained(where, local_files_only=True)
        model, report = cls.from_pretrained(
            where, use_safetensors=True, local_files_only=True, output_loading_info=True, dtype=dtype
        )
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ArtefactError(f"{where} cannot be loaded: {first[:300]}") from error
    lacking = [*report["missing_keys"], *report.get("mismatched_keys", ())]
    if lacking:
        raise ArtefactError(
            f"{where}: weights missing or of another shape: {listed(map(str, lacking))}: fetch it again"
        )
    return model


def _class_of(part: Part, index: dict[str, Any]) -> Any:
    """The class that model_index.json names, if it is one that may be made."""
    import diffusers
    import transformers
    from diffusers import SchedulerMixin

    entry = index.get(part.name)
    named = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    library = {"diffusers": diffusers, "transformers": transformers}[part.library]
    if part.classes and named in part.classes:
        return getattr(library, named)
    if not part.classes and isinstance(named, str):
        cls = getattr(library, named, None)
        if isinstance(cls, type) and issubclass(cls, SchedulerMixin):
            return cls
    expected = " or ".join(part.classes) or "a scheduler of diffusers"
    raise ConfigurationError(f"its {part.name} is {named or entry!r}: expected {expected}")
