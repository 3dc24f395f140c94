"""Files that are whole or not there at all, and names and weights that are safe to open.

Every write goes to a temporary sibling, is flushed to the disk and then renamed. A folder that is an artefact is built
the same way, and gets `COMPLETE.json` with the hash of each of its files last: a folder without it is not an artefact.
Weights are safetensors, never pickles.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ArtefactError, UserError

if TYPE_CHECKING:
    from torch import Tensor

MARKER = "COMPLETE.json"
PICKLED = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
MAX_JSON_BYTES = 64 * 2**20
SECONDS_UNTIL_LEFT_OVER = 600.0  # a process of another machine may share the disk, and its number says nothing here
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_RESERVED = frozenset(
    {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}
)  # device names of Windows, with any extension


# --- writing ---------------------------------------------------------------------------------------------------------


def write_with(path: str | Path, write: Callable[[Path], None]) -> None:
    """Write one file atomically: whoever reads `path` sees the old content or the new, never a part.

    Args:
        path: where the file goes; its folder is made if need be. A link there is replaced, not followed.
        write: called with the temporary path that it is to write.

    Raises:
        UserError: `path` is a folder.
        OSError: it cannot be written (disk full, no permission); the old content is as it was.
    """
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        raise UserError(f"{path} is a folder: name a file")
    make_parent(path)
    partial = partial_sibling(path)
    try:
        write(partial)
        sync(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write bytes atomically. Raises as `write_with`."""
    write_with(path, lambda partial: _write_new(partial, data))


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically. Raises as `write_with`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, data: Any) -> None:
    """Write JSON atomically, indented, keys in the order given. NaN and infinity are refused (ValueError)."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def make_parent(path: Path) -> None:
    """Make the folder that `path` lies in. Raises UserError where a file is in the way."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{path.parent} cannot be a folder: a file is in the way ({error.filename})") from error


def partial_sibling(path: Path) -> Path:
    """A new hidden name beside `path` that says which process writes it."""
    return path.with_name(f".{path.name[:160]}.{os.getpid()}-{secrets.token_hex(4)}.partial")


def sync(path: Path) -> None:
    """Flush a file, or the list of names of a folder, to the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder, on systems that cannot open one
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_new(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)


# --- reading ---------------------------------------------------------------------------------------------------------


def read_json(path: str | Path) -> Any:
    """Parsed JSON of a file.

    Raises:
        ArtefactError: not there, over 64 MiB, or not JSON in UTF-8.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ArtefactError(
                f"{path} has {path.stat().st_size} bytes: a JSON file here has at most {MAX_JSON_BYTES}"
            )
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtefactError(f"{path} is not there") from None
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{path} is not readable JSON ({error})") from error
    except OSError as error:
        raise ArtefactError(f"{path} cannot be read ({error.strerror})") from error


def sha256(source: str | Path | bytes) -> str:
    """Hash of a file's content, or of bytes, in hexadecimal."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with open(source, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- names -----------------------------------------------------------------------------------------------------------


def checked_name(name: str, what: str = "name") -> str:
    """A name that is safe as a file's, on every system.

    Args:
        name: 1 to 64 of a-z, 0-9 and "-", not beginning with "-".
        what: what is named, for the message.

    Raises:
        UserError: another form, or a reserved device name; the message proposes one that fits.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"{what} {name[:80]!r} must be 1 to 64 of a-z, 0-9 and '-': {_proposal(name)}")
    if name in _RESERVED:
        raise UserError(f"{what} {name!r} is reserved by some systems: {_proposal('my ' + name)}")
    return name


