"""HTTP to one endpoint: time-outs, retries with back-off and jitter, Retry-After; the standard library alone."""

from __future__ import annotations

import email.utils
import http.client
import ipaddress
import json
import random
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from ...errors import ConfigurationError, UserError
from .protocol import content_hash

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds between retries: doubled each time, with jitter
LONGEST_ASKED_WAIT = 600.0  # a longer Retry-After ends the run: it can be gone on with later
LARGEST_ANSWER = 4 * 2**20  # bytes
AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
UNREACHABLE = (ConnectionRefusedError, socket.gaierror, ssl.SSLError)
HOPELESS = {401: "the key", 403: "the key, or what it is allowed", 404: "the address and the model"}


class ItemFailed(Exception):
    """One question got no usable answer. final: asking again would not help; outage: it is the endpoint's state, not
    the question."""

    def __init__(self, reason: str, *, final: bool = True, outage: bool = False) -> None:
        super().__init__(reason)
        self.final, self.outage = final, outage


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key goes to the address that was given, and nowhere else."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class Endpoint:
    """An address that answers POST .../chat/completions.

    Args:
        url: "https://host/v1".
        key: "" for none; sent as a bearer token, never stored or shown.
        timeout: seconds for one answer.
        retries: after errors that may pass.
        insecure: allow the key over plain http to another machine.

    Raises:
        ConfigurationError: the address cannot be used; it is not repeated in the message.
    """

    def __init__(self, url: str, key: str, *, timeout: float, retries: int, insecure: bool = False) -> None:
        try:
            parts = urllib.parse.urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise ConfigurationError("THISNESS_JUDGE_URL is not an address: expected https://host/v1") from None
        if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
            raise ConfigurationError("THISNESS_JUDGE_URL is not an address of the form https://host/v1")
        if parts.username is not None or parts.password is not None:
            raise ConfigurationError("THISNESS_JUDGE_URL holds a password: put the key into THISNESS_JUDGE_KEY")
        if not all(32 < ord(character) < 127 for character in key):
            raise ConfigurationError("THISNESS_JUDGE_KEY holds characters that no key has: is there a line end in it?")
        loopback = _is_loopback(host)
        if parts.scheme == "http" and key and not loopback and not insecure:
            raise ConfigurationError(
                "THISNESS_JUDGE_URL is plain http to another machine, which would show the key to everyone between: "
                "use https, or insecure=true on a network you trust"
            )
        self.fingerprint = content_hash([parts.scheme, host, port, parts.path.rstrip("/")])[:12]
        self._url = url.rstrip("/") + "/chat/completions"
        self._key, self._timeout, self._retries = key, timeout, retries
        handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
        if loopback:
            handlers.append(urllib.request.ProxyHandler({}))
        self._open = urllib.request.build_opener(*handlers).open
        self._not_before = 0.0  # monotonic seconds: nobody sends before, once the endpoint said so
        self._lock = threading.Lock()

    def complete(self, body: dict[str, Any], count: Callable[[], None], stop: threading.Event) -> str:
        """The text of an answer.

        Args:
            body: of the request.
            count: called before each request; may raise to forbid it.
            stop: ends waiting.

        Raises:
            ItemFailed: no text came of this question.
            UserError: the endpoint cannot be used at all.
        """
        data = json.dumps(body).encode()
        reason = "stopped"
        for attempt in range(self._retries + 1):
            self._wait(stop)
            if stop.is_set():
                raise ItemFailed("stopped")
            count()
            wait: float | None = None
            try:
                return _text_of(self._post(data))
            except urllib.error.HTTPError as error:
                with error:
                    reason = f"the endpoint says {error.code}"
                    wait = self._after(error)
            except TimeoutError:
                reason = f"no answer within {self._timeout:g} s"
            except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
                cause = getattr(error, "reason", error)
                if isinstance(cause, TimeoutError):
                    reason = f"no answer within {self._timeout:g} s"
                else:
                    reason = f"the connection broke ({type(cause).__name__})"
                    if isinstance(cause, UNREACHABLE) and attempt == self._retries:
                        raise UserError(
                            f"the endpoint cannot be reached ({type(cause).__name__}): check THISNESS_JUDGE_URL and "
                            "run the same again; what was answered is kept"
                        ) from None
            if attempt < self._retries:
                backed_off = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1.0)
                stop.wait(backed_off if wait is None else wait + random.uniform(0, 0.1) * min(wait, 1.0))
        raise ItemFailed(f"{reason}, {self._retries + 1} times" if self._retries else reason, outage=True)

    def _wait(self, stop: threading.Event) -> None:
        while not stop.is_set() and (left := self._not_before - time.monotonic()) > 0:
            stop.wait(left)

    def _post(self, data: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "thisness"}
        request = urllib.request.Request(self._url, data, headers, method="POST")
        if self._key:
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        until = time.monotonic() + self._timeout
        with self._open(request, timeout=self._timeout) as response:
            return _read_until(response, until)

    def _after(self, error: urllib.error.HTTPError) -> float | None:
        """What an error means: seconds to wait if the endpoint names them, None to back off; raises where asking again
        cannot help."""
        if error.code in HOPELESS:
            raise UserError(
                f"the endpoint refuses with {error.code}: check {HOPELESS[error.code]}; what was answered is kept"
            ) from None
        if 300 <= error.code < 400:
            raise UserError(
                f"the endpoint redirects ({error.code}), which is not followed: set THISNESS_JUDGE_URL to the final "
                "address"
            ) from None
        if error.code not in AGAIN:
            raise ItemFailed(f"the endpoint says {error.code}{self._told(error)}") from None
        wait = _retry_after(error.headers.get("Retry-After"))
        if wait is None:
            return None
        if wait > LONGEST_ASKED_WAIT:
            raise UserError(
                f"the endpoint asks to come back in {wait:.0f} s: run the same again then; what was answered is kept"
            ) from None
        with self._lock:
            self._not_before = max(self._not_before, time.monotonic() + wait)
        return wait

    def _told(self, error: urllib.error.HTTPError) -> str:
        """The endpoint's own words on an error, short, in one line, without the key or the address."""
        try:
            message = json.loads(_read_until(error, time.monotonic() + 5))["error"]
            message = message["message"] if isinstance(message, dict) else message
        except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException, ItemFailed):
            return ""
        text = " ".join(str(message).split())
        for secret in (self._key, self._url, self._url.removesuffix("/chat/completions")):
            text = text.replace(secret, "...") if secret else text
        text = "".join(character for character in text if character.isprintable())[:160]
        return f": {text}" if text else ""


def _read_until(response: Any, until: float) -> bytes:
    """A whole body, in time and not too large: a time-out of the socket alone lets a slow drip go on for ever."""
    data = bytearray()
    while chunk := response.read1(65536):
        data += chunk
        if len(data) > LARGEST_ANSWER:
            raise ItemFailed(f"an answer of over {LARGEST_ANSWER // 2**20} MiB", final=False)
        if time.monotonic() > until:
            raise TimeoutError
    return bytes(data)


def _text_of(data: bytes) -> str:
    """The text of a chat completion. Raises ItemFailed where the JSON is none or another."""
    try:
        content = json.loads(data)["choices"][0]["message"]["content"]
        if isinstance(content, list):
            content = "".join(part["text"] for part in content if part.get("type") == "text")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        raise ItemFailed("the answer is not a chat completion", final=False) from None
    if not isinstance(content, str):
        raise ItemFailed("the answer has no text", final=False)
    return content


def _retry_after(header: str | None) -> float | None:
    """Seconds from a Retry-After header: a number, or a date."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            moment = email.utils.parsedate_to_datetime(header)
        except (ValueError, TypeError):
            return None
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        seconds = (moment - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if seconds == seconds else None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
