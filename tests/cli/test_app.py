"""The commands, put together. Oracle: which modules a help text loads, and the commands that the design names."""

import json
import subprocess
import sys

import pytest

from thisness import cli

HEAVY = ("torch", "diffusers", "transformers", "peft", "accelerate", "numpy", "PIL")
COMMANDS = ("demo", "generate", "learn", "inspect", "export", "doctor", "playroom")
PLAYROOM = ("sheet", "subject", "dataset", "train", "check")


def loaded_by(program: str) -> set[str]:
    """The heavy packages, and the number of modules of ours, that a fresh interpreter holds after the program."""
    program += "\nimport sys, json; print('\\n' + json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return set(json.loads(done.stdout.splitlines()[-1])) & set(HEAVY)


def test_importing_the_package_loads_nothing_heavy():
    assert loaded_by("import thisness") == set()


@pytest.mark.parametrize("words", [["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)])
def test_help_loads_nothing_heavy(words):
    assert loaded_by(f"from thisness.cli import run; assert run({words!r}) == 0") == set()


def test_help_of_every_playroom_command_loads_nothing_heavy():
    calls = "".join(f"assert run(['playroom', {name!r}, '--help']) == 0\n" for name in PLAYROOM)
    assert loaded_by(f"from thisness.cli import run\n{calls}") == set()


def test_wrong_input_is_refused_before_anything_heavy_is_loaded():
    """A mistyped seed costs no seconds of imports."""
    program = "from thisness.cli import run; assert run(['generate', 'a dog', '--seeds', '3-1']) == 2"
    assert loaded_by(program) == set()


def test_the_help_names_every_command(capsys):
    assert cli.run(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(command in said for command in COMMANDS)


def test_version(capsys):
    from importlib.metadata import version

    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"thisness {version('thisness')}\n"


def test_a_mistyped_command_names_the_nearest(capsys):
    assert cli.run(["genarate", "a dog"]) == 2
    assert "generate" in capsys.readouterr().err


def test_no_words_print_the_help(capsys):
    cli.run([])
    assert "generate" in "".join(capsys.readouterr())
