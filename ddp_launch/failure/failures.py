"""How a run ended: each rank that failed, attempt by attempt, and which of them failed first.

`run/agent.py` fills in the facts, `log_tail.py` reads the ranks' logs, `summary.py` shows the result. No torch here.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ddp_core import rank_report
from ddp_core.rank_report import Place, RankReport
from ddp_launch.failure.log_tail import LogTail, read

MEANINGS: dict[int, str] = {
    signal.SIGKILL: "killed from outside: by the kernel when memory ran out, by a job manager, or by a person",
    signal.SIGSEGV: "invalid memory access in native code",
    signal.SIGBUS: "a memory-mapped file could not be read: often a full /dev/shm or disk",
    signal.SIGABRT: "aborted in native code",
    signal.SIGFPE: "arithmetic error in native code, such as a division by zero",
    signal.SIGILL: "an instruction that this processor does not have",
    signal.SIGTERM: "asked to end from outside",
    signal.SIGINT: "interrupted from outside",
    signal.SIGHUP: "its terminal was closed",
    signal.SIGPIPE: "it wrote to a reader that was gone",
}

USER_ERROR_STATUS = 2


@dataclass(frozen=True)
class Failure:
    """A rank that failed.

    code       Popen's returncode: -n for signal n
    logs       the files of its standard output and standard error
    ended_ms   when it ended, milliseconds of the monotonic clock; None where that is unknown
    stopped    the launcher ended it because of another rank
    on_screen  its output was shown on the screen too
    left       it ended with exit code 0 while the others still needed it
    error_file the report that the rank or its watchdog wrote
    at         where it was when the first rank failed, one line; empty where that is unknown
    found      what the stacks of all ranks showed then, one line; empty where they showed nothing
    held_up    the others failed because they waited for it until their time limit
    remote     the end of its logs and its report, from the launcher of the node that has the `logs`
    """

    rank: int
    host: str
    code: int
    logs: tuple[Path, ...] = ()
    ended_ms: float | None = None
    stopped: bool = False
    on_screen: bool = False
    left: bool = False
    error_file: Path | None = None
    at: str = ""
    found: str = ""
    held_up: bool = False
    remote: tuple[LogTail, RankReport | None] | None = None

    @cached_property
    def log_tail(self) -> LogTail:
        """The end of its logs, read once."""
        if self.remote is not None:
            return self.remote[0]
        return read(self.logs, self.report.messages if self.report else ())

    @cached_property
    def report(self) -> RankReport | None:
        """The report of the rank or its watchdog; None for a program that reports nothing."""
        return rank_report.read(self.error_file) if self.remote is None else self.remote[1]

    @property
    def hang(self) -> RankReport | None:
        """The report where the watchdog ended it for a hang, else None."""
        return self.report if self.report is not None and self.report.kind == "hang" else None

    @property
    def explained(self) -> str | None:
        """The line in which the bundled trainer explains a user's mistake; None for any other failure."""
        report = self.report
        mistake = report is not None and report.kind == "error" and report.status == self.code == USER_ERROR_STATUS
        return report.messages[-1] if report is not None and mistake and not report.stack else None

    @property
    def place(self) -> Place | None:
        """Step and phase where it was; None where that is not known."""
        return self.report.place if self.report is not None and self.report.kind != "left" else None

    @property
    def crashed(self) -> bool:
        """Whether a signal ended it, other than those that a lost connection leads to."""
        return self.code < 0 and -self.code not in (signal.SIGABRT, signal.SIGTERM, signal.SIGPIPE)

    @property
    def aborted_late(self) -> bool:
        """Whether native code aborted after the error was printed, most often while the interpreter closed."""
        return self.code == -signal.SIGABRT and bool(self.log_tail.abort)

    def ending(self, *, meaning: bool = True) -> str:
        """How it ended, for a person. `meaning`: add what its signal means in general."""
        if self.hang:
            how = {"stopped": "it was stopped", "device": "all ranks waited"}.get(self.hang.verdict, "it hung")
            return f"{in_words(self.code, meaning=False)}, after {self.hang.seconds:.1f} s without progress: {how}"
        if self.left:
            return f"{in_words(self.code)}: it left early, while the others were still at work"
        if self.held_up:
            return "the launcher, because the other ranks waited for it until their time limit"
        if self.aborted_late:
            return f"{in_words(self.code, meaning=False)}: aborted in native code after its error, while it was ending"
        return in_words(self.code, meaning=meaning)

    @property
    def victim(self) -> bool:
        """Whether it failed because of another rank: it lost the connection, or was ended because that rank left."""
        return (not self.crashed and self.log_tail.lost_connection) or self.was_left

    @property
    def was_left(self) -> bool:
        """Whether the watchdog ended it because another rank had left."""
        return self.report is not None and self.report.kind == "left"


