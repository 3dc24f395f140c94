"""Oracles: a small server in this process that counts, checks what it is sent, and answers as told: well, too busy,
broken, with garbage, with other JSON, or not at all."""

import base64
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from evaluation.judge_server import KEY, chat, fair, serving
from evaluation.judged_items import items
from PIL import Image

from thisness.errors import ConfigurationError, UserError
from thisness.evaluation.judges import announce, endpoint, make_judge


@pytest.fixture
def server(monkeypatch):
    with serving(monkeypatch) as running:
        yield running


@pytest.fixture
def judge(tmp_path):
    said: list[str] = []

    def make(settings="columns=pf,passes=1", **options):
        columns = make_judge(f"openai:{settings}", answers=tmp_path / "answers.jsonl", say=said.append, **options)
        return columns if len(columns) > 1 else columns[0]

    make.said, make.file = said, tmp_path / "answers.jsonl"
    return make


def test_what_is_sent_is_the_protocol(server, judge):
    cp, pf = judge("concurrency=3")
    some = items(2)
    values = [cp.score(some), pf.score(some)]
    assert len(server.bodies) == 2 * 2 * 3, "items x columns x passes, the first reference alone"
    assert judge.said[0] == "openai: 12 calls (0 of 12 ratings answered before)"
    path, headers = server.headers[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
    assert server.most <= 3
    body = next(b for b in server.bodies if len(b["messages"][2]["content"]) == 4)
    assert (body["model"], body["temperature"]) == ("tiny-judge", 1.0)
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]
    shown = [part for part in body["messages"][2]["content"] if part["type"] == "image_url"]
    assert [part["image_url"]["detail"] for part in shown] == ["high", "high"]
    data = base64.b64decode(shown[0]["image_url"]["url"].removeprefix("data:image/jpeg;base64,"))
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.size) == ("JPEG", (512, 512)) and b"private" not in data
    assert image.getpixel((256, 256)) == pytest.approx((200, 55, 90), abs=4), "the reference comes first"
    seeds = {b["seed"] for b in server.bodies}
    assert len(seeds) == 12, "passes are independent"
    for column, of in ((cp, values[0]), (pf, values[1])):
        sent = [b for b in server.bodies if (len(b["messages"][2]["content"]) == 4) == (column is cp)]
        assert sum(of) == pytest.approx(sum(fair(b) for b in sent) / 4 / 3), "mean over passes / 4"
    assert cp.failures == pf.failures == []
    assert json.loads(json.dumps(cp.identity)) == cp.identity and cp.identity["passes"] == 3
    assert cp.identity["protocol"]["variant"] == "full"


def test_nothing_secret_is_kept_or_shown(server, judge, capfd):
    server.plan = lambda body, time: (
        400,
        json.dumps({"error": {"message": f"bad {KEY} at {server.url}\n\x1b!"}}).encode(),
        {},
    )
    column = judge()
    assert column.score(items(2)) == [0.0, 0.0]
    out = capfd.readouterr()
    everything = judge.file.read_text() + "".join(judge.said) + out.out + out.err + json.dumps(column.identity)
    assert KEY not in everything and str(server.http.server_port) not in everything and "\x1b" not in everything
    assert "the endpoint says 400: bad ... at ..." in everything


def test_answered_once_is_never_asked_again(server, judge):
    first = judge().score(items(5))
    assert judge().score(items(5)) == first and len(server.bodies) == 5
    assert judge().score(items(6))[:5] == first and len(server.bodies) == 6
    assert judge.said[-1] == "openai: 1 calls (5 of 6 ratings answered before)"
    judge("columns=pf,passes=2").score(items(5))
    assert len(server.bodies) == 11, "a further pass is asked, the first is known"
    judge("columns=pf,passes=1,model=other").score(items(5))
    judge("columns=pf,passes=1,variant=no-scale").score(items(5))
    judge("columns=pf,passes=1,temperature=0.5").score(items(5))
    assert len(server.bodies) == 26, "another model, variant or temperature is another question"
    twins = [items(1)[0], items(1)[0]]
    judge("columns=pf,passes=1,model=third").score(twins)
    assert len(server.bodies) == 27, "equal questions are asked once"


