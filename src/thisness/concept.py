"""What was learned of one thing: a manifest and tensors, as a folder that is whole or not there.

    concepts/rufus/
      concept.json          the manifest
      NAME.safetensors      tensors, one file or several
      COMPLETE.json         hashes of the files, written last

What the tensors mean is the business of the method that learned them: a method registers a `ConceptHandler`, through
which its concepts are attached to a base and exported.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .errors import ArtefactError, ConfigurationError, UserError, nearest, raise_all
from .files import checked_name, directory, inside, load_tensors, read_json, save_tensors, verify_directory, write_json
from .prompt import Prompt, SlotWord

if TYPE_CHECKING:
    from torch import Tensor

    from .bases import Base
    from .subject import Subject

MANIFEST = "concept.json"
FORMAT = "thisness-concept"
VERSION = 1
MAX_TOKENS = 256
LIBRARIES = ("thisness", "torch", "diffusers", "transformers", "peft")
_FILE = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}\.safetensors")
_TOKEN = re.compile(r"<[a-z0-9][a-z0-9_-]{0,79}>")
_ATTRIBUTE = re.compile(r"[a-z][a-z0-9-]{0,63}")
_KEYS = (
    *("format", "version", "method", "name", "noun", "word", "tokens"),
    *("base", "subject", "settings", "versions", "files"),
)
_OPTIONAL = ("keeps",)


@dataclass(frozen=True, eq=False)
class Attached:
    """What a concept brings to a run beside the words and weights that it has put on the base.

    Args:
        interventions: of the denoiser; they act before those that are asked for.
        tokens: what is read of a picture beside the text (`attention.ImageTokens`), for adjustments to change.
        sample: a way of sampling in the place of `sampling.sample`, called with the same arguments.
        together: where several concepts of a sentence have the same: what they bring together, by placeholder, in the
            place of what each brings.
    """

    interventions: tuple[Any, ...] = ()
    tokens: Any = None
    sample: Callable[..., Any] | None = None
    together: Callable[[Mapping[str, Attached], Base], Attached] | None = None


class ConceptHandler(Protocol):
    """What a method does with the concepts that it learned."""

    def attach(self, concept: Concept, base: Base) -> AbstractContextManager[Attached | None]:
        """Put the concept on the base; on exit the base is bit for bit as before. Yields what else it brings, if any.

        Raises:
            ArtefactError: tensors that do not fit the base, or would have no effect: all of them listed.
        """
        ...

    def export(self, concept: Concept, folder: Path, to: str, base: Base | None = None) -> list[Path]:
        """Write the concept in another format. A handler that needs no base may ignore it.

        Raises:
            ConfigurationError: the method has no such format.
        """
        ...


_HANDLERS: dict[str, ConceptHandler] = {}


def register_handler(method: str, handler: ConceptHandler) -> None:
    """Say who attaches and exports the concepts of a method. Called by the method's own module."""
    _HANDLERS[method] = handler


