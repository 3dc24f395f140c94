"""From a name, a folder or a hub id to an encoder that is ready."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from ...bases.locate import from_hub
from ...bases.quiet import quiet
from ...errors import ArtefactError, ConfigurationError, UserError, nearest
from ...files import read_json, sha256
from .encoder import Encoder
from .families import FAMILIES, TOKENIZER, Family
from .preprocessing import Preprocessing

PATTERNS = ("config.json", "preprocessor_config.json", "*.safetensors", "tokenizer_config.json", *TOKENIZER)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_models: WeakValueDictionary[tuple[str, str, str], Any] = WeakValueDictionary()


@cache
def known_encoders() -> dict[str, dict[str, Any]]:
    """What encoders.json says, by name."""
    return json.loads(resources.files(__package__).joinpath("encoders.json").read_text(encoding="utf-8"))


def open_encoder(
    name: str | Path, *, kind: str | None = None, device: str = "cpu", revision: str | None = None,
    pooling: str | None = None, preprocessing: Preprocessing | Mapping[str, Any] | None = None, batch_size: int = 16,
) -> Encoder:  # fmt: skip
    """Open an encoder. Models that several encoders share (other poolings) are in memory once.

    Args:
        name: a name of encoders.json ("clip-b32", "playroom-identity"), a local folder, or a hub id.
        kind: `model_type`, for a folder whose config.json says something else; one of FAMILIES.
        device: where it runs.
        revision: of a hub repository: a branch, tag or commit.
        pooling: how its tokens become one vector; the family's first where None.
        preprocessing: of pictures; else what encoders.json says for the name, else the folder's
            preprocessor_config.json.
        batch_size: pictures encoded at once, 1 to 1024.

    Returns:
        It, with its identity.

    Raises:
        UserError: no such encoder, it cannot be had, or its folder cannot be used: one line that says what to do.
    """
    if not 1 <= batch_size <= 1024:
        raise ConfigurationError(f"batch_size {batch_size} is not in 1 ... 1024")
    folder, shown, commit = _located(str(name), revision)
    facts = known_encoders().get(str(name), {})
    family = _family(folder, shown, kind)
    source = {
        "model": shown,
        "revision": commit,
        "weights": _weights_hash(tuple(family.files(folder))),
        "kind": next(key for key, value in FAMILIES.items() if value is family),
    }
    prepared = _preprocessing(folder, shown, family, preprocessing or facts.get("preprocessing"))
    tokenizer = _tokenizer(family.tokenizer_folder(folder), shown) if family.has_text else None
    key = (str(folder.resolve()), str(source["weights"]), str(device))
    model = _models.get(key)
    if model is None:
        model = family.load(folder)
        try:
            model = model.to(device)
        except (RuntimeError, AssertionError) as error:
            line = (str(error).splitlines() or ["?"])[0][:160]
            raise UserError(
                f"{shown} cannot be put on the device {device!r} ({line}): name one that is there"
            ) from error
        _models[key] = model
    if tokenizer is not None:
        words = model.config.text_config.vocab_size
        if len(tokenizer) > words or len(tokenizer) < words // 2:  # a tokenizer that was not found is almost empty
            raise ArtefactError(
                f"{shown}: its tokenizer has {len(tokenizer)} words but its text side {words}: fetch the folder again"
            )
    return Encoder(model, family, prepared, pooling, source, tokenizer, batch_size)


def _located(name: str, revision: str | None) -> tuple[Path, str, str | None]:
    """The folder, what to call it (no path of this machine), and the commit where the hub says one."""
    facts = known_encoders().get(name)
    if facts and "folder" in facts:
        folder = Path(str(resources.files("thisness").joinpath(*facts["folder"].split("/"))))
        if not (folder / "config.json").is_file():
            raise UserError(
                f"the embedded encoder {name} is not in this installation: install the package with its weights, "
                "or train it with `thisness playroom train`"
            )
        return folder, name, None
    hub_id = facts["hub"] if facts else name
    path = Path(name).expanduser()
    if not facts and path.is_dir():
        if revision:
            raise ConfigurationError(f"{name} is a folder: revision {revision!r} goes with a hub id")
        return path, path.resolve().name, None
    if facts or (_HUB_ID.fullmatch(name) and not name.startswith(".") and not path.exists()):
        folder = from_hub(hub_id, PATTERNS, revision=revision, instead="give the encoder as a local folder")
        return folder, hub_id, folder.name if folder.parent.name == "snapshots" else revision
    raise ConfigurationError(
        f"no encoder {name!r}{nearest(name, known_encoders())}: known are {', '.join(known_encoders())}; "
        "or give a folder of transformers or a hub id (a/b)"
    )


def _family(folder: Path, shown: str, kind: str | None) -> Family:
    if not (folder / "config.json").is_file():
        raise ArtefactError(f"{shown} has no config.json: expected a folder as transformers' save_pretrained writes it")
    config = read_json(folder / "config.json")
    found = kind or (config.get("model_type") if isinstance(config, dict) else None)
    if (folder / "text_projection.safetensors").is_file() and not kind:
        found = "playroom-clip"
    if found not in FAMILIES:
        raise ConfigurationError(
            f"{shown} is of the kind {found!r}{nearest(str(found), FAMILIES)}: encoders are {', '.join(FAMILIES)}"
        )
    if not any(folder.glob("*.safetensors")):
        raise ArtefactError(
            f"{shown} has no .safetensors: weights are read from nothing else. If you trust its .bin, convert it once: "
            "python -c \"from transformers import AutoModel as A; A.from_pretrained('IN').save_pretrained('OUT')\"; "
            "for a hub id a revision may have them (refs/pr/...)"
        )
    return FAMILIES[found]


def _preprocessing(
    folder: Path, shown: str, family: Family, given: Preprocessing | Mapping[str, Any] | None
) -> Preprocessing:
    if isinstance(given, Preprocessing):
        return given
    if given is not None:
        try:
            values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in given.items()}
            return Preprocessing(**values)
        except TypeError as error:
            raise ConfigurationError(f"preprocessing {dict(given)}: {error}") from error
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        raise ArtefactError(
            f"{shown} has no preprocessor_config.json: say what happens to pictures: open_encoder(..., "
            "preprocessing={'resize': 256, 'crop': [224, 224]})"
        )
    config = read_json(file)
    return Preprocessing.from_config(config, whole_number_is_square=family.whole_number_is_square, where=shown)


def _tokenizer(folder: Path, shown: str) -> Any:
    """Raises ArtefactError where there is none: CLIPTokenizer itself would come back empty without a word."""
    from transformers import AutoTokenizer, CLIPTokenizer

    with quiet():
        try:
            if (folder / "config.json").is_file():
                return AutoTokenizer.from_pretrained(folder, local_files_only=True)
            if not (folder / "tokenizer.json").is_file():
                raise OSError("no tokenizer.json")
            return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, ImportError) as error:
            line = (str(error).splitlines() or ["?"])[0][:160]
            raise ArtefactError(f"{shown}: its tokenizer cannot be read ({line}): fetch the folder again") from error


@cache
def _hash_at(path: str, size: int, changed: int) -> str:
    return sha256(path)


def _weights_hash(files: tuple[Path, ...]) -> str:
    """SHA-256 over names and contents, in hexadecimal."""
    try:
        stats = [(file, file.stat()) for file in files]
    except FileNotFoundError as error:
        raise ArtefactError(f"{error.filename} is not there: fetch the folder again") from None
    lines = [f"{file.name} {_hash_at(str(file), stat.st_size, stat.st_mtime_ns)}" for file, stat in stats]
    return sha256("\n".join(lines).encode())
