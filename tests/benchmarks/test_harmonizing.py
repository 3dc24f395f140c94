"""The experiment on Harmonizing. Oracles: planted numbers whose verdicts follow by hand, the spec's table of rows."""

from types import SimpleNamespace

import harmonizing
import harmonizing_cost
import harmonizing_looks as looks
import pytest
from evaluation.synthetic import picture, row

from thisness.evaluation.recipes import parse_recipes, resolved, split_recipes
from thisness.files import write_json

TOYS = [f"toy-{n}" for n in range(6)]
PLAIN = {"oracle:pose": 0.3, "oracle:copied-pose": 0.6, "clip-t": 0.30, "dino-i": 0.60, "clip-i": 0.5}
SHIFTS = {
    "ip-adapter": {},
    "ip-adapter-orchestrate": {"oracle:pose": 0.3, "oracle:copied-pose": -0.4, "clip-t": 0.05, "dino-i": -0.05},
    "ip-adapter-swap": {"dino-i": -0.1},
    "ip-adapter-both": {"oracle:pose": 0.3, "clip-t": 0.05, "dino-i": 0.0},
    "ip-adapter-random": {"oracle:pose": 0.3},
    "ip-adapter-shrink": {},
    "ip-adapter-text": {"clip-t": 0.1},
    "ip-adapter-visual": {"clip-i": 0.0},
    "ip-adapter-caption": {"clip-t": 0.2},
    "base": {"dino-i": -0.3},
}


def planted(tmp_path, shifts=SHIFTS):
    rows = []
    for label, shift in shifts.items():
        for n, toy in enumerate(TOYS):
            for seed in (0, 1):
                moved = sum(map(ord, label + toy)) % 5 * 1e-3 * (seed - 0.5)
                values = {name: value + shift.get(name, 0.0) + 0.01 * n + moved for name, value in PLAIN.items()}
                image = picture(tmp_path / f"{label}-{toy}-{seed}.png", "red")
                rows.append(row(label, toy, f"{toy}-pose", seed, values, image=image))
    references = {toy: (picture(tmp_path / f"{toy}.png", "blue"),) for toy in TOYS}
    return SimpleNamespace(scored=tuple(rows), references=references, benchmark={"seeds": [0, 1]})


@pytest.fixture
def written(tmp_path, monkeypatch):
    root = tmp_path / "runs"
    run = planted(tmp_path)
    monkeypatch.setattr(harmonizing, "read", lambda folder: run if folder.name == "main" else None)
    (root / "looks" / "bias-ip-adapter" / "host").mkdir(parents=True)
    share = {toy: {"host": {"subject": 0.2, "pose": 0.3}, "orchestrate": {"subject": 0.4, "pose": 0.3}} for toy in TOYS}
    write_json(root / "looks" / "concentration-ip-adapter.json", share)
    bias = {
        "verdict": "pose bias", "sentence": "Pose bias: so.", "seeds": {"generated": [0, 1]},
        "subject": {"name": "toy-0"}, "peaks": [{"share": 0.75, "distance_in_spreads": 0.5}],
    }  # fmt: skip
    write_json(root / "looks" / "bias-ip-adapter" / "host" / "pose-bias.json", bias)
    picture(root / "looks" / "bias-ip-adapter" / "host" / "pose-bias.png")
    target = tmp_path / "page" / "harmonizing.md"
    target.parent.mkdir()
    harmonizing.page(root, target)
    return target


def verdict(text, says):
    (found,) = [each for each in text.splitlines() if each.startswith(f"| {says}")]
    return found.rsplit("**", 2)[1]


def test_verdicts_follow_from_the_planted_numbers(written):
    text = written.read_text()
    assert verdict(text, "orchestration follows the text better") == "seen"
    assert verdict(text, "orchestration gives the asked pose") == "seen"
    assert verdict(text, "orchestration copies the pose less") == "seen"
    same = [each for each in text.splitlines() if each.startswith("| the same, whole pictures")]
    assert ["opposite" if "swap" in each else "seen" for each in same] == [each.rsplit("**", 2)[1] for each in same]
    assert verdict(text, "the visual embedding costs text") == "seen"
    assert verdict(text, "the text costs identity") == "not seen"
    assert verdict(text, "the basis must be the sentence, not a caption") == "opposite"
    assert verdict(text, "orchestration is more than random directions: pose") == "not seen"
    assert verdict(text, "orchestration is more than a shorter embedding: pose") == "seen"
    assert verdict(text, "orchestration is more than a shorter embedding: identity kept") == "opposite"
    assert verdict(text, "orchestration gathers the subject word's attention on the subject (x2.00") == "seen"
    assert verdict(text, "orchestration gathers the pose word's attention on the subject (x1.00") == "not seen"
    assert verdict(text, "the host keeps the reference's pose") == "seen"
    assert "sentences without a pose" not in text, "what was not run is not claimed"


def test_every_picture_that_the_page_shows_is_there(written):
    named = [part.split(")")[0] for part in written.read_text().split("](")[1:]]
    named = [name for name in named if name.endswith((".png", ".webp"))]
    assert len(named) >= 3 and all((written.parent / name).is_file() for name in named)