def safe_name(text: str, default: str = "") -> str:
    """The nearest valid name to free text ("My Dog!" -> "my-dog"), or `default` where nothing is left of it."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:64].rstrip("-")
    return default if not name or name in _RESERVED else name


def inside(folder: str | Path, name: str, what: str = "file") -> Path:
    """The path of a member of a folder that cannot lead out of it.

    Args:
        folder: the folder.
        name: a relative path with "/" between its parts, from a manifest or an archive: not to be trusted.
        what: what is named, for the message.

    Raises:
        ArtefactError: absolute, with "..", a drive or a control character, of a reserved name, or through a link.
    """
    parts = name.split("/")
    harmless = name and all(
        part not in ("", ".", "..") and not re.search(r'[\\:*?"<>|\x00-\x1f]', part) for part in parts
    )
    if not harmless or any(part.split(".")[0].lower() in _RESERVED for part in parts):
        raise ArtefactError(f"{what} {name[:80]!r} is not a plain relative path: refused, as it could leave its folder")
    path = Path(folder)
    for part in parts:
        path = path / part
        if path.is_symlink():
            raise ArtefactError(f"{path} is a link: refused, as it could leave its folder; put the file itself there")
    return path


def _proposal(name: str) -> str:
    fitting = safe_name(name)
    return f"write {fitting!r}" if fitting else "for instance 'rufus'"


# --- folders that are artefacts --------------------------------------------------------------------------------------


@contextmanager
def directory(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Build a folder that is whole or not there at all.

    Yields a temporary sibling to write into. On a clean exit its files are flushed, hashed into COMPLETE.json and
    verified; only then it takes the place of an older folder, which is removed last. On an exception, and when the
    process is killed, the older folder is as it was.

    Args:
        path: where the folder goes.
        overwrite: replace whatever folder is there. Otherwise only an empty one, or an earlier artefact to which
            nobody has added files.

    Raises:
        ArtefactError: a file, a link or somebody's own folder is in the way; or a link was put into the new folder.
        OSError: it cannot be written.
    """
    path = Path(path)
    _check_replaceable(path, overwrite)
    make_parent(path)
    _tidy_siblings(path)
    building = partial_sibling(path)
    building.mkdir()
    try:
        yield building
        _write_marker(building)
        verify_directory(building)
        _check_replaceable(path, overwrite)
        _put_in_place(building, path)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def verify_directory(path: str | Path) -> None:
    """Check that a folder is a whole artefact. Files that its marker does not list are not looked at.

    Raises:
        ArtefactError: not there, no COMPLETE.json, or a listed file is missing, a link, or not as it was written.
    """
    path = Path(path)
    _tidy_siblings(path)
    if not path.is_dir():
        raise ArtefactError(f"{path} is not there" if not path.exists() else f"{path} is a file: expected a folder")
    problems = []
    for name, digest in _marked_files(path).items():
        file = inside(path, name)
        if not file.is_file():
            problems.append(f"{name} is missing")
        elif sha256(file) != digest:
            problems.append(f"{name} is not as it was written")
    if problems:
        raise ArtefactError(f"{path} is damaged ({listed(problems)}): fetch or make it again")


def _marked_files(path: Path) -> dict[str, str]:
    """What COMPLETE.json lists: hash by relative path."""
    marker = inside(path, MARKER)
    if not marker.is_file():
        raise ArtefactError(
            f"{path} has no {MARKER}, so writing it was interrupted, or it is not a folder of thisness: make it again"
        )
    data = read_json(marker)
    files = data.get("files") if isinstance(data, dict) else None
    if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
        raise ArtefactError(f"{marker} does not list files with their hashes: the folder is damaged, make it again")
    return files


def _write_marker(building: Path) -> None:
    files = {}
    for entry in sorted(building.rglob("*")):
        if entry.is_symlink():
            raise ArtefactError(f"{entry.name} is a link: an artefact holds plain files only")
        if entry.is_dir():
            sync(entry)
        elif entry != building / MARKER:
            sync(entry)
            files[entry.relative_to(building).as_posix()] = sha256(entry)
    write_json(building / MARKER, {"files": files})


def _check_replaceable(path: Path, overwrite: bool) -> None:
    """Never replace what may be somebody's own."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise ArtefactError(f"{path} is {'a link' if path.is_symlink() else 'a file'}: name a folder")
    if overwrite or not path.exists() or not any(path.iterdir()):
        return
    if not (path / MARKER).is_file():
        raise ArtefactError(f"{path} exists, is not empty and was not written by thisness: name another folder")
    known = {MARKER, *_marked_files(path)}
    entries = (entry.relative_to(path) for entry in path.rglob("*") if not entry.is_dir())
    added = [entry.as_posix() for entry in entries if entry.as_posix() not in known and entry.name[0] != "."]
    if added:
        raise ArtefactError(f"{path} holds files that somebody added ({listed(sorted(added))}): move them away first")


def _put_in_place(building: Path, path: Path) -> None:
    """Swap the new folder in; the old one goes last."""
    if not path.exists():
        building.rename(path)
    elif _exchange(building, path):
        shutil.rmtree(building, ignore_errors=True)
    else:  # no atomic exchange here: between the two renames, `_tidy_siblings` of the next reader puts the old one back
        previous = building.with_suffix(".previous")
        path.rename(previous)
        building.rename(path)
        shutil.rmtree(previous, ignore_errors=True)
    sync(path.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step, where the system can (renameat2 of Linux)."""
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _tidy_siblings(path: Path) -> None:
    """Put an old folder back that a killed process had moved aside, and remove what killed processes left over."""
    pattern = re.compile(re.escape(f".{path.name[:160]}.") + r"(\d+)-[0-9a-f]{8}\.(partial|previous)")
    if not path.parent.is_dir():
        return
    left = [(entry, match) for entry in path.parent.iterdir() if (match := pattern.fullmatch(entry.name))]
    for entry, match in left:
        if _alive(int(match[1])) or not entry.is_dir() or entry.is_symlink():
            continue
        if match[2] == "previous" and not path.exists():
            with suppress(OSError):
                entry.rename(path)
        elif time.time() - entry.stat().st_mtime > SECONDS_UNTIL_LEFT_OVER:
            shutil.rmtree(entry, ignore_errors=True)


