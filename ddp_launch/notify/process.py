"""The process that sends messages, `python -I -S process.py`. Since it is separate, no receiver delays the launcher.

Its standard input has one JSON object per line: first its orders, then the run's events. If the input ends without the
last event, the launcher is gone, and a message reports that. An undelivered message leads to a line on standard error.
No package but this project's is needed besides the standard library.
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
"""Time limit instead of END_S once the launcher is gone and no longer waits for the last message."""


def main() -> None:
    """Send messages about the events on standard input; ends when the input ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")
    orders = json.loads(sys.stdin.readline())
    story = Story(Run(**orders["run"]), frozenset(orders["wanted"]), Secrets(os.environ))
    receivers = [Receiver(**one) for one in orders["receivers"]]
    boxes = [(receiver, Mailbox(receiver, report)) for receiver in receivers]

    def send(record: Record | None) -> None:
        """Queue a record, if there is one, for every receiver."""
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
    """Print why a message was not delivered."""
    with suppress(OSError):
        os.write(2, f"note: {OPTION}: {problem}\n".encode("utf-8", "replace"))


if __name__ == "__main__":
    main()
