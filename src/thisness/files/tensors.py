"""Weights on disk: safetensors only, checked before anyone uses them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ArtefactError, UserError
from .disk import write_with
from .names import listed

if TYPE_CHECKING:
    from torch import Tensor

PICKLED = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})


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

    def write(partial: Path) -> None:
        partial.touch()
        mode = partial.stat().st_mode  # safetensors lets only the owner read what it writes
        save_file(plain, partial, metadata=dict(metadata) if metadata else None)
        partial.chmod(mode)

    write_with(path, write)


def _all_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    if tensor.dtype.itemsize == 1:  # 8-bit floats lack the operation
        tensor = tensor.float()
    return bool(tensor.isfinite().all())


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
