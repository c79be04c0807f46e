"""The launcher's side of `--notify`: starts the process that sends (process.py) and hands it the events of the run."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from ddp_launch.notify.message import END_S, Run
from ddp_launch.notify.receiver import OPTION, VARIABLE, Receiver

WAIT_S = END_S + 1.0
"""How long the end of the launcher may wait for the last message."""
PROGRAM = Path(__file__).with_name("process.py")
"""Started as a program and never imported: an import would take a tenth of the time that a plan takes."""
TOLD = ("plan", "attempt", "signal", "stall", "failure", "restart", "end")
BULKY = ("stacks", "doing", "last_lines", "pids")


class Notifier:
    """Sends messages about a run to `receivers`, from its events, in any thread; does nothing without receivers.

    No call waits for a receiver; only leaving the `with` block waits for the last message, for at most WAIT_S.
    """

    def __init__(
        self, receivers: Sequence[Receiver], wanted: Collection[str], program: str, hosts: Sequence[str] = ()
    ) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        if not receivers:
            return
        begin_ms = time.monotonic() * 1000
        host, attended = socket.gethostname(), sys.stderr.isatty()
        run = Run(program=program, host=host, begin_ms=begin_ms, attended=attended, hosts=tuple(hosts))
        orders = {"run": asdict(run), "wanted": sorted(wanted), "receivers": [asdict(one) for one in receivers]}
        try:
            self._process = subprocess.Popen(
                (sys.executable, "-I", "-S", str(PROGRAM)),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                # A signal that ends the launcher's process group must not end this process, which has to report it.
                start_new_session=True,
                env={name: value for name, value in os.environ.items() if name != VARIABLE},
            )
        except OSError as error:
            print(f"note: {OPTION}: nothing will be sent ({error.strerror or error})", file=sys.stderr, flush=True)
            return
        self._put(orders)
        threading.Thread(target=self._hand_over, daemon=True).start()

    def __enter__(self) -> Notifier:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Wait for the last message; a signal ends the wait."""
        if self._process is None:
            return
        self._lines.put(None)
        handlers: dict[int, Any] = {}
        with suppress(ValueError):  # only the main thread may
            handlers = {number: signal.signal(number, _impatient) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            if self._process.wait(WAIT_S):
                lost = "the process that sends them has ended early"
                print(f"note: {OPTION}: messages may not have been delivered: {lost}", file=sys.stderr, flush=True)
        except subprocess.TimeoutExpired:
            print(f"note: {OPTION}: the last message was not delivered in {WAIT_S:.0f} s", file=sys.stderr, flush=True)
        except _ImpatientError:
            print(f"note: {OPTION}: the last message may not have been delivered", file=sys.stderr, flush=True)
        finally:
            self._process.kill()
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def hear(self, event: Mapping[str, Any]) -> None:
        """Hand over an event of the run, as events/run_events.py records it."""
        if self._process is not None and event["event"] in TOLD:
            facts = brief(event)
            # The process that sends has another current folder, so paths must be absolute.
            folders = {name: event.get(name) for name in ("run_folder", "logs")}
            facts |= {name: str(Path(path).absolute()) for name, path in folders.items() if isinstance(path, str)}
            self._put(facts)

    def _put(self, facts: Mapping[str, Any]) -> None:
        self._lines.put(json.dumps(facts).encode() + b"\n")

    def _hand_over(self) -> None:
        """A thread's work: write to the process that sends. If that was stopped, only this thread waits for it."""
        assert self._process is not None and self._process.stdin is not None
        with suppress(OSError):
            while (line := self._lines.get()) is not None:
                self._process.stdin.write(line)
                self._process.stdin.flush()
        with suppress(OSError):
            self._process.stdin.close()


def brief(event: Mapping[str, Any]) -> dict[str, Any]:
    """The event without the parts that no message uses."""
    facts = {name: value for name, value in event.items() if name not in BULKY}
    return facts | ({"plan": {"cluster": event["plan"].get("cluster")}} if "plan" in event else {})


class _ImpatientError(Exception):
    pass


def _impatient(number: int, frame: FrameType | None) -> None:
    raise _ImpatientError