def _alive(process: int) -> bool:
    """Whether a process of this number runs on this machine."""
    if process == os.getpid():
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


# --- weights ---------------------------------------------------------------------------------------------------------


def load_tensors(path: str | Path, *, expect: Mapping[str, tuple[int, ...]] | None = None) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU, checked before anyone uses them.

    Args:
        path: a .safetensors file.
        expect: the shape of each tensor by name; None takes whatever is there.

    Returns:
        At least one tensor by name; all floating-point values are finite.

    Raises:
        ArtefactError: a pickle (with the way to convert it), not there, damaged, empty, not finite, or not what is
            expected: then all missing and unexpected names and other shapes are listed.
    """
    path = Path(path)
    if path.suffix.lower() in PICKLED:
        raise ArtefactError(
            f"{path} may be a pickle, which can run any code when it is opened: refused. If you trust it, convert it "
            'once: python -c "import sys, torch, safetensors.torch as s; t = torch.load(sys.argv[1], '
            "weights_only=True, map_location='cpu'); s.save_file({k: v.contiguous() for k, v in "
            f"t.get('state_dict', t).items()}}, sys.argv[2])\" {path.name} {path.stem}.safetensors"
        )
    if path.suffix.lower() != ".safetensors":
        raise ArtefactError(f"{path}: weights are read from .safetensors files only")
    if not path.is_file():
        raise ArtefactError(f"{path} is not there")

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtefactError(
            f"{path} is not a readable safetensors file ({_first_line(error)}): fetch it again"
        ) from error
    if not tensors:
        raise ArtefactError(f"{path} holds no tensors: it would change nothing")
    if expect is not None:
        compare_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, expect, str(path))
    broken = [name for name, tensor in tensors.items() if not _all_finite(tensor)]
    if broken:
        raise ArtefactError(f"{path}: NaN or infinity in {listed(broken)}: the training that wrote it had diverged")
    return tensors


def compare_shapes(found: Mapping[str, tuple[int, ...]], expect: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Refuse weights that do not fit, with everything that differs.

    Raises:
        ArtefactError: no name matches at all, or names are missing or unexpected, or shapes differ.
    """
    if expect and not found.keys() & expect.keys():
        raise ArtefactError(
            f"{where}: not one of {len(expect)} expected tensors is in it: expected {listed(expect)}; "
            f"found {listed(found)}"
        )
    problems = []
    if missing := [name for name in expect if name not in found]:
        problems.append(f"missing {listed(missing)}")
    if unexpected := [name for name in found if name not in expect]:
        problems.append(f"unexpected {listed(unexpected)}")
    shapes = [n for n in expect if n in found and tuple(found[n]) != tuple(expect[n])]
    if shapes:
        problems.append(
            "other shapes: " + listed(f"{n} {tuple(found[n])}, expected {tuple(expect[n])}" for n in shapes)
        )
    if problems:
        raise ArtefactError(f"{where} does not fit: {'; '.join(problems)}")


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, atomically, from any device; views and shared storage are written out in full.

    Raises:
        UserError: not a .safetensors name.
        OSError, safetensors.SafetensorError: as `write_with`.
    """
    from safetensors.torch import save_file

    if Path(path).suffix != ".safetensors":
        raise UserError(f"{path}: weights are written to .safetensors files only")
    plain: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().to("cpu").contiguous()
        if tensor.untyped_storage().data_ptr() in storages:
            tensor = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
        plain[name] = tensor
    write_with(path, lambda partial: save_file(plain, partial, metadata=dict(metadata or {})))


def listed(names: Iterable[str], limit: int = 6) -> str:
    """The first few of many names, and how many more there are."""
    every = list(names)
    rest = f" and {len(every) - limit} more" if len(every) > limit else ""
    return ", ".join(every[:limit]) + rest


def _all_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    if tensor.dtype.itemsize == 1:  # 8-bit floats lack the operation
        tensor = tensor.float()
    return bool(tensor.isfinite().all())


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
