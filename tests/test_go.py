"""`go.py`, the set-up script. Oracle: what a recording stand-in for the environment's Python was asked to do, and the
exit codes that come back; nothing is installed here (CI itself is the real installation)."""

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the stand-ins are shell scripts")


@pytest.fixture
def checkout(tmp_path):
    """A copy of what go.py reads, in a folder whose name has a space."""
    folder = tmp_path / "a checkout"
    folder.mkdir()
    for name in ("go.py", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture
def go(checkout):
    """The module of the copy, loaded anew."""
    spec = importlib.util.spec_from_file_location("go_copy", checkout / "go.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


def stand_in(checkout: Path, exits: str = "exit 0") -> Path:
    """A `.venv` whose Python writes each call and its threads to `calls`, then does what `exits` says."""
    script(checkout / ".venv/bin/python", f'echo "$OMP_NUM_THREADS|$*" >> "{checkout}/calls"\n{exits}\n')
    return checkout / "calls"


def interpreter(path: Path, answer: str) -> Path:
    """A Python that answers go.py's question about itself with "major minor has-ensurepip"."""
    return script(path, f"echo {answer}\n")


def call(checkout: Path, *words: str, **env: str) -> subprocess.CompletedProcess:
    clean = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    return subprocess.run(
        [sys.executable, str(checkout / "go.py"), *words], capture_output=True, text=True, env=clean | env, timeout=60
    )


def installed(checkout: Path, go) -> None:
    (checkout / ".venv/thisness-installed").write_text(go.fingerprint() + "\n")


def test_needs_only_the_standard_library():
    tree = ast.parse((ROOT / "go.py").read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names and names <= sys.stdlib_module_names


def test_a_later_call_starts_only_the_command(checkout, go):
    calls = stand_in(checkout)
    installed(checkout, go)
    assert call(checkout, "generate", "a dog", "--seeds", "0-3", OMP_NUM_THREADS="5").returncode == 0
    assert calls.read_text().splitlines() == ["5|-P -m thisness generate a dog --seeds 0-3"]


@pytest.mark.parametrize("code", [0, 1, 2, 130])
def test_passes_the_exit_code_on(checkout, go, code):
    stand_in(checkout, f"exit {code}")
    installed(checkout, go)
    assert call(checkout, "demo").returncode == code


def test_bounds_the_threads_by_the_cores_it_may_use(checkout, go):
    calls = stand_in(checkout)
    installed(checkout, go)
    call(checkout, "demo")
    threads = int(calls.read_text().split("|")[0])
    assert 1 <= threads <= len(os.sched_getaffinity(0))


def test_installs_with_the_constraints_into_an_environment_that_is_there(checkout, go):
    calls = stand_in(checkout, 'case "$*" in "-c "*) echo 3 11 1;; esac')
    done = call(checkout, "setup")
    assert done.returncode == 0, done.stderr
    pip = [line for line in calls.read_text().splitlines() if " install " in line]
    assert len(pip) == 1 and pip[0].endswith("-c constraints.txt -e .[test]")
    assert not any("-m venv" in line for line in calls.read_text().splitlines()), "one that works is not made again"
    calls.unlink()
    assert call(checkout, "setup").returncode == 0
    assert not calls.exists(), "a second call does nothing"


@pytest.mark.parametrize("name", ["constraints.txt", "pyproject.toml"])
def test_installs_again_when_what_is_asked_for_changes(checkout, go, name):
    stand_in(checkout)
    installed(checkout, go)
    assert go.is_installed()
    with (checkout / name).open("a") as file:
        file.write("# changed\n")
    assert not go.is_installed()


def test_a_failed_installation_is_not_taken_for_done(checkout, go):
    stand_in(checkout, 'case "$*" in "-c "*) echo 3 11 1;; *" install "*) exit 9;; esac')
    done = call(checkout, "demo")
    assert done.returncode == 1
    assert "installing with pip failed (exit code 9)" in done.stderr and "Traceback" not in done.stderr
    assert not go.is_installed()


def test_of_two_calls_at_once_one_installs_and_the_other_waits(checkout):
    calls = stand_in(checkout, 'case "$*" in "-c "*) echo 3 11 1;; *" install "*) sleep 0.5;; esac')
    line = [sys.executable, str(checkout / "go.py"), "setup"]
    both = [subprocess.Popen(line, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    assert sum(" install " in line for line in calls.read_text().splitlines()) == 1


def test_an_environment_whose_python_is_gone_is_named(checkout):
    (checkout / ".venv/bin").mkdir(parents=True)
    (checkout / ".venv/bin/python").symlink_to(checkout / "nowhere")
    done = call(checkout, "demo")
    assert done.returncode == 1 and "delete the folder .venv" in done.stderr


def test_prefers_python_3_11(go, tmp_path, monkeypatch, capsys):
    wanted = interpreter(tmp_path / "bin/python3.11", "3 11 1")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sys, "executable", str(interpreter(tmp_path / "other/python3", "3 13 1")))
    assert go.choose_python() == str(wanted)
    assert capsys.readouterr().err == ""


def test_says_so_when_it_takes_another_python(go, tmp_path, monkeypatch, capsys):
    other = interpreter(tmp_path / "other/python3", "3 13 1")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr(sys, "executable", str(other))
    assert go.choose_python() == str(other)
    assert "no Python 3.11 found" in capsys.readouterr().err


def test_says_what_to_install_when_ensurepip_is_missing(go, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr(sys, "executable", str(interpreter(tmp_path / "other/python3", "3 11 0")))
    with pytest.raises(go.SetupError, match="apt-get install python3.11-venv"):
        go.choose_python()


def test_a_python_3_11_without_ensurepip_yields_to_one_that_has_it(go, tmp_path, monkeypatch):
    able = interpreter(tmp_path / "bin/python3.11", "3 11 1")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sys, "executable", str(interpreter(tmp_path / "other/python3", "3 11 0")))
    assert go.choose_python() == str(able)


def test_says_which_python_is_needed_when_there_is_none(go, tmp_path, monkeypatch):
    interpreter(tmp_path / "bin/python3.11", "broken")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sys, "executable", str(interpreter(tmp_path / "other/python3", "3 9 1")))
    with pytest.raises(go.SetupError, match=r"install Python 3\.11"):
        go.choose_python()


def test_runs_every_check_and_names_those_that_failed(checkout, go):
    calls = stand_in(checkout, 'case "$*" in *"ruff check"*) exit 3;; *mypy*) exit 4;; esac')
    installed(checkout, go)
    done = call(checkout, "test")
    assert done.returncode == 3
    assert "failed: ruff check, mypy" in done.stderr
    started = [line.split("|")[1] for line in calls.read_text().splitlines()]
    assert [words.split()[1] for words in started] == ["ruff", "ruff", "mypy", "pytest"]


def test_arguments_of_test_go_to_pytest_alone(checkout, go):
    calls = stand_in(checkout)
    installed(checkout, go)
    assert call(checkout, "test", "-m", "slow", "tests/test_go.py").returncode == 0
    assert calls.read_text().splitlines() == ["1|-m pytest -m slow tests/test_go.py"]


def test_help_installs_nothing(checkout):
    done = call(checkout, "--help")
    assert done.returncode == 0 and "python3 go.py demo" in done.stdout
    assert not (checkout / ".venv").exists()


def test_ci_runs_the_checks_by_the_same_script():
    assert os.access(ROOT / ".ci/run", os.X_OK)
    assert "python3 go.py test" in (ROOT / ".ci/run").read_text()
