"""What is installed and what is said of it. Oracle: the files against each other and against what is installed."""

import re
import tomllib
from importlib.metadata import distribution, version
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONSTRAINTS = dict(
    re.fullmatch(r"([A-Za-z0-9_.-]+)([=<>].+)", line).groups()
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
)
DIRECT = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["test"]]


def name_of(requirement: str) -> str:
    return re.match(r"[A-Za-z0-9_.-]+", requirement)[0]


@pytest.mark.parametrize("requirement", DIRECT)
def test_every_direct_dependency_is_pinned_to_what_is_installed(requirement):
    name = name_of(requirement)
    assert CONSTRAINTS[name] == f"=={version(name).partition('+')[0]}"


def test_torch_is_exact_in_both_places_and_torchvision_is_shut_out():
    assert "torch==2.13.0" in PROJECT["project"]["dependencies"]
    assert CONSTRAINTS["torch"] == "==2.13.0" and CONSTRAINTS["torchvision"] == "<0.0.1"


def test_building_asks_for_nothing_that_is_not_constrained_and_large():
    assert {name_of(requirement) for requirement in PROJECT["build-system"]["requires"]} == {"hatchling"}


def test_what_is_imported_is_declared():
    """Each import of the package's own code outside the standard library is a direct dependency, or an optional one
    inside of a function."""
    import ast
    import sys

    declared = {name_of(each).lower() for each in PROJECT["project"]["dependencies"]} | {
        "thisness",
        "pil",
        "torchvision",
    }
    declared |= {"huggingface_hub"}  # comes with diffusers and is pinned beside it
    extras = PROJECT["project"]["optional-dependencies"]
    optional = {name_of(each).lower() for extra in extras if extra != "test" for each in extras[extra]}
    for file in (ROOT / "src").rglob("*.py"):
        tree = ast.parse(file.read_text())
        functions = (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))
        late = {id(inner) for function in functions for inner in ast.walk(function)}
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for name in names:
                top = name.split(".")[0]
                allowed = declared | optional if id(node) in late else declared
                assert top in sys.stdlib_module_names or top.lower() in allowed, f"{file.name} imports {top}"


def test_the_version_is_the_packages_own():
    import thisness

    assert version("thisness") == thisness.__version__
    assert distribution("thisness").entry_points["thisness"].value == "thisness.cli:main"


def test_the_licence_is_the_whole_apache_text():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text
    assert len(text.split()) == 1581


def test_the_five_papers_are_named_with_their_authors():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["license"] == PROJECT["project"]["license"]
    first = {paper["authors"][0]["family-names"]: paper for paper in citation["references"]}
    assert set(first) == {"Cai", "Bui", "Song", "Duan", "Lin"}
    assert all(paper["url"].startswith("https://arxiv.org/abs/") and paper["title"] for paper in first.values())


def test_no_file_is_too_large_and_none_is_a_pickle():
    for file in (ROOT / "src").rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts:
            assert file.stat().st_size < 16_000_000, file.name
            assert file.suffix not in (".bin", ".pt", ".pth", ".ckpt", ".pkl"), file.name
