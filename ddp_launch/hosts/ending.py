"""A run over ssh from its start to its end: signals to all hosts, one cause, one exit status."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from rich.console import Console
from rich.text import Text

from ddp_launch.failure.failures import exit_status, in_words
from ddp_launch.hosts.channel import Message
from ddp_launch.hosts.connection import Connection
from ddp_launch.hosts.fleet import Fleet
from ddp_launch.hosts.keeper import END_S
from ddp_launch.run.rank_output import same_place
from ddp_launch.run.signals import AS, ENDING, REPEATED_S

SETTLE_S = 6.0
"""How long the other hosts may take to notice by themselves that a host has failed."""
BEYOND_GRACE_S = 1.5
"""How much longer than the ranks' grace time a launcher may take to end after a signal."""
STOP_S = 8.0
"""How long the hosts may take to end when a connection is lost; their keepers need less."""
LOST_STATUS = 1
ELSEWHERE = "elsewhere"
"""The kind of a stall whose cause is on another host (stall/finding.py)."""


class Ending:
    """Watches a run from the moment all hosts have a plan."""

    def __init__(
        self,
        fleet: Fleet,
        console: Console,
        grace_s: int,
        *,
        silent: bool = False,
        hear: Callable[[Mapping[str, Any]], None] = lambda event: None,
    ) -> None:
        """grace_s: the ranks' time to end. silent: this is a check before the run, without a summary. hear: called with
        the events of the run (docs/events.md), each once for all hosts."""
        self._fleet = fleet
        self._console = console
        self._grace_s = grace_s
        self._silent = silent
        self._events = hear
        self._failures: dict[int, Mapping[str, Any]] = {}
        self.problem: str | None = None
        """Why the run has failed, where no rank did."""
        self._signals: list[int] = []
        self._first_signal: int | None = None
        self._signal_at = 0.0
        self._resized = False
        self._failed_at: float | None = None
        self._asked = False
        self._kill_at: float | None = None

    def run_to_end(self) -> int:
        """Start all hosts and wait until they have ended; the exit status."""
        fleet = self._fleet
        fleet.on_message = self._hear
        with self._handlers():
            fleet.send_to_launchers("go")
            while any(host.is_open for host in fleet.hosts):
                fleet.pump()
                self._pass_signals_on()
                if any(host.lost is not None for host in fleet.hosts):
                    return self._lost()
                self._end_the_rest()
            return self._status()

    def _hear(self, host: Connection, message: Message) -> None:
        """Note a host that failed: the other hosts are ended after a moment, or at once where it was killed."""
        if message["kind"] == "event":
            self._hear_event(host, message["facts"])
        elif message["kind"] == "refused":
            # It cannot continue, and has reported why: the others wait for it in vain.
            self.problem = f"{host.name}: {message['line']}"
            print(f"error: {self.problem}", file=sys.stderr, flush=True)
            self._failed_at = time.monotonic() - SETTLE_S
        elif message["kind"] == "end" and message["code"] < 0 and not self._asked:
            # It was killed, and nothing there can inform the others.
            self._asked = True
            self._fleet.send("stop", patience_s=END_S)
        elif message["kind"] == "end" and message["code"]:
            self._failed_at = self._failed_at or time.monotonic()

    def _hear_event(self, host: Connection, event: Mapping[str, Any]) -> None:
        """Pass on the first host's events, and a stall also from a host where its cause may be. Note failures."""
        match event["event"]:
            case "plan":
                # Without the plan the notifier is never silent: it would be on a node that does not own the endpoint.
                event = {**event, "plan": {}}
            case "failure":
                self._failures[host.rank] = event
            case "stall":
                if host.rank == 0 or event["kind"] != ELSEWHERE:
                    self._events({**event, "host": host.name})
                return
        if host.rank == 0:
            self._events(event)

    def _end_the_rest(self) -> None:
        """Some time after a host has failed, end the others, which may not have noticed.

        A launcher whose ranks have ended well waits for the other hosts' ranks in native code, where it handles no
        signal: it is killed when its grace time is over.
        """
        now = time.monotonic()
        if self._failed_at is not None and not self._asked and now - self._failed_at > SETTLE_S:
            self._asked = True
            self._fleet.send("signal", number=int(signal.SIGTERM))
            self._kill_at = now + self._grace_s + BEYOND_GRACE_S
        if self._kill_at is not None and now > self._kill_at:
            self._kill_at = None
            self._fleet.send("stop", patience_s=0.0)

    @contextmanager
    def _handlers(self) -> Iterator[None]:
        """Pass signals on to all hosts. Afterwards they are ignored, because the exit status is decided."""
        heard = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
        earlier = {number: signal.signal(number, self._note) for number in heard}
        earlier[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, self._note_size)
        # A launcher stopped by Ctrl-Z sends no heartbeat, and the hosts would end the run.
        earlier[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, signal.SIG_IGN)
        try:
            yield
        finally:
            for number, handler in earlier.items():
                # After a check comes the run, which needs the earlier handlers.
                signal.signal(number, handler if self._silent else signal.SIG_IGN)

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: remember the signal for `_pass_signals_on`."""
        self._signals.append(number)

    def _note_size(self, number: int, frame: FrameType | None) -> None:
        """Handler of SIGWINCH: the terminal has another size."""
        self._resized = True

    def _pass_signals_on(self) -> None:
        """Send the signals and terminal sizes that arrived to all hosts; a quick repeat is dropped."""
        while self._signals:
            number, now = self._signals.pop(0), time.monotonic()
            if number == self._first_signal and now - self._signal_at < REPEATED_S:
                continue
            self._signal_at = now
            if self._first_signal is None:
                self._first_signal = number
                self._events({"event": "signal", "signal": signal.Signals(self._signal).name})
                self._kill_at = now + self._grace_s + BEYOND_GRACE_S
            self._fleet.send("signal", number=number)
        if self._resized:
            self._resized = False
            self._fleet.send("size", rows_columns=screen_size())

    def _lost(self) -> int:
        """A connection is lost. Its host ends by itself; end the others too. Returns the exit status."""
        fleet = self._fleet
        for host in fleet.hosts:
            if host.lost is not None:
                self.problem = f"{host.name}: {host.lost}; all hosts end the run"
                print(f"error: {self.problem}", file=sys.stderr, flush=True)
        fleet.send("stop", patience_s=END_S)
        deadline = time.monotonic() + STOP_S
        while any(host.is_open for host in fleet.hosts) and time.monotonic() < deadline:
            fleet.pump()
        return LOST_STATUS if self._first_signal is None else 128 + self._signal

    @property
    def _signal(self) -> int:
        """The number of the first signal, with SIGUSR1 counted as SIGTERM."""
        assert self._first_signal is not None
        number = signal.Signals(self._first_signal)
        return int(AS.get(number, number))

    def _status(self) -> int:
        """The exit status of the run; prints the summary of the host that knows the cause."""
        fleet = self._fleet
        outcomes = fleet.inbox.get("outcome", {})
        if self._first_signal is not None:
            return 128 + self._signal
        refused = fleet.inbox.get("refused", {})
        if refused:
            return int(refused[min(refused)]["status"])
        failed = [host for host in fleet.hosts if host.code]
        if not failed:
            return 0
        cause = min(failed, key=lambda host: (_knows(outcomes.get(host.rank)), host.rank))
        outcome = outcomes.get(cause.rank)
        if cause.rank in self._failures:
            self._events(self._failures[cause.rank])
        assert cause.code is not None
        if outcome is None:
            self.problem = f"the launcher on {cause.name} ended by {in_words(cause.code)}"
            self._console.print(Text(f"error: {self.problem}"), soft_wrap=True)
            return exit_status(cause.code)
        if not self._silent:
            sys.stderr.write(outcome["text"])
            sys.stderr.flush()
        return int(outcome["status"])


def _knows(outcome: Message | None) -> int:
    """How well a host knows the cause. 0 (best): its own rank failed; 1: another host reported it; 2: a message."""
    if outcome is None:
        return 3  # its launcher was killed
    if not outcome["failed"]:
        return 4 if outcome["text"] == "" else 2
    if outcome["victim"]:
        return 5
    return 0 if outcome["own"] else 1


def streams() -> tuple[tuple[bool, bool], bool]:
    """Whether standard output and standard error are terminals, and whether both go to the same place."""
    return (os.isatty(1), os.isatty(2)), same_place()


def screen_size() -> tuple[int, int]:
    """Rows and columns of the terminal here."""
    with suppress(OSError):
        columns, rows = os.get_terminal_size(2 if os.isatty(2) else 1)
        return rows, columns
    columns, rows = shutil.get_terminal_size()
    return rows, columns
