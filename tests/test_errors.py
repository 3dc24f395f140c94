"""Oracle: messages that a person reads: nearest names, everything at once, one line."""

import subprocess
import sys

import pytest

from thisness.errors import ArtefactError, ConfigurationError, ImageError, PromptError, UserError, nearest, raise_all


def test_nearest_name_is_found_whatever_the_case():
    assert nearest("Alpah", ["beta", "alpha"]) == " (did you mean 'alpha'?)"
    assert nearest("dpm", ["DPM++", "ddim"]) == " (did you mean 'DPM++'?)"
    assert nearest("zzz", ["alpha"]) == ""
    assert nearest("x", []) == ""


def test_all_problems_in_one_line():
    with pytest.raises(ConfigurationError, match="^recipe: 2 problems: a is wrong; b is wrong$"):
        raise_all(["a is wrong", "b is wrong"], lead="recipe")
    with pytest.raises(PromptError, match="^a is wrong$"):
        raise_all(["a is wrong"], PromptError)
    raise_all([])


@pytest.mark.parametrize("error", [ArtefactError, ImageError, PromptError, ConfigurationError])
def test_bad_input_is_a_user_error(error):
    assert issubclass(error, UserError)


def test_what_flows_is_imported_without_heavy_libraries():
    names = "errors, files, images, subject, prompt, recipe, concept"
    code = (
        f"import sys; from thisness import {names}; "
        "sys.exit([m for m in ('torch', 'transformers', 'diffusers') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr.strip() == "[]"
