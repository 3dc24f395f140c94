"""Reports. Oracles: an HTML parser that sees every element and attribute, numbers that follow by hand from the rows,
the statistics themselves, a Markdown table's count of cells; text that tries to break out."""

import base64
import hashlib
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from evaluation.synthetic import HOSTILE, IDENTITIES, run, subjects
from PIL import Image

from thisness import cli
from thisness.errors import ConfigurationError, UserError
from thisness.evaluation.report import gather, write_report
from thisness.evaluation.report.kinds import axis, kind_of
from thisness.evaluation.report.text import escaped, escaped_markdown, fenced, number, plain
from thisness.evaluation.report.thumbnails import Thumbnails
from thisness.evaluation.statistics import paired

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Everything in a page: elements with their attributes, text by element; nesting must be right."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.texts.append((self.open[-1] if self.open else "", text))

    def said(self, tag=None):
        return " ".join(text for inside, text in self.texts if tag in (None, inside))


def written(fake, folder, **more):
    paths = {path.name: path for path in write_report(fake, folder / "report", **more)}
    return Page(paths["report.html"].read_text()), paths["report.md"].read_text(), json.loads(
        paths["report.json"].read_text()
    )  # fmt: skip


def two(folder, **more):
    """Ten subjects: "good" is better than "plain" on both axes everywhere, "odd" only follows better."""
    values = {"plain": subjects(10, 0.5, 0.5), "good": subjects(10, 0.6, 0.7), "odd": subjects(10, 0.9, 0.4)}
    return run(folder, values, **more)


def test_the_numbers_are_those_of_the_rows(tmp_path):
    fake = two(tmp_path)
    page, text, data = written(fake, tmp_path)
    assert data["axes"] == {"x": "clip-t", "y": "dino-i"}
    found = {each["recipe"]: each for each in data["recipes"]}
    assert found["good"]["values"]["clip-t"]["mean"] == pytest.approx(0.605)
    assert found["good"]["values"]["dino-i"]["mean"] == pytest.approx(0.7 + 0.0045 - 0.005)
    assert {name for name, each in found.items() if each["front"]} == {"good", "odd"}
    assert "0.605" in page.said("td") and "| good | 40 | 0 | yes | 0.700" in text
    pair = next(each for each in data["pairs"] if (each["first"], each["metric"]) == ("plain", "dino-i"))
    grouped = [[row for row in fake.scored if row.recipe == name] for name in ("plain", "good")]
    assert pair["p"] == paired(*grouped, "dino-i").p == pytest.approx(2 / 2**10)
    assert (pair["second"], pair["wins"], pair["losses"], pair["higher"]) == ("good", 0, 40, "good")
    assert pair["p_corrected"] == pytest.approx(3 * 2 / 2**10)  # three pairs in one metric
    assert [each["family"] for each in data["families"]] == ["pose", "background"]
    assert data["notes"] == [] and data["failures"] == []


def test_a_page_needs_and_runs_nothing_from_outside(tmp_path):
    page, _, _ = written(two(tmp_path, sentence=HOSTILE, failed={("odd", "toy-1"): HOSTILE}), tmp_path)
    text = (tmp_path / "report" / "report.html").read_text()
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    styles = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert len(scripts) == len(styles) == 1
    for inside in scripts + styles:
        assert base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode() in policy
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "base", "form")
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
        assert attributes.get("src", "data:image/jpeg;base64,").startswith("data:image/jpeg;base64,")
        assert attributes.get("href", "#").startswith("#")
    assert (tmp_path / "report" / "report.html").stat().st_size < 20e6