@dataclass(frozen=True)
class Attempt:
    """The ranks of one attempt that failed, in the order in which they ended.

    `number` counts from 0; `seconds`: from the start of the ranks to the end of the first one that failed; `nodes`: how
    many took part. A failure on another node comes first where it explains those of this node.
    """

    number: int
    failures: tuple[Failure, ...] = ()
    seconds: float | None = None
    nodes: int = 1

    @property
    def first(self) -> Failure | None:
        """The failure that caused the others."""
        return first_failure(self.failures)

    @property
    def speaker(self) -> Failure | None:
        """The failure whose output explains the attempt: the first one, or a similar one that printed something."""
        first = self.first
        if first is None or first.log_tail.lines:
            return first
        if first.held_up:
            return next((other for other in self.failures if other.log_tail.timed_out), first)
        if first.code < 0:
            return first
        same = (other for other in self.failures if other.code == first.code and not other.stopped)
        return next((other for other in same if other.log_tail.lines), first)


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `status`: for the shell.

    `attempts`: the failed attempts, oldest first; `message`: the engine's own error where no rank failed;
    `refusal`: why no restart followed although some were left.
    """

    status: int
    attempts: tuple[Attempt, ...] = ()
    message: str | None = None
    refusal: str | None = None

    @property
    def first(self) -> Failure | None:
        """The first failure of the last attempt; None after a success."""
        return self.attempts[-1].first if self.status and self.attempts else None

    @property
    def speaker(self) -> Failure | None:
        """The failure whose output explains the last attempt; None after a success."""
        return self.attempts[-1].speaker if self.status and self.attempts else None


def first_failure(failures: Sequence[Failure]) -> Failure | None:
    """The failure that caused the others. `failures`: in the order in which the ranks ended.

    That is the first that is no victim. A failing rank may end after the ranks that lose their connection to it: if all
    ranks that ended by themselves are victims, it is a rank that was stopped and has its own error in its log.
    """
    if failures and failures[0].held_up:
        return failures[0]
    alone = [failure for failure in failures if not failure.stopped]
    for failure in alone:
        if not failure.victim:
            return failure
    for failure in failures:
        if failure.stopped and failure.log_tail.own_error:
            return failure
    return next(iter(alone or failures), None)


def blame(failures: Sequence[Failure], early: Sequence[Failure]) -> tuple[Failure, ...]:
    """The failures, with their cause marked. `early`: ranks that ended with exit code 0 before any other failed, or by
    themselves at about that time, in the order in which they ended.

    A rank that leaves early breaks the collectives of the others: it comes first where nothing else failed.
    Ranks that were killed after a rank hung count as stopped.
    """
    first = first_failure(failures)
    if first is None:
        return tuple(failures)
    if first.hang:
        return tuple(f if f is first or f.code != -signal.SIGKILL else replace(f, stopped=True) for f in failures)
    if early and first.victim and (first.log_tail.collective or first.was_left):
        return (replace(early[0], left=True), *failures)
    return tuple(failures)


def exit_status(code: int) -> int:
    """The shell's status for a returncode: 128 + n for signal n."""
    return code if code >= 0 else 128 - code


def status_of(failure: Failure) -> int:
    """The shell's status for a failure: the rank's own, or 1 where the launcher ended the rank during its error."""
    if failure.left:
        return 1
    return 1 if failure.stopped and failure.code < 0 else exit_status(failure.code)


def in_words(code: int, *, meaning: bool = True) -> str:
    """A returncode for a person: `exit code 7`, `SIGKILL (signal 9): killed from outside ...`."""
    if code >= 0:
        return f"exit code {code}"
    name = signal_name(code)
    words = name if name == f"signal {-code}" else f"{name} (signal {-code})"
    return f"{words}: {MEANINGS[-code]}" if meaning and -code in MEANINGS else words


def signal_name(code: int) -> str:
    """The name of the signal in a returncode: `SIGKILL`, or `signal 63` for one without a name."""
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
