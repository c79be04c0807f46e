"""The process that sends: `python -I -S process.py`, beside the launcher, which a receiver can therefore not hold up.

Its standard input has one JSON object a line: first what it is to do, then the run's events. When it ends without the
last event, the launcher is gone, and that is sent too. What could not be delivered is a line on standard error.
Nothing but the standard library is imported.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ddp_core.redaction import Secrets
from ddp_launch.notify.delivery import Mailbox
from ddp_launch.notify.message import END_S, Record, Run, Story
from ddp_launch.notify.receiver import OPTION, Receiver
from ddp_launch.notify.shapes import request

VANISHED_S = 20.0
"""Used instead where no launcher waits for it."""


def main() -> None:
    """Send what the events on standard input are worth; ends when they end."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")
    orders = json.loads(sys.stdin.readline())
    story = Story(Run(**orders["run"]), frozenset(orders["wanted"]), Secrets(os.environ))
    receivers = [Receiver(**one) for one in orders["receivers"]]
    boxes = [(receiver, Mailbox(receiver, report)) for receiver in receivers]

    def send(record: Record | None) -> None:
        if record is not None:
            for receiver, box in boxes:
                box.put(request(receiver, record))

    for line in sys.stdin:
        send(story.hear(json.loads(line)))
    limit_s = END_S
    if not story.over:
        limit_s = VANISHED_S
        send(story.vanished(time.monotonic() * 1000))
    end_at = time.monotonic() + limit_s
    for _, box in boxes:
        box.close(end_at)
    for _, box in boxes:
        box.join()
    # Tries that were given up may still hold a thread.
    os._exit(0)


def report(problem: str) -> None:
    """A message was not delivered."""
    with suppress(OSError):
        os.write(2, f"note: {OPTION}: {problem}\n".encode("utf-8", "replace"))


if __name__ == "__main__":
    main()