def test_retries_of_what_may_pass(server, judge):
    broken = {"sentence number 0": 500, "sentence number 1": 503, "sentence number 2": 529}

    def plan(body, time):
        status = next((code for words, code in broken.items() if words in str(body["messages"][2])), 200)
        return (status, b"<html>oops</html>", {}) if status != 200 and time <= 2 else chat("Score: 4")

    server.plan = plan
    column = judge()
    assert column.score(items(4)) == [1.0] * 4 and column.failures == []
    assert len(server.bodies) == 3 * 3 + 1


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured_by_all(server, judge, form):
    """Once the endpoint says wait, no question leaves before, whichever thread has it."""
    moments = []
    wait = 0.4 if form == "seconds" else 2
    after = "0.4" if form == "seconds" else None

    def plan(body, time_asked):
        moments.append(time.time())
        if len(moments) == 1:
            header = after or time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + wait))
            return 429, b"{}", {"Retry_After": header}
        return chat("Score: 2")

    server.plan = plan
    assert judge("columns=pf,passes=1,concurrency=1").score(items(3)) == [0.5] * 3
    assert moments[1] - moments[0] >= (wait if form == "seconds" else wait - 1.01)
    assert len(moments) == 4


def test_a_long_retry_after_ends_the_run_and_keeps_the_rest(server, judge):
    def plan(body, time):
        return (429, b"{}", {"Retry_After": "86400"}) if "number 2" in str(body["messages"][2]) else chat("Score: 1")

    server.plan = plan
    with pytest.raises(UserError, match="come back in 86400 s"):
        judge("columns=pf,passes=1,concurrency=1").score(items(5))
    server.plan = lambda body, time: chat("Score: 3")
    assert judge().score(items(5)) == [0.25, 0.25, 0.75, 0.75, 0.75]


def test_malformed_answers_are_asked_again_and_failures_stay_in_the_denominator(server, judge):
    answers = {
        0: lambda time: chat("Score: 4"),
        1: lambda time: chat("Score: 9" if time < 3 else "Score: 2"),  # third time lucky
        2: lambda time: chat("As a model, I like it."),
        3: lambda time: (200, b"not json", {}),
        4: lambda time: (200, b'{"choices": []}', {}),
        5: lambda time: (200, json.dumps({"choices": [{"message": {"content": None, "refusal": "no"}}]}).encode(), {}),
        6: lambda time: chat([{"type": "text", "text": "Score: 1"}]),
        7: lambda time: (400, b'{"error": {"message": "content policy"}}', {}),
    }

    def plan(body, time):
        return next(of(time) for n, of in answers.items() if f"number {n}" in str(body["messages"][2]))

    server.plan = plan
    column = judge("columns=pf,passes=1,asks=3,retries=0")
    values = column.score(items(8))
    assert values == [1.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.25, 0.0]
    assert {each.item: each.reason for each in column.failures} == {
        "item-2": "no score in the answer",
        "item-3": "the answer is not a chat completion",
        "item-4": "the answer is not a chat completion",
        "item-5": "the answer has no text",
        "item-7": "the endpoint says 400: content policy",
    }
    assert sum(values) / len(values) == 1.75 / 8
    by_item = Counter(n for b in server.bodies for n in answers if f"number {n}" in str(b["messages"][2]))
    assert by_item == {0: 1, 1: 3, 2: 3, 3: 3, 4: 3, 5: 3, 6: 1, 7: 1}, "a refusal by the endpoint is not repeated"
    assert "openai:pf: 5 of 8 ratings failed and count as 0: item-2 (pass 1): no score in the answer" in judge.said[-1]
    assert len(column.score(items(8))) == 8 and len(server.bodies) == 18, "not asked again by the same judge"

    server.plan = lambda body, time: chat("Score: 4")  # a later run asks what failed, and only that
    again = judge("columns=pf,passes=1,asks=3,retries=0")
    assert again.score(items(8)) == [1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 0.25, 1.0] and again.failures == []
    assert len(server.bodies) == 23


def test_a_failure_in_one_pass_counts_as_nought_in_that_pass(server, judge):
    refused = []

    def plan(body, time):
        if not refused or body["seed"] in refused:
            refused.append(body["seed"])
            return 422, b"", {}
        return chat("Score: 4")

    server.plan = plan
    column = judge("columns=pf,passes=4,concurrency=1")
    assert column.score(items(1)) == [0.75]
    assert [(each.item, each.times) for each in column.failures] == [("item-0", 1)]


def test_a_silent_endpoint_is_given_up(server, judge):
    release = threading.Event()

    def plan(body, time):
        if "number 1" in str(body["messages"][2]):
            release.wait(10)
        return chat("Score: 4")

    server.plan = plan
    column = judge("columns=pf,passes=1,timeout=0.3,retries=1")
    assert column.score(items(3)) == [1.0, 0.0, 1.0]
    release.set()
    assert [each.reason for each in column.failures] == ["no answer within 0.3 s, 2 times"]


