"""Vectors of pictures and sentences, computed once: in memory, and where a folder is given also on disk.

A vector is found by what was encoded (hash of the pixels, with the hash of the mask where pixels are masked; the
sentence) and by the identity of the encoder. On disk a folder per encoder holds blocks, each a safetensors file that is
written atomically and carries a hash of its numbers: a kill loses the block that was being written and nothing else, a
damaged block is removed and computed again, and processes that write at once write different blocks or the same one.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ..errors import ArtefactError
from ..files import sha256, write_json, write_with
from .encoders import Encoder, fingerprint

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

PATCH_BYTES = 256 * 2**20
MERGED_FROM = 128  # blocks of one encoder, from which they become one
What = Literal["images", "patches", "text"]


class Hashed(Protocol):
    """A `Picture`, or a `View` of one: pixels, made only when needed, and a hash that tells them apart."""

    @property
    def image(self) -> Image.Image: ...
    @property
    def hash(self) -> str: ...


class FeatureCache:
    """Vectors by what was encoded and by what.

    Args:
        folder: where they are kept; None keeps them in memory only.
        patch_bytes: of patch vectors kept, the latest used; they are never on disk, for they are a hundred times the
            size of what they are made into.
    """

    def __init__(self, folder: str | Path | None = None, *, patch_bytes: int = PATCH_BYTES) -> None:
        self.folder = None if folder is None else Path(folder)
        self.patch_bytes = patch_bytes
        self._vectors: dict[str, dict[str, Tensor]] = {}
        self._patches: OrderedDict[tuple[str, str], Tensor] = OrderedDict()
        self._held = 0
        self._patched: set[str] = set()
        self.computed = 0

    def keep_patches(self, encoder: Encoder) -> None:
        """From now on patches of an encoder's pictures are kept when their vectors are computed: one pass for both."""
        self._patched.add(fingerprint(encoder.identity_of("patches")))

    def get(self, encoder: Encoder, given: Sequence[Hashed] | Sequence[str], what: What = "images") -> Tensor:
        """Vectors of pictures or sentences, each different one encoded once.

        Args:
            encoder: whose vectors.
            given: pictures; sentences for "text".
            what: "images" (n, d), "patches" (n, h * w, e), "text" (n, d).

        Returns:
            float32 on the CPU, not normalised, in the order given.
        """
        import torch

        identity = encoder.identity_of(what)
        own = fingerprint(identity)
        by_key = {_key(each): each for each in given}
        if what == "patches":
            found = self._patches_of(encoder, own, by_key)
        else:
            vectors = self._opened(own, identity)
            missing = {key: each for key, each in by_key.items() if key not in vectors}
            if missing:
                self._keep(own, dict(zip(missing, self._compute(encoder, missing, what), strict=True)))
            found = vectors
        return torch.stack([found[_key(each)] for each in given])

    def _compute(self, encoder: Encoder, missing: Mapping[str, Any], what: What) -> Tensor:
        self.computed += len(missing)
        if what == "text":
            return encoder.text(list(missing.values()))
        own = fingerprint(encoder.identity_of("patches"))
        images = [each.image for each in missing.values()]
        if own not in self._patched:
            return encoder.images(images)
        vectors, patches = encoder.images_and_patches(images)
        self._keep_patches(own, dict(zip(missing, patches, strict=True)))
        return vectors

    def _patches_of(self, encoder: Encoder, own: str, by_key: Mapping[str, Any]) -> dict[str, Tensor]:
        found = {key: self._patches[own, key] for key in by_key if (own, key) in self._patches}
        for key in found:
            self._patches.move_to_end((own, key))
        missing = {key: each for key, each in by_key.items() if key not in found}
        if missing:
            self.computed += len(missing)
            vectors, patches = encoder.images_and_patches([each.image for each in missing.values()])
            made = dict(zip(missing, patches, strict=True))
            self._keep_patches(own, made)
            identity = encoder.identity_of("images")
            known = self._opened(fingerprint(identity), identity)
            new = {key: row for key, row in zip(missing, vectors, strict=True) if key not in known}
            if new:
                self._keep(fingerprint(identity), new)
            found |= made
        return found

    def _keep_patches(self, own: str, made: Mapping[str, Tensor]) -> None:
        for key, value in made.items():
            if (own, key) not in self._patches:
                self._patches[own, key] = value.clone()  # alone: a row of a batch would hold all of it
                self._held += value.nbytes
        while self._held > self.patch_bytes:
            _, value = self._patches.popitem(last=False)
            self._held -= value.nbytes

    def _keep(self, own: str, new: Mapping[str, Tensor]) -> None:
        self._vectors[own].update(new)
        if self.folder is not None:
            _write_block(self.folder / own, new)

    def _opened(self, own: str, identity: Mapping[str, Any]) -> dict[str, Tensor]:
        """Vectors by key; from disk at the first use in this process."""
        if own not in self._vectors:
            self._vectors[own] = {}
            if self.folder is not None:
                self._vectors[own] = _read_blocks(self.folder / own)
                if not (self.folder / own / "identity.json").is_file():
                    write_json(self.folder / own / "identity.json", identity)
        return self._vectors[own]


def _key(given: Hashed | str) -> str:
    return sha256(given.encode()) if isinstance(given, str) else given.hash


def _write_block(folder: Path, rows: Mapping[str, Tensor]) -> Path:
    """Its name follows from what is in it."""
    import torch
    from safetensors.torch import save

    keys = sorted(rows)
    vectors = torch.stack([rows[key] for key in keys]).contiguous()
    said = json.dumps({"keys": keys, "sha256": sha256(vectors.numpy().tobytes())})
    metadata = {"block": said}  # one entry: several would be written in any order, and equal blocks be unequal files
    file = folder / f"{sha256(''.join(keys).encode())[:24]}.safetensors"
    write_with(file, lambda partial: _write(partial, save({"vectors": vectors}, metadata)))
    return file


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _read_blocks(folder: Path) -> dict[str, Tensor]:
    """All that is whole in a folder; many small blocks become one."""
    rows: dict[str, Tensor] = {}
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        try:
            rows.update(_read_block(file))
        except FileNotFoundError:  # another process has merged it into one that is younger than our list
            continue
        except ArtefactError:
            file.unlink(missing_ok=True)
    if len(files) >= MERGED_FROM and rows:
        merged = _write_block(folder, rows)
        for file in files:
            if file != merged:
                file.unlink(missing_ok=True)
    return rows


def _read_block(file: Path) -> dict[str, Tensor]:
    """Vectors by key.

    Raises:
        ArtefactError: damaged.
        FileNotFoundError: gone.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            said, vectors = json.loads((opened.metadata() or {})["block"]), opened.get_tensor("vectors")
        keys, digest = said["keys"], said["sha256"]
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise ArtefactError(f"{file} is damaged ({type(error).__name__})") from error
    if len(keys) != len(vectors) or sha256(vectors.numpy().tobytes()) != digest:
        raise ArtefactError(f"{file} is damaged: its numbers are not those that were written")
    return dict(zip(keys, vectors, strict=True))
