"""Oracle: whatever happens while a folder is written, also SIGKILL, what stands there is a whole folder (SAFETY 3)."""

import json
import os
import signal
import subprocess
import sys

import pytest

from thisness.errors import ArtefactError
from thisness.files import directory, folders, sha256, verify_directory, write_text


def make(path, content, **options):
    with directory(path, **options) as building:
        write_text(building / "a.txt", content)
        (building / "sub").mkdir()
        (building / "sub" / "b.txt").write_text(content * 2)


def content(path):
    verify_directory(path)
    return (path / "a.txt").read_text()


def test_marker_lists_every_file_with_its_hash(tmp_path):
    make(tmp_path / "art", "one")
    marker = json.loads((tmp_path / "art" / "COMPLETE.json").read_text())
    assert marker == {"files": {"a.txt": sha256(b"one"), "sub/b.txt": sha256(b"oneone")}}
    assert [entry.name for entry in tmp_path.iterdir()] == ["art"]


def test_new_replaces_old(tmp_path):
    make(tmp_path / "art", "one")
    with directory(tmp_path / "art") as building:
        write_text(building / "a.txt", "two")
        assert content(tmp_path / "art") == "one"  # until the very end
    assert content(tmp_path / "art") == "two"
    assert not (tmp_path / "art" / "sub").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["art"]


def test_exchange_is_used_where_there_is_one_and_not_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "_exchange", lambda one, other: False)
    make(tmp_path / "art", "one")
    make(tmp_path / "art", "two")
    assert content(tmp_path / "art") == "two"
    assert [entry.name for entry in tmp_path.iterdir()] == ["art"]


def test_exception_inside_keeps_the_old_folder(tmp_path):
    make(tmp_path / "art", "one")
    with pytest.raises(KeyboardInterrupt), directory(tmp_path / "art") as building:
        write_text(building / "a.txt", "two")
        raise KeyboardInterrupt
    assert content(tmp_path / "art") == "one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["art"]


def test_old_folder_stays_where_the_new_one_does_not_verify(tmp_path, monkeypatch):
    make(tmp_path / "art", "one")
    write_marker = folders._write_marker

    def failing_disk(building):
        write_marker(building)
        (building / "a.txt").write_text("garbage")

    monkeypatch.setattr(folders, "_write_marker", failing_disk)
    with pytest.raises(ArtefactError, match="damaged"):
        make(tmp_path / "art", "two")
    assert content(tmp_path / "art") == "one"


HANG = "def hang(*a, **k): print('ready', flush=True); time.sleep(60)"
KILLED = {  # where the process is when it is killed -> (what is patched, what must stand there afterwards)
    "while files are written": ("building_hook = hang", "one"),
    "before the marker": ("folders._write_marker = hang", "one"),
    "after the marker, before the swap": ("folders._put_in_place = hang", "one"),
    "after the swap, before the old one is removed": ("shutil.rmtree = hang", "two"),
    "between two renames, without an exchange": (
        "folders._exchange = lambda *a: False; rename = pathlib.Path.rename\n"
        "pathlib.Path.rename = lambda s, t: hang() if s.name.endswith('.partial') else rename(s, t)",
        "one",
    ),
}


