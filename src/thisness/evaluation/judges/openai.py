"""A judge behind any endpoint that speaks OpenAI's chat completions: a service, or a server of one's own.

Where it is, what it is called and the key come from THISNESS_JUDGE_URL ("https://host/v1"), THISNESS_JUDGE_MODEL and
THISNESS_JUDGE_KEY. Neither address nor key is written anywhere or shown in a message.
"""

from __future__ import annotations

import base64
import io
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from ...errors import ConfigurationError, UserError, raise_all
from ..items import Picture
from .answers import Answer
from .endpoint import Endpoint, ItemFailed
from .protocol import Question, parse_score
from .rating import Asked, RatingJudge, RatingSettings

SIDE = 512  # pixels: pictures are squeezed to this square, as the protocol does
QUALITY = 95  # of the JPEG
IN_A_ROW = 8  # ratings that an endpoint may fail at in a row before it is taken for broken


@dataclass(frozen=True)
class Settings(RatingSettings):
    """Of a judge behind an endpoint.

    Args:
        model: overrides THISNESS_JUDGE_MODEL.
        concurrency: questions on their way at once.
        timeout: seconds that one answer may take.
        retries: how often a question is sent again after an error of the endpoint.
        asks: how often a question is asked at most until its answer has exactly one score.
        max_calls: the most requests of this judge, retries included; None for no limit.
        max_tokens: of an answer.
        tokens_field: how the endpoint calls that limit.
        send_seed: send a seed for sampling, another one for each pass; some endpoints refuse it.
        insecure: send the key over plain http to another machine.
    """

    model: str | None = None
    concurrency: int = 4
    timeout: float = 60.0
    retries: int = 5
    asks: int = 3
    max_calls: int | None = None
    max_tokens: int = 512
    tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    send_seed: bool = True
    insecure: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        ranges = (("concurrency", 1, 64), ("timeout", 0.05, 3600), ("retries", 0, 50), ("asks", 1, 20),
                  ("max_tokens", 4, 100_000), ("max_calls", 0, 10**9))  # fmt: skip
        given = {name: getattr(self, name) for name, _, _ in ranges}
        raise_all(
            [
                f"{name} is {given[name]}: expected {least} ... {most}"
                for name, least, most in ranges
                if given[name] is not None and not least <= given[name] <= most
            ]
        )


def make(settings: Settings, context: Any) -> list[Any]:
    """Columns of a judge behind the endpoint that the environment names.

    Raises:
        ConfigurationError: THISNESS_JUDGE_URL or the model is missing, or the address cannot be used.
    """
    rater = EndpointRater(settings, os.environ)
    if context.max_calls is not None:
        rater.limit = context.max_calls
    return list(RatingJudge(rater, settings, context.open_answers(), context.say).columns)