def test_hostile_text_is_shown_and_does_nothing(tmp_path):
    labels = {"<img src=x onerror=alert(1)>": subjects(6, 0.5, 0.5), "a|b": subjects(6, 0.6, 0.7)}
    fake = run(tmp_path, labels, sentence=HOSTILE, failed={("a|b", "toy-1"): HOSTILE}, environment={HOSTILE: HOSTILE})
    page, text, data = written(fake, tmp_path)
    assert "<script>alert('x')</script>" in page.said() and "<img src=x onerror=alert(1)>" in page.said("td")
    assert not any("onerror" in attributes for _, attributes in page.elements)
    assert "\u202e" not in page.said() and "\x07" not in page.said()
    assert data["failures"][0]["failure"] == HOSTILE  # data stays what it was
    prose = re.sub(r"^(`{3,}).*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert "<script" not in prose and "![](" not in prose and "\n# heading" not in prose and "<img" not in prose
    for table in re.findall(r"(?:^\|.*\n?)+", prose, re.MULTILINE):
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(cells) == 1, table


def test_pictures_are_the_rows_own(tmp_path):
    page, _, _ = written(two(tmp_path), tmp_path)
    shown = [a for tag, a in page.elements if tag == "img" and "by good" in a["alt"]]
    assert shown
    for each in shown:
        image = Image.open(io.BytesIO(base64.b64decode(each["src"].partition(",")[2])))
        red, green, blue = image.convert("RGB").getpixel((5, 5))
        assert abs(red - 40) < 6 and abs(green - 100) < 6 and abs(blue - 100) < 6  # what `run` painted for recipe 1
    assert sum(a["alt"].startswith("reference of") for tag, a in page.elements if tag == "img") >= 6


def test_what_all_recipes_miss_is_told_once(tmp_path):
    values = {name: subjects(3, 0.3, 0.4) for name in "abcde"}
    missing = {(name, "toy-0") for name in "abcd"} | {("e", "toy-0"), ("e", "toy-1")}
    notes = gather(run(tmp_path, values, missing=missing)).notes
    assert [note for note in notes if "no value" in note] == [
        "each of 4 recipes: 4 pictures have no value of dino-i; means leave them out.",
        "e: 8 pictures have no value of dino-i; means leave them out.",
    ]


def test_failures_and_missing_values_are_counted_and_told(tmp_path):
    fake = two(tmp_path, failed={("odd", "toy-3"): "out of memory"}, missing={("plain", "toy-1")}, planned=125)
    page, text, data = written(fake, tmp_path)
    notes = " ".join(data["notes"])
    assert "odd: 4 of 40 pictures could not be made" in notes
    assert "plain: 4 pictures have no value of dino-i" in notes
    assert "5 of 125 pictures are not there yet" in notes
    for said in (page.said(), text):
        assert "out of memory" in said and "not finished" in said
    odd = next(each for each in data["recipes"] if each["recipe"] == "odd")
    assert (odd["rows"], odd["failed"], odd["values"]["dino-i"]["units"]) == (40, 4, 9)
    pair = next(p for p in data["pairs"] if (p["first"], p["second"], p["metric"]) == ("plain", "odd", "dino-i"))
    assert (pair["pairs"], pair["alone"]) == (32, 8)


@pytest.mark.parametrize("recipes", [1, 2])
def test_one_subject_has_no_intervals_and_no_verdicts(tmp_path, recipes):
    values = {f"r{n}": subjects(1, 0.5 + n / 10, 0.5) for n in range(recipes)}
    page, text, data = written(run(tmp_path, values), tmp_path)
    assert any(note.startswith("One subject only") for note in data["notes"])
    assert all(each["values"]["clip-t"]["low"] is None for each in data["recipes"])
    assert not any(pair["higher"] for pair in data["pairs"]) and len(data["pairs"]) == 2 * (recipes - 1)
    assert ("There is one recipe only." in text) == (recipes == 1) and "0.505" in page.said("td")


def test_it_says_where_nothing_can_be_significant(tmp_path):
    values = {name: subjects(5, 0.5 + n / 10, 0.5 + n / 10) for n, name in enumerate("abcd")}
    report = gather(run(tmp_path, values))
    assert "no difference can be significant" in report.notes[0] and "(at least 8)" in report.notes[0]
    assert not any(pair.higher for pair in report.pairs)
    values = {name: subjects(8, 0.5 + n / 10, 0.5 + n / 10) for n, name in enumerate("abcd")}
    report = gather(run(tmp_path, values))
    assert report.notes == () and all(pair.higher == pair.second for pair in report.pairs)


def test_lower_is_better_where_the_metric_says_so(tmp_path):
    values = {"copies": subjects(6, 0.5, 0.9), "does-not": subjects(6, 0.5, 0.2)}
    page, text, data = written(run(tmp_path, values), tmp_path, y="copy")
    assert [each["recipe"] for each in data["recipes"] if each["front"]] == ["does-not"]
    assert "copy (up, lower is better)" in page.said("th") and "copy (lower is better)" in text
    assert "Best identity (copy): does-not" in page.said("li")


def test_best_and_worst_are_by_both_measures(tmp_path):
    values = {"a": {"up": (0.9, 0.9), "down": (0.1, 0.1), "odd": (0.95, 0.05)}}
    report = gather(run(tmp_path, values))
    assert [row.subject for row in report.examples[0].best][:2] == ["up", "up"]
    assert [row.subject for row in report.examples[0].worst][:2] == ["down", "down"]
    every = report.examples[0].best + report.examples[0].worst
    assert len({row.id for row in every}) == len(every)


def test_side_by_side_rows_are_of_one_key(tmp_path):
    report = gather(two(tmp_path))
    assert report.gallery and {line[0].family for line in report.gallery} == {"pose", "background"}
    for line in report.gallery:
        assert len({(row.subject, row.case, row.seed) for row in line}) == 1
        assert [row.recipe for row in line] == ["plain", "good", "odd"]


def test_unreadable_pictures_are_told_and_do_not_stop_it(tmp_path):
    fake = two(tmp_path)
    for row in fake.scored:
        row.image.write_bytes(b"no picture")
    page, _, _ = written(fake, tmp_path)
    assert "could not be read" in page.said("li") and not any("by good" in a.get("alt", "") for _, a in page.elements)


def test_a_page_stays_small(tmp_path):
    Image.effect_noise((256, 256), 90).convert("RGB").save(tmp_path / "noise.png")
    room = Thumbnails(budget=100_000)
    found = [room.uri(tmp_path / "noise.png", 256) for _ in range(12)]
    assert sum(map(len, found)) <= 100_000 and 0 < found.count("") == room.left_out < 12


def test_figures_agree_with_their_svg(tmp_path):
    """Each dot of the picture is where the page's vector drawing has it."""
    written(two(tmp_path), tmp_path)
    text = (tmp_path / "report" / "report.html").read_text()
    drawing = re.search(r"<figure>(<svg.*?</svg>)", text, re.DOTALL)[1]
    image = Image.open(tmp_path / "report" / "headline.png")
    dots = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="10" fill="(#\w+)"', drawing)
    assert len(dots) == 6  # three in the plot, three in the legend
    for x, y, fill in dots:
        at = image.getpixel((round(float(x) * 2), round((float(y) - 8) * 2)))  # above the number in it
        assert at == tuple(int(fill[n : n + 2], 16) for n in (1, 3, 5))


def test_which_metrics_decide():
    names = list(IDENTITIES)
    assert axis("prompt", names, IDENTITIES) == "clip-t" and axis("identity", names, IDENTITIES) == "dino-i"
    assert axis("identity", ["clip-t", "clip-i"], {}) == "clip-i"
    assert axis("identity", ["clip-t"], {}) == "clip-t"
    for name, kind in (("oracle:follow", "prompt"), ("openai:cp", "identity"), ("tea/clip-t-context", "prompt"),
                       ("dino-i:encoder=a/b", "identity"), ("diversity", ""), ("oracle:pose", "")):  # fmt: skip
        assert kind_of(name, {}) == kind, name
    assert kind_of("mine", {"metric": "dino-i"}) == "identity"


def test_text_is_made_harmless():
    assert plain("a\n\tb \u202e\x00c") == "a b \ufffd\ufffdc" and plain("\ud800") == "\ufffd"
    assert escaped("<&\"'>") == "&lt;&amp;&quot;&#x27;&gt;"
    assert escaped_markdown("a|b *c* <d> [e](f)") == r"a\|b \*c\* &lt;d&gt; \[e\](f)"
    assert escaped_markdown("# a-b. c") == r"\# a-b. c" and escaped_markdown("1. a") == r"1\. a"
    assert escaped_markdown("see http://evil and WWW.evil") == r"see http\://evil and WWW\.evil"
    assert fenced("x ```` y").startswith("`````\n") and number(-0.0001) == "0.000" and number(None) == "n/a"


def test_wrong_requests(tmp_path, refused):
    fake = two(tmp_path)
    with pytest.raises(ConfigurationError, match=r"--y 'dino': the run has no such metric \(did you mean 'dino-i'\?\)"):
        write_report(fake, tmp_path / "r", y="dino")
    with pytest.raises(UserError, match="no results yet"):
        write_report(run(tmp_path, {}), tmp_path / "r")
    bare = run(tmp_path, {"a": {"s": (0.1, 0.2)}}, failed={("a", "s"): "broke"})
    with pytest.raises(UserError, match="no picture of the run has been scored"):
        write_report(bare, tmp_path / "r")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        write_report(fake, tmp_path / "file")
    assert not (tmp_path / "r").exists()
    assert "is not a run" in refused("bench", "report", tmp_path)
    assert cli.run(["bench", "report", "--help"]) == 0


def test_reports_do_not_load_torch():
    code = "import sys, thisness.evaluation.report, thisness.evaluation.statistics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_recipes_that_were_asked_less_are_named(tmp_path):
    whole = two(tmp_path)
    assert "asked the same" not in written(whole, tmp_path / "whole")[1]
    whole.scored = tuple(row for row in whole.scored if row.recipe != "odd" or row.family == "pose")
    text = written(whole, tmp_path / "part")[1]
    assert "Not all recipes were asked the same: of 2 sentences odd 1." in text