def test_a_dripping_answer_is_given_up():
    class Drip:
        def read1(self, _):
            time.sleep(0.01)
            return b"."

    with pytest.raises(TimeoutError):
        endpoint._read_until(Drip(), time.monotonic() + 0.1)


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (401, {}, "refuses with 401: check the key"),
        (404, {}, "check the address and the model"),
        (302, {"Location": "http://127.0.0.1:1/steal"}, "redirects"),
    ],
)
def test_what_cannot_work_stops_at_once(server, judge, status, headers, message):
    server.plan = lambda body, time: (status, b"{}", headers)
    with pytest.raises(UserError, match=message) as told:
        judge("columns=pf,passes=1,concurrency=1").score(items(20))
    assert len(server.bodies) == 1 and "GET" not in server.bodies and "\n" not in str(told.value)


def test_a_broken_endpoint_is_not_taken_for_a_bad_picture(server, judge):
    server.plan = lambda body, time: (400, b'{"error": "unknown parameter: seed"}', {})
    with pytest.raises(UserError, match=r"failed at 8 ratings in a row \(last: the endpoint says 400: unknown param"):
        judge("columns=pf,passes=1,concurrency=2").score(items(30))
    assert len(server.bodies) <= 11
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(UserError, match="cannot be reached"):
        judge("columns=pf,passes=1,retries=1").score(items(1))


def test_the_budget_is_checked_before_the_first_call_and_never_passed(server, judge):
    with pytest.raises(ConfigurationError, match="12 calls are needed, and at most 11 are allowed"):
        judge("passes=3,max_calls=11")[0].score(items(2))
    with pytest.raises(ConfigurationError, match="12 calls are needed"):
        announce(judge("passes=3", max_calls=11), 2)
    assert server.bodies == []
    cp, pf = judge("passes=3,max_calls=12")
    assert announce([cp, pf], items(2)) == 12
    cp.score(items(2))
    pf.score(items(2))
    assert len(server.bodies) == 12
    with pytest.raises(ConfigurationError, match="6 calls are needed after 12 made before, and at most 12"):
        pf.score([*items(2), *items(3)[2:]])
    assert len(server.bodies) == 12
    assert announce(judge("passes=3,max_calls=0"), items(2)) == 0, "what is answered costs nothing"

    server.plan = lambda body, time: chat("Score: 7")  # retries count too: a budget is a budget
    with pytest.raises(UserError, match="all 5 allowed calls are made"):
        judge("columns=pf,passes=1,max_calls=5,model=bad,concurrency=4").score(items(4))
    assert len(server.bodies) == 17


def test_killed_and_resumed_is_as_never_killed(server, judge, tmp_path):
    whole = [column.score(items(6)) for column in judge("passes=2")]
    asked = len(server.bodies)
    assert asked == 24
    file = tmp_path / "killed.jsonl"
    source = str(Path(endpoint.__file__).parents[3])
    server.bodies.clear()

    def slow(body, number):
        time.sleep(0.03)
        return chat(f"Score: {fair(body)}")

    server.plan = slow
    words = [sys.executable, str(Path(__file__).with_name("judged_items.py")), str(file)]
    environment = {**os.environ, "PYTHONPATH": source}
    child = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE)
    while len(server.bodies) < 9 and child.poll() is None:
        time.sleep(0.005)
    child.kill()
    child.wait()
    kept = len(file.read_text().splitlines())
    assert 4 <= kept < 24, "killed in the middle"
    with open(file, "ab") as torn:
        torn.write(b'{"key": "half a li')
    out = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=True).stdout
    assert out.strip() == str(whole)
    assert len(server.bodies) <= 24 + 2, "only what was on its way is asked twice"
    lines = [json.loads(line)["key"] for line in file.read_text().splitlines() if not line.startswith('{"key": "half')]
    assert len(lines) == len(set(lines)) == 24, "nothing lost, nothing doubled"


@pytest.mark.parametrize(
    ("url", "key", "message"),
    [
        ("", "", "set THISNESS_JUDGE_URL"),
        ("ftp://host/v1", "", "of the form https://host/v1"),
        ("file:///etc/passwd", "", "of the form https://host/v1"),
        ("https://me:pass@host/v1", "", "holds a password"),
        ("https://host:port/v1", "", "not an address"),
        ("http://judge.example/v1", KEY, "plain http to another machine"),
        ("https://host/v1", "abc\n", "a line end"),
    ],
)
def test_addresses_that_are_refused(monkeypatch, judge, url, key, message):
    monkeypatch.setenv("THISNESS_JUDGE_URL", url)
    monkeypatch.setenv("THISNESS_JUDGE_KEY", key)
    with pytest.raises(ConfigurationError, match=message) as told:
        judge("model=m")
    assert "pass@" not in str(told.value) and "\n" not in str(told.value) and KEY not in str(told.value)
    with pytest.raises(ConfigurationError, match="2 problems: .*concurrency is 0"):
        judge("model=m,concurrency=0,timeout=0")
