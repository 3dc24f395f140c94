"""The README and the pages it links to. Oracle: the command line itself, to which every command is given."""

import re
import shlex
from pathlib import Path

import pytest
from typer.core import TyperGroup

from thisness import cli
from thisness.cli.app import build

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")),
]
OF_GO = ("demo", "test", "setup")


def blocks(page: str, language: str = "") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """The words of each `python3 go.py ...` and `thisness ...` in the page's code blocks."""
    found = []
    for line in "\n".join(blocks(page)).splitlines():
        for start in ("python3 go.py ", "thisness "):
            if line.startswith(start):
                typed = re.split(r"\s{2,}", line.removeprefix(start))[0]  # what follows in a column explains it
                found.append(shlex.split(typed, comments=True))
    return found


def accept(words: list[str]) -> None:
    """Parse a line as the command line would, down to the last option, without running anything."""
    command, context, name = build(words), None, "thisness"
    while True:
        context = command.make_context(name, list(words), parent=context)
        if not isinstance(command, TyperGroup):
            return
        name, command, words = command.resolve_command(context, [*context._protected_args, *context.args])


def test_the_two_commands_come_first():
    assert commands("README.md")[:2] == [["demo"], ["test"]]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_accepted(page):
    for words in commands(page):
        if words[0] not in ("test", "setup"):
            accept(words)


def test_a_command_that_is_not_there_would_be_noticed():
    for words in (["generate", "a dog", "--sedes", "3"], ["playroom", "sheets"], ["generat", "a dog"]):
        with pytest.raises(Exception, match="(?i)no such"):
            accept(words)


def test_the_five_run_in_their_order(base_folder, tmp_path, monkeypatch, capsys):
    """On a tiny base and with few steps, else word for word."""
    monkeypatch.chdir(tmp_path)
    five = commands("README.md")[2:7]
    assert [words[0] for words in five] == ["playroom", "doctor", "learn", "generate", "inspect"]
    more = {
        "learn": ["--base", str(base_folder), "--steps", "1", "--set", "prior_pictures=0"],
        "generate": ["--base", str(base_folder), "--steps", "1"],
    }
    for words in five:
        assert cli.run([*words, *more.get(words[0], [])]) == 0, capsys.readouterr().err
    assert "a picture made by thisness" in capsys.readouterr().out


def test_the_python_runs(base_folder, tmp_path, monkeypatch):
    """On the tiny base, with a preset of one step."""
    from thisness.methods import METHODS

    monkeypatch.chdir(tmp_path)
    assert cli.run(["playroom", "subject", "mimi", "--out", "photos/mimi", "--size", "32"]) == 0
    monkeypatch.setitem(METHODS["dreambooth-lora"].presets, "small", {"steps": 1, "prior_pictures": 0})
    (code,) = blocks("README.md", "python")
    exec(code.replace('"playroom-sd"', repr(str(base_folder))), {})
    assert (tmp_path / "mimi.png").is_file()


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links to {target}"


def test_no_path_of_a_machine_is_written_down():
    for page in PAGES:
        assert not re.search(r"(/home/|/root/|/tmp/|/Users/)", (ROOT / page).read_text()), page