@dataclass(frozen=True, eq=False)
class Concept:
    """Something learned. `Concept.create` makes one with its manifest; `Concept.load` reads one.

    Args:
        manifest: JSON data: format, version, method, name, noun, word (what takes the placeholder's place), tokens
            (new words of the tokenizer), base (name, family, signature), subject (hash, pictures), settings,
            versions, files (shape and dtype of each tensor by file); keeps, where the method learned more of each
            picture than the subject: by attribute ("pose"), for each picture the words that keep it.
        tensors: by file name, then by tensor name.

    Raises:
        ArtefactError: the manifest has another form, or the tensors are not what it says; all of it at once.
    """

    manifest: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]

    def __post_init__(self) -> None:
        check_manifest(self.manifest, "the manifest")
        differences = _differences(_describe(self.tensors), self.manifest["files"])
        raise_all(differences, ArtefactError, f"the concept {self.name!r}")

    @classmethod
    def create(
        cls,
        method: str,
        subject: Subject,
        base: Base,
        *,
        word: str,
        tensors: Mapping[str, Mapping[str, Tensor]],
        tokens: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
        keeps: Mapping[str, Sequence[str]] | None = None,
    ) -> Concept:
        """A new concept with its manifest.

        Args:
            method: the registered name of the method that learned it.
            subject: what it was learned from; gives the name, the noun, and a hash of the pictures.
            base: what it was learned on.
            word: what takes the placeholder's place in prompts: "<rufus> dog".
            tensors: by file ("embeddings.safetensors"), then by name.
            tokens: words that the tokenizer must be given before the prompt is read, in the order of their rows.
            settings: of the method, as JSON data.
            keeps: by attribute, for each picture the words that keep it in a prompt: "with <rufus-p-0> pose".
        """
        plain = {file: dict(group) for file, group in tensors.items()}
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "method": method,
            "name": subject.name,
            "noun": subject.noun,
            "word": word,
            "tokens": list(tokens),
            "base": {"name": base.name, "family": base.family, "signature": base.signature},
            "subject": {"hash": subject.hash, "pictures": len(subject.images)},
            "settings": json.loads(json.dumps(dict(settings or {}), allow_nan=False)),
            "versions": library_versions(),
            "files": _describe(plain),
        }
        if keeps:
            manifest["keeps"] = {attribute: list(phrases) for attribute, phrases in keeps.items()}
        return cls(manifest, plain)

    @classmethod
    def load(cls, folder: str | Path, base: Base | None = None, *, other_weights: bool = False) -> Concept:
        """Read a concept from its folder and check all of it before anything is used.

        Args:
            folder: what `save` wrote.
            base: refuse a concept that was learned on another one.
            other_weights: allow another model of the same family, for instance a finetune of the one learned on.

        Raises:
            ArtefactError: incomplete, damaged, not a concept, of a later version, or of another base.
        """
        folder = Path(folder)
        if folder.is_dir() and not (folder / MANIFEST).exists() and not (folder / "COMPLETE.json").exists():
            raise ArtefactError(f"{folder} is not a concept (no {MANIFEST} in it): learn one with `thisness learn`")
        verify_directory(folder)
        manifest = read_json(inside(folder, MANIFEST))
        check_manifest(manifest, str(folder / MANIFEST))
        tensors = {}
        for file, entries in manifest["files"].items():
            shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
            tensors[file] = load_tensors(inside(folder, file), expect=shapes)
        concept = cls(manifest, tensors)
        if base is not None:
            concept.check_base(base, other_weights=other_weights)
        return concept

    @classmethod
    def from_textual_inversion(
        cls, path: str | Path, base: Base, noun: str, name: str | None = None, *, keep_noun: bool = False
    ) -> Concept:
        """A concept of a learned word that others trained.

        Args:
            path: a .safetensors file with one word for one text encoder, of diffusers or AUTOMATIC1111.
            base: the model that it is for.
            noun: what kind of thing it is.
            name: of the concept and its new token; the file's own by default.
            keep_noun: write "<word> noun" in prompts, not "<word>" alone.

        Raises:
            ArtefactError: not such a file, or of another width.
        """
        from .adapters.importing import import_words

        return import_words(Path(path), base, noun, name, keep_noun)

    @classmethod
    def from_lora(
        cls, path: str | Path, base: Base, noun: str, name: str | None = None, *, word: str | None = None
    ) -> Concept:
        """A concept of low-rank weights that others trained.

        Args:
            path: a .safetensors file, of diffusers, PEFT or kohya-ss.
            base: the model that it is for.
            noun: what kind of thing it is.
            name: of the concept; the file's name by default.
            word: what stands for the subject in prompts, e.g. "sks dog"; the noun by default.

        Raises:
            ArtefactError: not such a file; or tensors that belong to nothing in the base, all of them listed.
        """
        from .adapters.importing import import_lora

        return import_lora(Path(path), base, noun, name, word)

    def with_tensors(self, tensors: Mapping[str, Mapping[str, Tensor]], **settings: Any) -> Concept:
        """The same with other tensors (some merged, say), and what was done noted among the settings."""
        plain = {file: dict(group) for file, group in tensors.items()}
        return Concept({**self.manifest, "settings": {**self.settings, **settings}, "files": _describe(plain)}, plain)

    def save(self, folder: str | Path, extra: Callable[[Path], None] | None = None) -> Path:
        """Write the concept's folder, whole or not at all; an earlier artefact there is replaced.

        Args:
            folder: where to.
            extra: called with the folder that is being built, to add files (a sheet of previews, a log).

        Returns:
            `folder`.

        Raises:
            ArtefactError: something that thisness did not write is there.
            OSError: it cannot be written.
        """
        with directory(folder) as building:
            for file, group in self.tensors.items():
                save_tensors(building / file, group, {"format": "pt"})  # what readers of other tools look for
            write_json(building / MANIFEST, self.manifest)
            if extra is not None:
                extra(building)
        return Path(folder)

    def check_base(self, base: Base, *, other_weights: bool = False) -> None:
        """Refuse a base that the concept was not learned on.

        Raises:
            ArtefactError: of another family, or with other weights where these are not allowed.
        """
        learned = self.manifest["base"]
        if learned["family"] != base.family:
            raise ArtefactError(
                f"the concept {self.name!r} was learned on {learned['name']!r} (family {learned['family']}), and "
                f"{base.name!r} is of the family {base.family}: learn it anew on this base"
            )
        if learned["signature"] != base.signature and not other_weights:
            raise ArtefactError(
                f"the concept {self.name!r} was learned on {learned['name']!r} with the signature "
                f"{learned['signature']}, and {base.name!r} has {base.signature}, that is other weights: "
                "use that base, learn it anew, or allow it (other_weights=True)"
            )

    @property
    def name(self) -> str:
        return str(self.manifest["name"])

    @property
    def noun(self) -> str:
        return str(self.manifest["noun"])

    @property
    def method(self) -> str:
        return str(self.manifest["method"])

    @property
    def tokens(self) -> tuple[str, ...]:
        """Words that the tokenizer has to be given, in the order of their rows."""
        return tuple(self.manifest["tokens"])

    @property
    def settings(self) -> dict[str, Any]:
        """Of the method."""
        return dict(self.manifest["settings"])

    @property
    def keeps(self) -> dict[str, tuple[str, ...]]:
        """By attribute ("pose", "background"), for each picture the words that keep it; {} for most methods."""
        return {attribute: tuple(phrases) for attribute, phrases in self.manifest.get("keeps", {}).items()}

    @property
    def word(self) -> SlotWord:
        """What takes the placeholder's place in a prompt."""
        return SlotWord(self.manifest["word"], self.noun)

    @cached_property
    def hash(self) -> str:
        """SHA-256 over what decides the pictures: method, word, tokens, settings and all tensors; in hexadecimal."""
        from safetensors.torch import save

        keys = ("method", "noun", "word", "tokens", "settings")
        digest = hashlib.sha256(json.dumps({key: self.manifest[key] for key in keys}, sort_keys=True).encode())
        for file, group in sorted(self.tensors.items()):
            plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in sorted(group.items())}
            digest.update(file.encode() + save(plain))
        return digest.hexdigest()

    def attach(self, base: Base) -> AbstractContextManager[Any]:
        """Put the concept on a base for the length of a `with`; afterwards the base is bit for bit as before.

        Raises:
            ArtefactError: it does not fit the base, or would have no effect.
        """
        return self._handler().attach(self, base)

    def sentence(self, prompt: Prompt, negative: str, base: Base) -> tuple[Prompt, str]:
        """A prompt and a negative one as the method was made to read them (`ConceptHandler.sentence`, where a handler
        has it); what was changed so before stays as it is."""
        change = getattr(self._handler(), "sentence", None)
        return (prompt, negative) if change is None else change(self, prompt, negative, base)

    def export(self, folder: str | Path, to: str = "diffusers", base: Base | None = None) -> list[Path]:
        """Write the concept in a format that other programs read; returns the files written.

        Args:
            folder: where to.
            to: "diffusers"; "kohya" (AUTOMATIC1111, ComfyUI) for words and low-rank weights.
            base: that it was learned on, for methods whose export is a whole model; found by its name if None.

        Raises:
            ConfigurationError: the method has no such format.
            ArtefactError: the base is needed, and is not found or is another one.
        """
        return self._handler().export(self, Path(folder), to, base)

    def _handler(self) -> ConceptHandler:
        if self.method not in _HANDLERS:  # those who attach register themselves; nothing here knows them
            importlib.import_module(f"{__package__}.methods")
            importlib.import_module(f"{__package__}.adapters.importing")
        if self.method not in _HANDLERS:
            raise ConfigurationError(
                f"the concept {self.name!r} was learned by {self.method!r}, which this version does not have"
                f"{nearest(self.method, _HANDLERS)}: known are {', '.join(sorted(_HANDLERS)) or 'none'}"
            )
        return _HANDLERS[self.method]

    def __repr__(self) -> str:
        return f"Concept({self.name!r}, {self.method!r}, on {self.manifest['base']['name']!r})"


