"""Delivers requests to one receiver, in a thread: time limits, a few tries, no answer is trusted.

A redirect is followed only on the same host: to the same address by https, or by a status that keeps a POST a POST (307
or 308). Only the answer's status counts; if the receiver refuses, a few words of the answer's body are shown.
"""

from __future__ import annotations

import email.utils
import http.client
import random
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO
from urllib.parse import urlsplit

from ddp_core.errors import one_line
from ddp_launch.notify.receiver import Receiver
from ddp_launch.notify.shapes import Request

TRIES = 4
TRY_S = 10.0
"""Time limit of one try, from the look-up of the name to the answer."""
PAUSE_S = 0.5
"""Pause before the second try; doubled before each further one."""
LONGEST_PAUSE_S = 60.0
"""How long a receiver may ask to wait (Retry-After)."""
WORDS_BYTES = 2048
WORDS = 100
REDIRECTS = 3
AGAIN = {408, 425, 429, *range(500, 600)}
"""Statuses after which another try may succeed (RFC 9110, RFC 6585)."""


@dataclass(frozen=True)
class Answer:
    """The result of one try. `problem`: empty if the receiver accepted the message; `again`: whether another try may
    help; `wait_s`: how long the receiver asks to wait before that, in seconds."""

    problem: str = ""
    again: bool = False
    wait_s: float = 0.0


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """The same POST to the new address; None where the redirect must not be followed."""
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        secured = (old.scheme, new.scheme) == ("http", "https") and old.hostname == new.hostname
        same_place = (old.scheme, old.netloc) == (new.scheme, new.netloc)
        if secured and (code in (307, 308) or (old.path, old.query) == (new.path, new.query)):
            pass
        elif not (same_place and code in (307, 308)):
            return None
        hops = getattr(req, "hops", 0) + 1
        if hops > REDIRECTS:
            return None
        following = urllib.request.Request(newurl, req.data, dict(req.headers), method="POST")  # noqa: S310
        following.hops = hops  # type: ignore[attr-defined]
        return following


def post(request: Request, timeout_s: float) -> Answer:
    """Send the request once. `timeout_s`: limit of each wait for the network. Never raises."""
    asked = urllib.request.Request(request.url, request.body, dict(request.headers), method="POST")  # noqa: S310
    if unusable := _unusable_proxy(asked):
        return Answer(unusable)
    try:
        with _opener().open(asked, timeout=timeout_s):
            return Answer()
    except urllib.error.HTTPError as error:
        with error:
            return _refused(error)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            return Answer(f"its certificate is not valid: {reason.verify_message}")
        return Answer(_in_words(reason), again=True)


