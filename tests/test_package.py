"""Oracles: the modules that an import loads; the names that are there."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import thisness


def test_every_public_name_is_there():
    for name in thisness.__all__:
        assert getattr(thisness, name) is not None, name
    assert set(thisness.__all__) <= set(dir(thisness))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = thisness.nonsense


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(thisness.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {name.asname or name.name: node.module for node in block.body for name in node.names}
    assert seen == thisness._WHERE


def test_names_are_those_of_their_modules():
    for name, module in thisness._WHERE.items():
        assert getattr(thisness, name) is getattr(importlib.import_module(f"thisness.{module}"), name)


def test_importing_it_loads_no_heavy_library():
    code = (
        "import sys, thisness; print(sorted({'torch', 'diffusers', 'transformers', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
