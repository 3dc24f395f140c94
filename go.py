#!/usr/bin/env python3
"""Set this project up and run it. Standard library only.

    python3 go.py demo              set up if needed, then the main job: pictures of a toy in, a sheet of new scenes out
    python3 go.py test [ARGS]       set up if needed, then every check; with ARGS only pytest, with those arguments
    python3 go.py setup             only set up: make .venv and install the project into it
    python3 go.py WORDS             any other words go to the `thisness` command (try: python3 go.py --help)

The first call makes the virtual environment `.venv` and installs the project into it with the versions of
constraints.txt. Later calls see by a hash that there is nothing to do. The exit code is the command's own.
"""

# Kept to the syntax of old Pythons, so that those too can say which Python is needed.
import hashlib
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(ROOT, ".venv")
STAMP = os.path.join(VENV, "thisness-installed")
PREFERRED = (3, 11)
WINDOWS = os.name == "nt"
VENV_PYTHON = os.path.join(VENV, "Scripts" if WINDOWS else "bin", "python.exe" if WINDOWS else "python")


class SetupError(Exception):
    """What went wrong while setting up, and what to do, in one message."""


def say(text):
    """Print one line of progress on the error stream: the command's own output stays clean."""
    print("go.py: " + text, file=sys.stderr, flush=True)


