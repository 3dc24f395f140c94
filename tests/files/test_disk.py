"""Oracle: after any failure in the middle of a write, the file has its old content and nothing is left beside it."""

import json
import os
import signal
import subprocess
import sys

import pytest

from thisness.errors import ArtefactError, UserError
from thisness.files import disk, read_json, sha256, write_bytes, write_json, write_text, write_with


def test_content_arrives_and_is_replaced(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    write_text(path, "grün\n")
    write_text(path, "blau\n")
    assert path.read_bytes() == b"blau\n"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.txt"]
    write_json(tmp_path / "a.json", {"b": 1, "a": "é"})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "b": 1,\n  "a": "é"\n}\n'


def test_failure_while_writing_keeps_the_old_content(tmp_path):
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")

    def half(partial):
        partial.write_bytes(b"ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_with(path, half)
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"loss": float("nan")})
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]


def test_data_are_on_the_disk_before_the_name_changes(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(disk, "sync", lambda path: calls.append(("sync", path.name)))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append(("replace", b.name)), replace(a, b)))
    write_bytes(tmp_path / "a", b"x")
    assert [kind for kind, _ in calls] == ["sync", "replace", "sync"]
    assert calls[0][1].endswith(".partial") and calls[2][1] == tmp_path.name


def test_killed_before_the_rename_keeps_the_old_content(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"step": 1})
    code = (
        "import os, sys, time; from thisness.files import write_json\n"
        "def hang(a, b): print('ready', flush=True); time.sleep(60)\n"
        f"os.replace = hang; write_json({str(path)!r}, {{'step': 2}})"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
    assert json.loads(path.read_text()) == {"step": 1}


def test_links_are_replaced_not_followed(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    write_text(tmp_path / "link", "ours")
    assert (tmp_path / "precious").read_text() == "mine"
    assert (tmp_path / "link").read_text() == "ours" and not (tmp_path / "link").is_symlink()


def test_folders_and_files_in_the_way_are_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="a file is in the way"):
        write_text(tmp_path / "file" / "a.txt", "x")
    with pytest.raises(UserError, match="is a folder: name a file"):
        write_text(tmp_path, "x")


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100_000])
def test_unreadable_json(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ArtefactError, match="not readable JSON"):
        read_json(tmp_path / "a.json")
    with pytest.raises(ArtefactError, match="is not there"):
        read_json(tmp_path / "b.json")


def test_hash_is_sha256_of_the_content(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert sha256(tmp_path / "a") == sha256(b"abc") == known
