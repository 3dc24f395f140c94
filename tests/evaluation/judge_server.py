"""A small server in this process that answers as a chat endpoint does, as told."""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from thisness.evaluation.judges import endpoint

KEY = "sk-very-secret-0123"


def chat(text, status=200, **headers):
    return status, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode(), headers


def fair(body: dict) -> int:
    """The server's opinion: a function of what is shown and of the seed."""
    shown = json.dumps([body["messages"], body["seed"]], sort_keys=True)
    return hashlib.sha256(shown.encode()).digest()[0] % 5


class Server:
    """Answers by `plan(body, number of times that this was asked)` -> (status, bytes, headers)."""

    def __init__(self):
        self.bodies, self.headers, self.times, self.lock = [], [], Counter(), threading.Lock()
        self.plan = lambda body, time: chat(f"Score: {fair(body)}")
        self.busy, self.most = 0, 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                outer.answer(self)

            def do_GET(self):
                outer.bodies.append("GET")
                self.send_error(500)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def answer(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        sentence = json.dumps(body["messages"][2])
        with self.lock:
            self.bodies.append(body)
            self.headers.append((handler.path, dict(handler.headers)))
            self.times[sentence] += 1
            number = self.times[sentence]
            self.busy += 1
            self.most = max(self.most, self.busy)
        try:
            status, data, headers = self.plan(body, number)
        finally:
            with self.lock:
                self.busy -= 1
        try:
            handler.send_response(status)
            for name, value in headers.items():
                handler.send_header(name.replace("_", "-"), value)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data)
        except OSError:
            pass  # whoever asked has gone


@contextmanager
def serving(monkeypatch) -> Iterator[Server]:
    """The judge's endpoint is this server, until the test ends."""
    running = Server()
    monkeypatch.setenv("THISNESS_JUDGE_URL", running.url)
    monkeypatch.setenv("THISNESS_JUDGE_MODEL", "tiny-judge")
    monkeypatch.setenv("THISNESS_JUDGE_KEY", KEY)
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)
    yield running
    running.http.shutdown()
    running.http.server_close()