def library_versions() -> dict[str, str]:
    """Versions of what decides a result, as installed."""
    return {library: _version(library) for library in LIBRARIES}


@cache  # reading them takes milliseconds, and every picture's record has them
def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def check_manifest(data: Any, where: str) -> None:
    """Refuse a manifest of another form.

    Raises:
        ArtefactError: all that is wrong, at once.
    """
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ArtefactError(f"{where} does not describe a concept of thisness")
    if not isinstance(data.get("version"), int) or not 1 <= data["version"] <= VERSION:
        raise ArtefactError(f"{where} is of version {data.get('version')!r}, this program reads {VERSION}: update it")
    problems = [f"{key} is missing" for key in _KEYS if key not in data]
    unknown = [str(key) for key in data if key not in (*_KEYS, *_OPTIONAL)]
    problems += [f"unknown key {key!r}{nearest(key, _KEYS)}" for key in unknown]
    raise_all(problems, ArtefactError, where)
    kinds = {"base": dict, "subject": dict, "settings": dict, "versions": dict, "files": dict, "tokens": list}
    problems = [
        f"{key} must be {kinds.get(key, str).__name__}"
        for key in _KEYS[2:]
        if not isinstance(data[key], kinds.get(key, str))
    ]
    raise_all(problems, ArtefactError, where)
    for check in (lambda: checked_name(data["name"], "name"), lambda: SlotWord(data["word"], data["noun"])):
        try:
            check()
        except UserError as error:
            problems.append(str(error))
    strings = {f"base.{key}": data["base"].get(key) for key in ("name", "family", "signature")}
    problems += [f"{key} must be text" for key, value in strings.items() if not isinstance(value, str)]
    tokens = data["tokens"]
    if len(tokens) > MAX_TOKENS or len(set(map(str, tokens))) != len(tokens):
        problems.append(f"tokens must be at most {MAX_TOKENS}, each once")
    problems += [f"token {t!r:.90} is not <name>" for t in tokens if not (isinstance(t, str) and _TOKEN.fullmatch(t))]
    problems += [
        f"file {str(file)[:80]!r} is not NAME.safetensors" for file in data["files"] if not _FILE.fullmatch(file)
    ]
    if not _keeps_fine(data.get("keeps", {}), tokens):
        problems.append("keeps must have, by attribute, for each picture plain words with one of the tokens")
    if not data["files"]:
        problems.append("it lists no tensors: it would change nothing")
    problems += [
        f"{file}: tensors must have a shape and a dtype" for file, e in data["files"].items() if not _described(e)
    ]
    raise_all(problems, ArtefactError, where)