@lru_cache(maxsize=64)
def as_data_url(picture: Picture) -> str:
    """512x512 without keeping the aspect, JPEG, base64. No metadata goes with it."""
    from PIL import Image

    file = io.BytesIO()
    image = picture.image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    image.info.clear()
    image.save(file, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def messages(question: Question) -> list[dict[str, Any]]:
    """A question in the form of chat completions: texts and pictures in order, pictures in high detail."""
    result: list[dict[str, Any]] = []
    for turn in question.turns:
        if all(isinstance(part, str) for part in turn.parts):
            result.append({"role": turn.role, "content": "\n".join(map(str, turn.parts))})
            continue
        content: list[dict[str, Any]] = []
        for part in turn.parts:
            if isinstance(part, Picture):
                content.append({"type": "image_url", "image_url": {"url": as_data_url(part), "detail": "high"}})
            else:
                content.append({"type": "text", "text": part})
        result.append({"role": turn.role, "content": content})
    return result


class EndpointRater:
    """Asks an endpoint, several questions at once. See `Rater`.

    Args:
        settings: of the judge.
        environment: where THISNESS_JUDGE_URL, _MODEL and _KEY are looked up.

    Raises:
        ConfigurationError: something is missing, or the address cannot be used.
    """

    name = "openai"
    directly = False

    def __init__(self, settings: Settings, environment: Mapping[str, str]) -> None:
        url, model = environment.get("THISNESS_JUDGE_URL", ""), settings.model
        model = model or environment.get("THISNESS_JUDGE_MODEL", "")
        raise_all(
            ["set THISNESS_JUDGE_URL to the endpoint's address, as https://host/v1"] * (not url)
            + ["set THISNESS_JUDGE_MODEL, or write openai:model=NAME"] * (not model),
            ConfigurationError,
            "openai",
        )
        self.settings = settings
        self.endpoint = Endpoint(
            url,
            environment.get("THISNESS_JUDGE_KEY", ""),
            timeout=settings.timeout,
            retries=settings.retries,
            insecure=settings.insecure,
        )
        self.model = model
        self.identity = {
            "back-end": "openai",
            "model": model,
            "endpoint": self.endpoint.fingerprint,
            "pictures": f"{SIDE}x{SIDE} JPEG {QUALITY}",
            "max_tokens": settings.max_tokens,
        }
        self.limit = settings.max_calls
        self.made = 0
        self._worked = False
        self._lock = threading.Lock()

    def rate(self, asked: Sequence[Asked], done: Callable[[Answer], None]) -> None:
        stop = threading.Event()
        waiting: queue.SimpleQueue[Asked] = queue.SimpleQueue()
        finished: queue.SimpleQueue[tuple[Answer, int] | BaseException] = queue.SimpleQueue()
        in_a_row = 0
        for each in asked:
            waiting.put(each)

        def counted(answer: Answer, outage: bool) -> int:
            """How many failed in a row; too many, and nobody asks any more, however busy the thread that waits is."""
            nonlocal in_a_row
            with self._lock:
                if stop.is_set():
                    return 0  # cut short, perhaps by what another one counted
                self._worked |= answer.valid
                refused = bool(answer.failure) and not answer.raw and (outage or not self._worked)
                in_a_row = in_a_row + 1 if refused else 0
                if in_a_row >= IN_A_ROW:
                    stop.set()
                return in_a_row

        def work() -> None:
            while not stop.is_set():
                try:
                    each = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    answer, outage = self._ask(each, stop)
                    finished.put((answer, counted(answer, outage)))
                except BaseException as error:  # handed to the thread that waits
                    finished.put(error)
                    return

        # daemons: Ctrl-C need not wait for an endpoint that is silent
        threads = [
            threading.Thread(target=work, daemon=True) for _ in range(min(self.settings.concurrency, len(asked)))
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in asked:
                result = finished.get()
                if isinstance(result, BaseException):
                    raise result
                answer, failed = result
                done(answer)
                if failed >= IN_A_ROW:
                    raise UserError(
                        f"the endpoint failed at {failed} ratings in a row (last: {answer.failure}): see to it and "
                        "run the same again; what was answered is kept"
                    )
        except BaseException as error:
            stop.set()
            patience = self.settings.timeout if isinstance(error, UserError) else 2.0
            self._keep_rest(threads, finished, done, patience)
            raise

    def _keep_rest(
        self,
        threads: Sequence[threading.Thread],
        finished: queue.SimpleQueue[Any],
        done: Callable[[Answer], None],
        patience: float,
    ) -> None:
        """Answers that were on their way are paid for: wait for them a while, in seconds, and keep what has come."""
        until = time.monotonic() + patience
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        while not finished.empty():
            result = finished.get()
            if not isinstance(result, BaseException) and result[0].valid:
                done(result[0])

    def _ask(self, asked: Asked, stop: threading.Event) -> tuple[Answer, bool]:
        """One rating, and whether it failed by the endpoint's state: asked again, with another seed, until it has one
        score, at most `asks` times."""
        begun, made, raw, problem, outage = time.monotonic(), 0, "", "", False

        def count() -> None:
            nonlocal made
            with self._lock:
                if self.limit is not None and self.made >= self.limit:
                    raise UserError(
                        f"openai: all {self.limit} allowed calls are made, with retries: raise max_calls and run the "
                        "same again; what was answered is kept"
                    )
                self.made += 1
            made += 1

        sent = messages(asked.question)
        for attempt in range(self.settings.asks):
            body = {
                "model": self.model,
                "messages": sent,
                "temperature": asked.temperature,
                self.settings.tokens_field: self.settings.max_tokens,
            }
            if self.settings.send_seed:
                body["seed"] = (asked.seed + attempt) & 0x7FFFFFFF
            try:
                raw = self.endpoint.complete(body, count, stop)
                score = parse_score(raw)
            except ItemFailed as error:
                problem, raw, outage = str(error), "", error.outage
                if error.final:
                    break
            except ValueError as error:
                problem = str(error)
            else:
                return Answer(asked.key, score, raw, "", time.monotonic() - begun, made), False
            if stop.is_set():
                break
        return Answer(asked.key, None, raw, problem, time.monotonic() - begun, made), outage