def _opener() -> urllib.request.OpenerDirector:
    """An opener for http and https. Errors: OSError, for a file that an environment variable gives for TLS."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=ssl.create_default_context()),
        _Redirects(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _unusable_proxy(asked: urllib.request.Request) -> str:
    """The problem where the environment gives a SOCKS proxy, which would be spoken to in HTTP; else ""."""
    scheme = urllib.request.getproxies().get(asked.type, "").partition("://")[0].lower()
    if not scheme.startswith("socks") or urllib.request.proxy_bypass(asked.host):
        return ""
    return f"{asked.type}_proxy gives a SOCKS proxy, and messages can use an HTTP proxy only"


def _refused(error: urllib.error.HTTPError) -> Answer:
    if 300 <= error.code < 400:
        place = urlsplit(error.headers.get("Location") or "")
        to = f" to {place.scheme}://{place.hostname}" if place.hostname else ""
        return Answer(f"HTTP {error.code}: it redirects{to}, which is not followed: give the final address")
    words = ""
    with suppress(OSError, http.client.HTTPException, ValueError):
        words = one_line(error.read(WORDS_BYTES).decode("utf-8", "replace"))[:WORDS]
    wait_s = _seconds(error.headers.get("Retry-After") or "")
    return Answer(f"HTTP {error.code}" + (f": {words}" if words else ""), error.code in AGAIN, wait_s)


def _seconds(retry_after: str) -> float:
    """The seconds of a Retry-After header (RFC 9110, 10.2.3): a number, from Discord with a fraction, or a date."""
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        when = email.utils.parsedate_to_datetime(retry_after)
        return max(0.0, when.timestamp() - datetime.now(UTC).timestamp())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _in_words(reason: object) -> str:
    if isinstance(reason, TimeoutError):
        return "no answer in time"
    if isinstance(reason, ssl.SSLError):
        return f"no TLS connection ({reason.reason or 'the answer is no TLS'})"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror[:1].lower() + reason.strerror[1:]
    return f"no HTTP answer ({type(reason).__name__})" if isinstance(reason, Exception) else str(reason)[:WORDS]


class Mailbox:
    """Delivers to one receiver, one message after another. `problem`: called with why a message was not delivered."""

    def __init__(
        self,
        receiver: Receiver,
        problem: Callable[[str], None],
        post: Callable[[Request, float], Answer] = post,
    ) -> None:
        self._receiver, self._problem, self._post = receiver, problem, post
        self._changed = threading.Condition()
        self._waiting: deque[Request] = deque()
        self._end_at: float | None = None
        self._last_taken = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, request: Request) -> None:
        """Queue a request for delivery."""
        with self._changed:
            self._waiting.append(request)
            self._changed.notify_all()

    def close(self, end_at: float) -> None:
        """Announce that no message follows: deliver until `end_at` (monotonic seconds), the last message first."""
        with self._changed:
            self._end_at = end_at
            self._changed.notify_all()

    def join(self) -> None:
        """Wait until every message is delivered or reported as undelivered, at most until shortly after `end_at`."""
        assert self._end_at is not None
        self._thread.join(max(0.0, self._end_at - time.monotonic()) + 0.2)

    def _run(self) -> None:
        while (request := self._next()) is not None:
            if why := self._deliver(request):
                self._problem(f"{self._receiver.name} did not get a message: {self._receiver.hidden(why)}")

    def _next(self) -> Request | None:
        with self._changed:
            while not self._waiting:
                if self._end_at is not None:
                    return None
                self._changed.wait()
            if self._end_at is None:
                return self._waiting.popleft()
            # At the end the last message says more than those before it.
            self._last_taken = True
            return self._waiting.pop()

    def _hurried(self) -> bool:
        """Whether the last message is waiting: the present one must not delay it."""
        return self._end_at is not None and bool(self._waiting) and not self._last_taken

    def _deliver(self, request: Request) -> str:
        """Deliver a request. Returns why that failed; empty after a success."""
        answer = Answer("the run was over before it was sent")
        for number in range(TRIES):
            answer = self._try(request)
            if not answer.problem or not answer.again:
                return answer.problem
            pause_s = max(PAUSE_S * 2**number * random.uniform(0.8, 1.2), answer.wait_s)
            if answer.wait_s > LONGEST_PAUSE_S or number == TRIES - 1 or not self._rest(pause_s):
                asked = f"; it asks to wait {answer.wait_s:.0f} s" if answer.wait_s else ""
                return f"{answer.problem}{asked} ({number + 1} {'try' if number == 0 else 'tries'})"
        return answer.problem

    def _rest(self, seconds: float) -> bool:
        """Wait before another try; False where there is no time for that."""
        until = time.monotonic() + seconds
        with self._changed:
            while (left := until - time.monotonic()) > 0:
                if self._hurried() or (self._end_at is not None and until >= self._end_at):
                    return False
                self._changed.wait(left)
        return not self._hurried()

    def _try(self, request: Request) -> Answer:
        """One try, in its own thread, which is abandoned if it takes too long: a receiver that sends a byte now and
        then, or a name server that does not answer, could block it without limit."""
        found: list[Answer] = []

        def work() -> None:
            """A thread's work: send the request and hand the answer over."""
            answer = self._post(request, TRY_S)
            with self._changed:
                found.append(answer)
                self._changed.notify_all()

        threading.Thread(target=work, daemon=True).start()
        until = time.monotonic() + TRY_S
        with self._changed:
            while not found:
                limit = until if self._end_at is None else min(until, self._end_at)
                if (left := limit - time.monotonic()) <= 0 or self._hurried():
                    return Answer("no answer in time", again=True)
                self._changed.wait(left)
        return found[0]
