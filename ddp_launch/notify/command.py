"""`python -m ddp_launch notify [URL ...]`: sends a test message, and reports whether it was accepted."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from functools import partial

from ddp_core.errors import OptionError
from ddp_core.redaction import Secrets
from ddp_launch.notify.delivery import Mailbox
from ddp_launch.notify.message import Run, Story
from ddp_launch.notify.receiver import EVENTS, VARIABLE, receiver, receivers
from ddp_launch.notify.shapes import request

USAGE = f"python -m ddp_launch notify [URL ...]   (a test message; without URL to those of {VARIABLE})"
LIMIT_S = 15.0


def run(arguments: Sequence[str]) -> int:
    """Send a test message to each receiver; the exit status: 0 if all accepted it. Errors: OptionError."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(USAGE)
        return 0
    asked = tuple(receiver(word, given_by="notify") for word in arguments) or receivers(os.environ.get(VARIABLE, ""))
    if not asked:
        raise OptionError(f"no address is given, and {VARIABLE} is not set: expected {USAGE}")
    begin_ms = time.monotonic() * 1000
    story = Story(Run(program="a test", host=socket.gethostname(), begin_ms=begin_ms), EVENTS, Secrets(os.environ))
    record = story.trial(begin_ms)
    problems: dict[int, str] = {}
    boxes = [Mailbox(one, partial(problems.__setitem__, at)) for at, one in enumerate(asked)]
    for one, box in zip(asked, boxes, strict=True):
        box.put(request(one, record))
        box.close(time.monotonic() + LIMIT_S)
    for at, box in enumerate(boxes):
        box.join()
        print(problems.get(at, f"{asked[at].name} has taken a test message"))
    return 1 if problems else 0