def fingerprint():
    """Hash of everything that decides what is installed.

    Returns: 64 hexadecimal digits over pyproject.toml, constraints.txt and the place of the checkout (an editable
    install points there).
    """
    digest = hashlib.sha256(ROOT.encode("utf-8"))
    for name in ("pyproject.toml", "constraints.txt"):
        with open(os.path.join(ROOT, name), "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def is_installed():
    """Whether `.venv` holds what the files ask for now. Reads three small files and starts nothing."""
    try:
        with open(STAMP) as file:
            return file.read().strip() == fingerprint() and os.path.exists(VENV_PYTHON)
    except OSError:
        return False


def describe(python):
    """Version and abilities of an interpreter.

    Returns: ((major, minor), can make an environment with pip), or None where it does not run.
    """
    probe = (
        "import sys, importlib.util as u\n"
        "print(sys.version_info[0], sys.version_info[1], int(bool(u.find_spec('venv') and u.find_spec('ensurepip'))))"
    )
    try:
        words = subprocess.check_output([python, "-c", probe], stderr=subprocess.DEVNULL, timeout=60).split()
        return (int(words[0]), int(words[1])), words[2] == b"1"
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return None


def on_path(name):
    """Every executable of that name on the PATH, in order."""
    suffix = ".exe" if WINDOWS else ""
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        candidate = os.path.join(folder, name + suffix)
        if folder and os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            yield candidate


def choose_python():
    """The interpreter that makes `.venv`: 3.11 where there is one, else this one or a newer one on the PATH.

    Raises: SetupError where none fits; it says what to install.
    """
    wanted = "python{}.{}".format(*PREFERRED)
    able: list = []
    lacking: list = []
    for candidate in [sys.executable] + list(on_path(wanted)) + list(on_path("python3")):
        found = describe(candidate) if candidate else None
        if found is None or found[0] < PREFERRED:
            continue
        (able if found[1] else lacking).append((found[0] != PREFERRED, found[0], candidate))
        if found == (PREFERRED, True):
            break
    if able:
        differs, version, python = min(able, key=lambda choice: choice[0])
        if differs:
            say(f"no Python 3.11 found, with which this project is tested: using {version[0]}.{version[1]} at {python}")
        return python
    if lacking:
        _, version, python = min(lacking, key=lambda choice: choice[0])
        raise SetupError(
            f"{python} cannot make a virtual environment (its ensurepip or venv module is missing): install it with "
            f"`apt-get install python{version[0]}.{version[1]}-venv` on Debian and Ubuntu, or install Python 3.11 from "
            "https://www.python.org, then run this again"
        )
    raise SetupError(
        f"this is Python {sys.version_info[0]}.{sys.version_info[1]}, and no Python 3.11 or newer was found on the "
        "PATH: install Python 3.11 (`apt-get install python3.11 python3.11-venv`, or https://www.python.org), then "
        "run `python3.11 go.py ...`"
    )


def checked(command, what):
    """Run a step of the set-up. Raises: SetupError with the step's name where it fails."""
    code = subprocess.call(command, cwd=ROOT)
    if code:
        raise SetupError(f"{what} failed (exit code {code}): see the lines above; then run this again")


def make_environment():
    """Make `.venv`, or mend one whose making was cut short. One that works is left as it is."""
    if os.path.lexists(VENV_PYTHON):
        if describe(VENV_PYTHON) is None:
            raise SetupError(
                ".venv does not run (was its Python removed?): delete the folder .venv, then run this again"
            )
        if subprocess.call([VENV_PYTHON, "-m", "pip", "--version"], stdout=subprocess.DEVNULL) == 0:
            return
    python = choose_python()
    say(f"making .venv with {python}")
    checked([python, "-m", "venv", VENV], "making the virtual environment")


def install():
    """Install the project, editable and with its test tools, with the versions of constraints.txt."""
    say("installing (the first time takes minutes: torch is large)")
    started = fingerprint()
    quiet = [] if sys.stderr.isatty() else ["--quiet"]  # a person sees the downloads go on, a log stays short
    pip = [VENV_PYTHON, "-m", "pip", "--disable-pip-version-check", "--no-input", "install"] + quiet
    checked(pip + ["-c", "constraints.txt", "-e", ".[test]"], "installing with pip")
    temporary = STAMP + ".new"
    with open(temporary, "w") as file:
        file.write(started + "\n")
    os.replace(temporary, STAMP)
    say("set up")


def ensure_installed():
    """Make and fill `.venv` where needed; of several calls at once only one works and the others wait for it."""
    if is_installed():
        return
    with open(os.path.join(ROOT, ".venv.lock"), "w") as lock:
        if not WINDOWS:
            import fcntl

            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                say("another call is setting up: waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_installed():
            make_environment()
            install()


def usable_cores():
    """Cores this process may use: its affinity, and the quota of its control group where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return cores


def environment(threads):
    """The environment of what is started: torch's threads bounded by what the caller set or may use.

    More threads than cores make small models slower by a multiple, and libraries count the machine's cores, not ours.
    """
    env = dict(os.environ)
    env.setdefault("OMP_NUM_THREADS", str(threads))
    env.setdefault("TOKENIZERS_PARALLELISM", "false")
    return env


def command(words):
    """Become the `thisness` command (on Windows: run it). Returns: its exit code, where it returns."""
    line = [VENV_PYTHON, "-P", "-m", "thisness"] + words  # -P: a file of the caller's folder is never imported
    env = environment(usable_cores())
    env["THISNESS_PROGRAM"] = "python3 go.py"  # so that hints can be typed as they stand
    if not WINDOWS:
        os.execve(VENV_PYTHON, line, env)  # signals and the exit code are then the command's own
    return subprocess.call(line, env=env)


def test(arguments):
    """Run every check, also after one fails, and name those that failed.

    Args: arguments: for pytest; where there are any, only pytest runs.
    Returns: 0 where all passed, else the exit code of the first that failed.
    """
    workers = min(2, usable_cores())
    pytest = ["-m", "pytest"] + (arguments or ["-q", "-n", str(workers), "--dist", "loadfile"])
    checks = [
        ("ruff check", ["-m", "ruff", "check", "."]),
        ("ruff format", ["-m", "ruff", "format", "--check", "."]),
        ("mypy", ["-m", "mypy"]),
    ]
    env = environment(1)  # the workers share the cores
    env.setdefault("HF_HUB_OFFLINE", "1")
    failed = []
    for name, words in ([] if arguments else checks) + [("pytest", pytest)]:
        if not arguments:
            say(name)
        code = subprocess.call([VENV_PYTHON] + words, cwd=ROOT, env=env)
        if code:
            failed.append((name, code))
    if not arguments:
        say("failed: " + ", ".join(name for name, _ in failed) if failed else "all checks passed")
    return failed[0][1] if failed else 0


def main(words):
    """Set up, then do what the words say. Returns: the exit code."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(__doc__.strip())
        if not is_installed():
            return 0
        print("\nThe thisness command:\n", flush=True)
        return command(["--help"])
    try:
        ensure_installed()
    except SetupError as error:
        say(str(error))
        return 1
    if words[0] == "setup":
        return 0
    if words[0] == "test":
        return test(words[1:])
    return command(words)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        say("stopped")
        sys.exit(130)
