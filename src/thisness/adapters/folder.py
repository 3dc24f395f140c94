"""A concept that is a model of its own, as a diffusers folder: every part of the base, with the concept's weights and
words in their places."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..bases import Base, load_base
from ..bases.quiet import quiet
from ..concept import Concept
from ..errors import ArtefactError, ConfigurationError
from ..files import directory, read_json, write_text
from .handler import AdapterHandler, check_format
from .words import LearnedRows, text_parts

FORMATS = ("diffusers",)


class FolderHandler(AdapterHandler):
    """The `ConceptHandler` of methods that change so much that only the whole model can be handed on."""

    def export(self, concept: Concept, folder: Path, to: str, base: Base | None = None) -> list[Path]:
        """A folder as `StableDiffusionPipeline.from_pretrained` loads it, and `usage.txt` in it.

        Args:
            base: that the concept was learned on, in float32, as it is without any concept; found by its name if None.

        Raises:
            ConfigurationError: another format, or a base of another number format.
            ArtefactError: another base.
        """
        check_format(to, FORMATS, "a fine-tuned model has no low-rank weights: ")
        base = base if base is not None else base_of(concept)
        concept.check_base(base)
        if any(p.dtype != torch.float32 for module in base.modules.values() for p in module.parameters()):
            raise ConfigurationError("the folder is written from a base in float32: load it so")
        with directory(folder) as building, concept.attach(base), quiet():
            pipe = base.to_pipeline()
            for name, (_, encoder) in text_parts(base).items():
                pipe.register_modules(**{name: with_own_words(encoder)})
            pipe.save_pretrained(building, safe_serialization=True)
            _forget_places(building)
            write_text(building / "usage.txt", usage(concept, base))
        return sorted(path for path in Path(folder).rglob("*") if path.is_file() and path.name != "COMPLETE.json")


def base_of(concept: Concept) -> Base:
    """The base that a concept was learned on, by its name.

    Raises:
        ArtefactError: it is not there under this name.
    """
    name = str(concept.manifest["base"]["name"])
    try:
        return load_base(name)
    except (ArtefactError, ConfigurationError) as error:
        raise ArtefactError(
            f"the base of {concept.name!r}, {name!r}, is needed for a folder of the whole model and was not found "
            f"({error}): name it, --base FOLDER"
        ) from error


def with_own_words(encoder: nn.Module) -> Any:
    """A text encoder in whose vocabulary the learned words are; the very same where there are none.

    The vocabulary's table may have rows to spare at its end; otherwise it grows.
    """
    attached = []
    table: Any = encoder.get_input_embeddings()  # type: ignore[operator]
    while isinstance(table, LearnedRows):
        attached.append((table.first, table.table().detach()))
        table = table.original
    if not attached:
        return encoder
    rows = table.weight.detach().clone()
    for first, learned in reversed(attached):
        rows = torch.cat([rows[:first], learned.to(rows), rows[first + len(learned) :]])
    own: Any = copy.deepcopy(encoder)
    own.set_input_embeddings(nn.Embedding.from_pretrained(rows))
    own.config.vocab_size = len(rows)
    return own


def usage(concept: Concept, base: Base) -> str:
    """How to load the folder in plain diffusers, as text to read and to copy."""
    return "\n".join(
        [
            f"{concept.name} ({concept.noun}), learned by {concept.method} on {concept.manifest['base']['name']}",
            "",
            f"from diffusers import {base.pipeline_class}",
            f'pipe = {base.pipeline_class}.from_pretrained(".")',
            f'pipe("a photo of a {concept.word.text}").images[0].save("{concept.name}.png")',
            "",
        ]
    )


def _forget_places(folder: Path) -> None:
    """Without the paths of this machine that libraries write into the settings of a model."""
    for path in folder.rglob("*.json"):
        data = read_json(path)
        if isinstance(data, dict) and "_name_or_path" in data:
            write_text(path, json.dumps({k: v for k, v in data.items() if k != "_name_or_path"}, indent=2) + "\n")
