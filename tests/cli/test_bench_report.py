"""`thisness bench report` on a run's folder as the runner writes it. Oracle: numbers by hand from the written rows."""

import hashlib
import json

import pytest
from evaluation.synthetic import IDENTITIES, picture

from thisness import cli
from thisness.evaluation.results import FORMAT, VERSION, identity_hash, line_of, read_run


@pytest.fixture
def run_folder(tmp_path):
    """Two recipes, three subjects, one seed; one failure; the last picture not made yet."""
    folder = written(tmp_path / "run")
    assert len(read_run(folder).scored) == 5  # the format is as this test believes
    return folder


def written(folder, recipes=("base", "learned")):
    plan, lines = [], []
    hashes = {name: identity_hash(each) for name, each in IDENTITIES.items()}
    for recipe in recipes:
        same = {"base": 0.4, "learned": 0.8}[recipe]
        for number in range(3):
            name = f"{recipe}-{number}"
            about = {"recipe": recipe, "subject": f"toy-{number}", "case": "c", "family": "pose", "seed": 0}
            plan.append({"id": name, "role": "picture", "sentence": "a toy sleeping", **about})
            if name == "base-2":
                lines.append({"kind": "failure", "id": name, "reason": "out of memory"})
                continue
            if name == "learned-2":
                continue
            (folder / "images").mkdir(parents=True, exist_ok=True)
            picture(folder / "images" / f"{name}.png")
            values = {"clip-t": 0.5, "clip-i": 0.5, "dino-i": same + 0.1 * number, "copy": 0.1}
            lines.append({"kind": "picture", "id": name, "sha256": name, "seconds": 2.0})
            lines.append({"kind": "score", "id": name, "image": name, "of": "", "identities": hashes, "values": values})
            reference = folder / "references" / f"toy-{number}"
            reference.mkdir(parents=True, exist_ok=True)
            picture(reference / "00.png", "blue")
    text = "".join(json.dumps(row) + "\n" for row in plan)
    about = {
        "format": FORMAT,
        "version": VERSION,
        "benchmark": {"name": "toys", "subjects": {f"toy-{n}": {"pictures": 1} for n in range(3)}},
        "recipes": {recipe: {"text": recipe} for recipe in recipes},
        "base": {"name": "tiny"},
        "metrics": IDENTITIES,
        "environment": {"threads": 1},
        "command": "thisness bench run toys",
        "plan": hashlib.sha256(text.encode()).hexdigest(),
    }
    (folder / "plan.jsonl").write_text(text)
    (folder / "run.json").write_text(json.dumps(about))
    (folder / "results.jsonl").write_bytes(b"".join(line_of(line) for line in lines))
    return folder


def test_a_folder_becomes_pages(run_folder, capsys):
    assert cli.run(["bench", "report", str(run_folder)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == str(run_folder / "report" / "report.html")
    data = json.loads((run_folder / "report" / "report.json").read_text())
    found = {each["recipe"]: each for each in data["recipes"]}
    assert found["base"]["values"]["dino-i"]["mean"] == pytest.approx(0.45)
    assert found["learned"]["values"]["dino-i"]["mean"] == pytest.approx(0.85)
    assert found["base"]["failed"] == 1 and found["base"]["seconds"] == 2.0
    assert "1 of 6 pictures are not there yet" in data["notes"][0]
    page = (run_folder / "report" / "report.html").read_text()
    assert "out of memory" in page and "thisness bench run toys" in page and str(run_folder) not in page


def test_axes_and_folder_can_be_chosen(run_folder, tmp_path, refused):
    words = ["bench", "report", str(run_folder), "--x", "clip-i", "--y", "clip-t", "--out", str(tmp_path / "pages")]
    assert cli.run(words) == 0
    assert json.loads((tmp_path / "pages" / "report.json").read_text())["axes"] == {"x": "clip-i", "y": "clip-t"}
    assert "did you mean 'clip-t'" in refused("bench", "report", run_folder, "--x", "clip-tt")
    assert "is not a run" in refused("bench", "report", tmp_path)