def test_masked_values_are_taken_from_their_file(tmp_path):
    run = planted(tmp_path, {"ip-adapter": {}})
    write_json(tmp_path / "masked.json", {run.scored[0].id: {"m-dino-i": 0.25}})
    found = looks.masked(run.scored, tmp_path / "masked.json", None)
    assert found[0].values["m-dino-i"] == 0.25 and "m-dino-i" not in found[1].values
    assert found[0].values["dino-i"] == run.scored[0].values["dino-i"]


def test_recipes_are_ones_that_can_be_run(tmp_path):
    """All labels are different, all settings exist; weights of one's own go to the method that has them."""
    (tmp_path / "elite").mkdir()
    for host in harmonizing.HOSTS:
        both = harmonizing.recipes(host, tmp_path), harmonizing.extras(host, tmp_path)
        for asked in both:
            texts = [f"{label}={recipe}" for label, recipe in asked.items()]
            assert [resolved(each).label for each in parse_recipes(split_recipes([";".join(texts)]))] == list(asked)
            assert all(("weights=" in recipe) == (host == "elite") for recipe in asked.values())
        assert {f"{host}-{name}" for name in ("swap", "both", "random", "shrink", "text", "visual")} <= both[0].keys()
        labels = {
            *both[0],
            f"{host}-caption",
            f"{host}-described",
            f"free:{host}",
            f"free:{host}-both",
            f"{host}-weaker",
        }
        assert {side for claim in harmonizing.claims(host) for side in (claim.first, claim.second)} <= labels


def test_captions_say_what_the_reference_shows():
    from thisness.playroom.subjects import held_out_identity, reference_scenes

    said, scene = harmonizing.captions("rufus"), reference_scenes(0)[0]
    assert said["described"] == f"a {held_out_identity(0).noun} {scene.subject.pose}"
    assert said["caption"].startswith(said["described"]) and scene.background in said["caption"]


def test_rows_by_the_spec_at_fifty_steps():
    """Table 6.3: 100 rows, 170 with the second branch until 0.7, 100 + 70/11 for each of eleven."""
    rows = harmonizing_cost.expected_rows(50, 0.7)
    assert (rows["host"], rows["swap"]) == (100, 170)
    assert rows["eleven sharing"] / 11 == pytest.approx(100 + 70 / 11)


def test_rows_are_counted_and_ratios_taken_in_each_round(base_folder):
    import torch

    from thisness.adapters import EMBEDDINGS
    from thisness.bases import load_base
    from thisness.concept import Concept
    from thisness.sampling import SamplingOptions
    from thisness.subject import Subject

    base = load_base(str(base_folder))
    image = picture_of(16)
    width = base.text_encoder.get_input_embeddings().embedding_dim
    rows = {"text_encoder": torch.randn(1, width, generator=torch.Generator().manual_seed(0))}
    toy = Subject("rex", "dog", (image,), (None,), ("a.png",))
    concept = Concept.create("textual-inversion", toy, base, word="<rex>", tokens=["<rex>"], tensors={EMBEDDINGS: rows})
    seconds = {name: [1.0, 4.0] for name in harmonizing_cost.expected_rows(4, 0.7)}
    seconds |= {"swap": [1.5, 6.0], "eleven sharing": [1.3, 5.2]}
    options = SamplingOptions(steps=4, guidance=3.0)
    table = {each["what"]: each for each in harmonizing_cost.measured(base, concept, options, 1, seconds)}
    assert all(each["rows"] == each["by the spec"] for each in table.values())
    assert table["swap"]["ratio"] == 1.5 and table["swap"]["met"] == "yes"
    assert table["eleven sharing"]["met"] == "no" and table["orchestrate"]["met"] == "yes"


def picture_of(side):
    from PIL import Image

    return Image.new("RGB", (side, side), "red")


def test_on_a_copy_of_ones_own(tmp_path):
    """Another benchmark: no truth about poses, so claims by CLIP and identity alone, from real pictures."""
    from thisness.evaluation.benchmarks import playroom

    copy = tmp_path / "copy"
    for number, name in enumerate(("one", "two")):
        (copy / name).mkdir(parents=True)
        toy = playroom.toy(number).load()
        toy.images[0].save(copy / name / "0.png")
    (copy / "subjects.csv").write_text("name,noun,live\none,dog,yes\ntwo,cat,yes\n")
    (copy / "prompts.txt").write_text("pose | a {subject} sleeping\n")
    words = ["--benchmark", "folder", "--folder", str(copy), "--hosts", "ip-adapter", "--learned", "none"]
    words += ["--seeds", "0", "--sampling", "steps=1", "--metrics", "thisness", "--cost-repeats", "0"]
    words += ["--workers", "1", "--runs", str(tmp_path / "runs"), "--page", str(tmp_path / "page" / "own.md")]
    (tmp_path / "page").mkdir()
    assert harmonizing.main(words) == 0
    text = (tmp_path / "page" / "own.md").read_text()
    assert text.startswith("# Harmonizing on folder") and "2 subjects, 1 seed, 20 pictures" in text
    assert "oracle:" not in text and "Playroom" not in text.replace("playroom-", "")
    assert verdict(text, "orchestration follows the text better") == "no verdict", "two subjects are too few"
    assert (tmp_path / "page" / "own" / "ip-adapter-pictures.webp").is_file()