@pytest.mark.parametrize("moment", KILLED)
def test_killed(tmp_path, moment):
    patch, expected = KILLED[moment]
    make(tmp_path / "art", "one")
    code = [
        "import os, pathlib, shutil, time",
        "from thisness.files import directory, folders",
        HANG,
        "building_hook = lambda: None",
        patch,
        f"with directory({str(tmp_path / 'art')!r}) as building:",
        "    (building / 'a.txt').write_text('two')",
        "    building_hook()",
    ]
    with subprocess.Popen([sys.executable, "-c", "\n".join(code)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
    assert len(list(tmp_path.iterdir())) > 0
    assert content(tmp_path / "art") == expected
    make(tmp_path / "art", "three")  # and life goes on
    assert content(tmp_path / "art") == "three"


def test_what_killed_processes_left_is_removed_in_time(tmp_path, monkeypatch):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = tmp_path / f".art.{ended.pid}-0123abcd.partial"
    alive = tmp_path / f".art.{os.getpid()}-0123abcd.partial"
    other = tmp_path / f".other.{ended.pid}-0123abcd.partial"
    for folder in (left, alive, other):
        folder.mkdir()
    make(tmp_path / "art", "one")
    assert left.exists()  # too young: a process on another machine may be writing it
    monkeypatch.setattr(folders, "SECONDS_UNTIL_LEFT_OVER", -1.0)
    make(tmp_path / "art", "two")
    assert not left.exists() and alive.exists() and other.exists()


def test_damage_is_found(tmp_path):
    make(tmp_path / "art", "one")
    (tmp_path / "art" / "a.txt").write_text("onf")
    (tmp_path / "art" / "sub" / "b.txt").unlink()
    with pytest.raises(ArtefactError, match="damaged .a.txt is not as it was written, sub/b.txt is missing"):
        verify_directory(tmp_path / "art")


def test_folder_without_marker_is_no_artefact(tmp_path):
    make(tmp_path / "art", "one")
    (tmp_path / "art" / "COMPLETE.json").unlink()
    with pytest.raises(ArtefactError, match="has no COMPLETE.json"):
        verify_directory(tmp_path / "art")
    with pytest.raises(ArtefactError, match="is not there"):
        verify_directory(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtefactError, match="is a file"):
        verify_directory(tmp_path / "file")


@pytest.mark.parametrize(
    "marker", ['{"files": ["a.txt"]}', "[]", "{", '{"files": {"../secret": "00"}}', '{"files": {"a.txt": 5}}']
)
def test_hostile_markers(tmp_path, marker):
    make(tmp_path / "art", "one")
    (tmp_path / "secret").write_text("x")
    (tmp_path / "art" / "COMPLETE.json").write_text(marker)
    with pytest.raises(ArtefactError) as caught:
        verify_directory(tmp_path / "art")
    assert "\n" not in str(caught.value)


def test_a_link_in_the_place_of_a_file_is_refused(tmp_path):
    make(tmp_path / "art", "one")
    (tmp_path / "twin").write_text("one")
    (tmp_path / "art" / "a.txt").unlink()
    (tmp_path / "art" / "a.txt").symlink_to(tmp_path / "twin")
    with pytest.raises(ArtefactError, match="is a link"):
        verify_directory(tmp_path / "art")
    with pytest.raises(ArtefactError, match="plain files only"), directory(tmp_path / "new") as building:
        (building / "a.txt").symlink_to(tmp_path / "twin")
    assert not (tmp_path / "new").exists()


def test_somebodys_own_files_are_never_replaced(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    make(photos, "into an empty folder")
    (photos / "holiday.jpg").write_text("precious")
    for match, prepare in (
        ("somebody added .holiday.jpg", lambda: None),
        ("was not written by thisness", (photos / "COMPLETE.json").unlink),
    ):
        prepare()
        entered = False
        with pytest.raises(ArtefactError, match=match), directory(photos):
            entered = True
        assert not entered  # refused before any work is done
    assert (photos / "holiday.jpg").read_text() == "precious"
    make(photos, "asked for", overwrite=True)
    assert content(photos) == "asked for" and not (photos / "holiday.jpg").exists()


def test_files_added_while_the_new_folder_is_built_are_kept(tmp_path):
    make(tmp_path / "art", "one")
    with pytest.raises(ArtefactError, match="somebody added .note.txt"), directory(tmp_path / "art") as building:
        write_text(building / "a.txt", "two")
        (tmp_path / "art" / "note.txt").write_text("precious")
    assert (tmp_path / "art" / "note.txt").read_text() == "precious" and content(tmp_path / "art") == "one"


def test_files_and_links_in_the_way(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path)
    for name, kind in (("file", "a file"), ("link", "a link")):
        with (
            pytest.raises(ArtefactError, match=f"is {kind}: name a folder"),
            directory(tmp_path / name, overwrite=True),
        ):
            pytest.fail("entered")
