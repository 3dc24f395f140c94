"""Lines with checksums, and reading a run. Oracle: what was appended; damage done by hand."""

from __future__ import annotations

import errno
import json
import os

import pytest

from thisness.errors import ArtefactError, UserError
from thisness.evaluation import results
from thisness.evaluation.results import ResultsFile, State, check_out, line_of, read_entries, read_run

ENTRIES = [
    {"kind": "picture", "id": "a", "sha256": "1", "seconds": 0.1},
    {"kind": "failure", "id": "b", "reason": 'no "word" <é>\u2028'},
    {"kind": "score", "id": "a", "image": "1", "of": "",
     "values": {"m": 0.1 + 0.2, "n": None}, "identities": {"m": "i"}}
]  # fmt: skip


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results.jsonl"


def written(path, entries=ENTRIES):
    file = ResultsFile(path)
    file.append(entries)
    file.close()
    return path.read_bytes()


def test_what_was_appended_is_read_again(path):
    written(path)
    assert read_entries(path) == (ENTRIES, 0)
    again = ResultsFile(path)
    assert again.entries == ENTRIES and again.damaged == 0
    again.close()
    assert path.read_bytes() == b"".join(map(line_of, ENTRIES)), "nothing is rewritten without need"


def test_every_possible_tear_loses_the_torn_line_only(path):
    whole = written(path)
    ends = [number + 1 for number, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        complete = sum(end <= cut for end in ends) + (cut + 1 in ends)  # a line that lacks its end alone is whole
        file = ResultsFile(path)
        assert file.entries == ENTRIES[:complete]
        file.append([{"kind": "failure", "id": "c", "reason": "after"}])
        file.close()
        assert read_entries(path) == ([*ENTRIES[:complete], {"kind": "failure", "id": "c", "reason": "after"}], 0)


def test_any_changed_byte_is_noticed(path):
    whole = written(path)
    for place in range(0, len(whole) - 1, 3):
        if whole[place] in b"\n ":
            continue
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        entries, damaged = read_entries(path)
        assert damaged >= 1 and all(entry in ENTRIES for entry in entries), whole[place - 20 : place + 20]


def test_of_several_entries_on_one_thing_the_last_counts(path):
    later = {"kind": "picture", "id": "b", "sha256": "9", "seconds": 1.0}
    written(path, [*ENTRIES, later, later])
    file = ResultsFile(path)
    assert file.entries == [ENTRIES[0], ENTRIES[2], later]
    file.close()
    assert read_entries(path) == ([ENTRIES[0], ENTRIES[2], later], 0)


def test_a_full_disk_leaves_whole_lines(path, monkeypatch):
    file = ResultsFile(path)
    file.append(ENTRIES[:1])
    write = os.write
    monkeypatch.setattr(results.os, "write", lambda handle, data: write(handle, data[:10]))
    with pytest.raises(OSError) as raised:
        file.append(ENTRIES[1:])
    assert raised.value.errno == errno.ENOSPC
    monkeypatch.undo()
    file.close()
    assert path.read_bytes() == line_of(ENTRIES[0])


def test_values_belong_to_a_picture_and_to_an_identity():
    state = State(ENTRIES)
    assert state.values("a", {"m": "i"}) == {"m": 0.1 + 0.2}
    assert state.values("a", {"m": "another"}) == {}, "scored by another model of the same name"
    assert state.values("a", {"m": "i"}, of="y") == {}, "its group was another then"
    state.add({"kind": "picture", "id": "a", "sha256": "2", "seconds": 0.1})
    assert state.values("a", {"m": "i"}) == {}, "the picture is another by now"


@pytest.mark.parametrize(
    "content, says",
    [
        (None, "is not a run"),
        ("[]", "does not describe a run"),
        ('{"format": "thisness-run", "version": 99}', "of version 99"),
        ('{"format": "thisness-run", "version": 1}', "is damaged"),
        ("{", "not readable JSON"),
    ],
)
def test_what_is_no_run_is_said(tmp_path, content, says):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(ArtefactError, match=says):
        read_run(tmp_path)


def test_subjects_of_a_run_cannot_lead_out_of_it(tmp_path):
    about = {
        "format": "thisness-run", "version": 1, "benchmark": {"subjects": {"../../etc": {"pictures": 1}}},
        "recipes": {}, "base": {}, "metrics": {}, "environment": {}, "command": "", "plan": results.sha256(b""),
    }  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(about))
    (tmp_path / "plan.jsonl").write_text("")
    with pytest.raises(ArtefactError, match="not a plain relative path"):
        read_run(tmp_path)


def test_somebody_elses_folder_is_refused(tmp_path):
    check_out(tmp_path / "new")
    check_out(tmp_path)
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="holds other things"):
        check_out(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        check_out(tmp_path / "thesis.tex")


def test_reading_a_run_needs_no_torch():
    import subprocess
    import sys

    code = "import sys; import thisness.evaluation.results; sys.exit('torch' in sys.modules)"
    paths = os.pathsep.join(path for path in sys.path if path)
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths}).returncode == 0
