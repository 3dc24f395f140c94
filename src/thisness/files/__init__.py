"""Files that are whole or not there at all, and names and weights that are safe to open."""

from .disk import (
    cache_root,
    make_parent,
    read_json,
    sha256,
    sync,
    write_bytes,
    write_json,
    write_text,
    write_with,
)
from .folders import MARKER, check_replaceable, directory, verify_directory
from .names import checked_name, inside, listed, safe_name
from .tensors import PICKLED, compare_shapes, load_tensors, save_tensors

__all__ = [
    "MARKER",
    "PICKLED",
    "cache_root",
    "check_replaceable",
    "checked_name",
    "compare_shapes",
    "directory",
    "inside",
    "listed",
    "load_tensors",
    "make_parent",
    "read_json",
    "safe_name",
    "save_tensors",
    "sha256",
    "sync",
    "verify_directory",
    "write_bytes",
    "write_json",
    "write_text",
    "write_with",
]