def _keeps_fine(keeps: Any, tokens: Sequence[Any]) -> bool:
    """The words go into prompts: each must be text without braces that holds a token of the concept."""
    known = set(map(str, tokens))
    return isinstance(keeps, dict) and all(
        _ATTRIBUTE.fullmatch(str(attribute))
        and isinstance(phrases, list)
        and all(isinstance(p, str) and not {"{", "}"} & set(p) and known & set(p.split()) for p in phrases)
        for attribute, phrases in keeps.items()
    )


def _described(entries: Any) -> bool:
    return isinstance(entries, dict) and all(
        isinstance(entry, dict)
        and isinstance(entry.get("dtype"), str)
        and isinstance(entry.get("shape"), list)
        and all(isinstance(length, int) and length >= 0 for length in entry["shape"])
        for entry in entries.values()
    )


def _describe(tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, dict[str, Any]]]:
    return {
        file: {
            name: {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
            for name, tensor in group.items()
        }
        for file, group in tensors.items()
    }


def _differences(found: Mapping[str, Any], said: Mapping[str, Any]) -> list[str]:
    """Where tensors are not what the manifest says."""
    problems = [f"{file} is missing" for file in said if file not in found]
    problems += [f"{file} is not in the manifest" for file in found if file not in said]
    for file in found.keys() & said.keys():
        names = found[file].keys() | said[file].keys()
        problems += [
            f"{file}: {name} is {found[file].get(name, 'missing')}, the manifest says {said[file].get(name, 'nothing')}"
            for name in sorted(names)
            if found[file].get(name) != said[file].get(name)
        ]
    return problems
