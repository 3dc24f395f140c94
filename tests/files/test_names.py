"""Oracle: no name leads out of its folder, and none is a device of some system (SAFETY 6)."""

import pytest

from thisness.errors import ArtefactError, UserError
from thisness.files import checked_name, inside, listed, safe_name


@pytest.mark.parametrize("name", ["rufus", "a", "0-1", "x" * 64])
def test_good_names(name):
    assert checked_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "Rufus", "-a", "a b", "a/b", "..", "/etc", "a.b", "é", "x" * 65, "con", "nul", "com1", "lpt9", "a\n", "a\0"],
)
def test_bad_names_are_refused_with_a_proposal(name):
    with pytest.raises(UserError, match="concept name .*(write '|for instance)") as caught:
        checked_name(name, "concept name")
    assert "\n" not in str(caught.value)


def test_proposals_are_valid():
    for text in ("My Dog!", "../../etc/passwd", "CON", "Ünïcode 5", "x" * 200, "a-" * 40):
        assert checked_name(safe_name(text, "subject"))
    assert safe_name("My Dog!") == "my-dog"
    assert safe_name("!!!", "subject") == "subject"


def test_members_stay_inside(tmp_path):
    assert inside(tmp_path, "a/b.json") == tmp_path / "a" / "b.json"


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/../../x",
        "/etc/passwd",
        "a//b",
        "a/",
        "C:\\x",
        "c:x",
        "a\\..\\x",
        "a\0b",
        "aux",
        "x/nul.txt",
    ],
)
def test_members_that_would_leave_are_refused(tmp_path, name):
    with pytest.raises(ArtefactError, match="not a plain relative path"):
        inside(tmp_path, name)


def test_links_are_refused_wherever_they_stand(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("x")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "outside")
    (folder / "file").symlink_to(tmp_path / "outside" / "secret")
    for name in ("link/secret", "file"):
        with pytest.raises(ArtefactError, match="is a link"):
            inside(folder, name)


def test_long_lists_are_cut_and_counted():
    assert listed(["a", "b"]) == "a, b"
    assert listed((str(n) for n in range(9)), 3) == "0, 1, 2 and 6 more"
