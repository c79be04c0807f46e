"""The end of a failed rank's logs: the traceback, what kind of error it is, and how to show it.

The messages come from the rank's own report (ddp_core/rank_report.py) where there is one, else from the traceback.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, takewhile
from pathlib import Path
from typing import BinaryIO

TAIL_BYTES = 256 * 1024
LONGEST_LINE = 256 * 2**20
LINE_CHARS = 2000
OUTPUT_LINES = 6
COMPLAINTS = 100
CHILD_LINES = 4
"""Most unindented lines, first line and message included, of a child's traceback that precedes its parent's."""
CONTINUED_LINES = 100
"""Most log lines after a traceback that was logged and may have ended the program. With more, it was handled."""

TRACEBACK = re.compile(r"\s*([|+] )?(Exception Group )?Traceback \(most recent call last\):")
# A progress bar (tqdm) ends without a line break, and a traceback then begins on its line.
BAR_BEFORE = re.compile(
    r"(.*(?:\[[\d:]+[<,].{0,500}/.{0,500}\]|it/s|s/it)) *((?:\[rank\d+\]: ?)?" + TRACEBACK.pattern + r")$"
)
# The line before a traceback of something else than the program's end: Python prints it and continues.
ASIDE = re.compile(r"^(Exception ignored (in|on|while)\b|Exception in thread |Error in atexit\._run_exitfuncs)")
# How loguru marks the frame that caught the error, at the margin.
CAUGHT_HERE = re.compile(r'^> File ".*", line \d+')
# How Python draws an exception group: a bar before each line, and a rule between the exceptions that it holds.
GROUP_BAR, GROUP_RULE = re.compile(r"^\s+\| ?"), re.compile(r"^\s+\+[-+]{3,}")
GROUP_TITLE = re.compile(r"\(\d+ sub-exceptions?\)$")
# Errors of a program because another program that it started has failed: what that one printed before is the cause.
CHILD = re.compile(r"^(subprocess\.CalledProcessError|torch\.distributed\.elastic\.\S+\.ChildFailedError): ?")
LINK = re.compile(r"(The above exception was the direct cause|During handling of the above exception)")
CONTROL = re.compile(
    r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-Z\\-_])|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"
)
RANK_PREFIX = re.compile(r"^\[rank\d+\]: ?")
# Lines that torch adds after a traceback: its log, and the C++ side of an exception.
NOISE = re.compile(
    r"^(\[rank\d+\]:)?\[?[WEI]\d{3,} .*\]|^\s*frame #\d+: |^Exception raised from .*\(most recent call first\)"
)
# Log lines below the level of an error did not end the program. NCCL's WARN is an error.
HARMLESS = re.compile(
    r"^(\[rank\d+\]:)?\[[WI]\d{3,} |(?<!NCCL )\b(DEBUG|INFO|WARN|WARNING)\b|^\W*(debug|info|note|warn|warning)\b"
    r"|Warning: "
)
# A line of a log, or of an exit hook.
LOG_LINE = re.compile(
    r"^(wandb|mlflow): |^\W?(\d{4}[-/]\d\d[-/]\d\d[ T])?\d\d:\d\d:\d\d\b|^(DEBUG|INFO|WARNING|ERROR|CRITICAL):[\w.]+:"
)
# What native code prints when it aborts. If this follows a traceback, the interpreter was already closing.
NATIVE_ABORT = re.compile(r"^(terminate called |libc\+\+abi: terminating|Fatal Python error: Aborted)")
# How gloo, NCCL, torch's store, Python and the kernel report a peer that is gone.
LOST = re.compile(
    r"connection closed by peer|connection (was )?reset|connection refused|connection was likely closed|connection lost"
    r"|connection (aborted|error)|connection(reset|aborted|refused)?error|broken ?pipe|socket (was )?closed"
    r"|failed to recv, got 0 bytes|failed to connect to|distnetworkerror|distbackenderror"
    r"|remote process exited|ncclremoteerror|communicator was aborted",
    re.IGNORECASE,
)
# Distributed errors caused by the rank that reports them, or by no single rank.
NOT_LOST = re.compile(
    r"unhandled cuda error|out of memory|invalid usage|duplicate gpu|collective operation timeout|timed out waiting"
    r"|address already in use|no space left|shared memory|https?connectionpool|urlopen error",
    re.IGNORECASE,
)
COLLECTIVE = re.compile(
    r"gloo|nccl|c10d|torch/distributed|DistNetworkError|DistStoreError|\[\w+\.cc:\d+\]", re.IGNORECASE
)
# A log line to which the traceback below it belongs, as logging's `exception` writes it.
LOGGED = re.compile(r"\b(ERROR|CRITICAL|FATAL)\b")
TIMED_OUT = re.compile(
    r"collective operation timeout|timed out waiting|wait timeout after \d+ms|seconds waiting for clients",
    re.IGNORECASE,
)
UNWOUND = re.compile(r"KeyboardInterrupt|SystemExit|SIGTERM|SignalException")


@dataclass(frozen=True)
class LogTail:
    """The end of a rank's standard error, or of its standard output where that is empty.

    `lines`: without blank ones at the end, without torch's prefix; `source`: their file; `reported`: the messages of
    the rank's own report; `output`: the end of its standard output, where `lines` are standard error without a
    traceback: programs write errors to either.
    """

    lines: tuple[str, ...] = ()
    source: Path | None = None
    reported: tuple[str, ...] = ()
    output: tuple[str, ...] = ()

    @cached_property
    def traceback(self) -> tuple[str, ...]:
        """The last traceback with those that led to it, up to the end or to what Python printed aside after it; empty
        where there is none. If a program raised because a program that it had started failed: the traceback of the
        started program."""
        if (start := self._start) is None:
            return ()
        if any(map(CHILD.match, self.lines[start:])) and not any(map(LINK.match, self.lines[start:])):
            child = _last_traceback(self.lines[:start])
            found = _without_asides(self.lines[child:start])
            at_margin = [line for line in found if line.strip() == line != "" and not NOISE.match(line)]
            if child is not None and len(at_margin) <= CHILD_LINES:
                return found
        return _without_asides(self.lines[start:])

    @cached_property
    def abort(self) -> str:
        """What native code printed when it aborted after the last traceback; empty where it did not."""
        after = () if self._start is None else self.lines[self._start :]
        return next((line for line in after if NATIVE_ABORT.match(line)), "")

    @cached_property
    def _start(self) -> int | None:
        """The index in `lines` at which the last traceback begins."""
        return _last_traceback(self.lines)

    @cached_property
    def messages(self) -> tuple[str, ...]:
        """The messages of the errors in the last traceback, in the order in which they were raised."""
        if self.reported:
            return self.reported
        found: list[list[str]] = []
        message: list[str] = []
        inside = True
        to_abort = takewhile(lambda line: not NATIVE_ABORT.match(line), self.traceback)
        for drawn in (line for line in to_abort if not NOISE.match(line)):
            line = GROUP_BAR.sub("", drawn)
            if TRACEBACK.match(line) or LINK.match(line) or GROUP_RULE.match(drawn):
                inside = True
            elif inside:
                if line and not line[0].isspace() and not CAUGHT_HERE.match(line):
                    message = [line]
                    found.append(message)
                    inside = False
            elif LOG_LINE.match(line):
                message = []  # the error's message ends here
            else:
                message.append(line)
        # An exception group counts as the exceptions in it: its own title only gives their number.
        single = [message for message in found if not GROUP_TITLE.search(message[0])]
        return tuple("\n".join(message).strip() for message in single or found)

    @property
    def cause(self) -> str:
        """The first message of the last traceback; the last lines where there is no traceback."""
        return self.messages[0] if self.messages else "\n".join(self.complaints[-10:])

    @property
    def complaints(self) -> tuple[str, ...]:
        """Its last lines, without log lines below the level of an error."""
        lines = (*self.output, *self.lines)
        return tuple(line for line in lines[-COMPLAINTS:] if not HARMLESS.search(line))

    @property
    def error(self) -> str:
        """What went wrong, in one line; empty where the rank printed nothing."""
        lines = self.messages[-1].splitlines() if self.messages else self.shown(1)
        return lines[0] if lines else ""

    @property
    def lost_connection(self) -> bool:
        """Whether the rank lost the connection to another."""
        return bool(LOST.search(self.cause)) and not NOT_LOST.search(self.cause)

    @property
    def collective(self) -> bool:
        """Whether the error came from torch's communication; a lost connection may also be one to some server."""
        return bool(COLLECTIVE.search("\n".join(self.traceback or self.lines)))

    @property
    def own_error(self) -> bool:
        """Whether there is an error that is neither a lost connection nor a signal."""
        return bool(self.traceback) and not self.lost_connection and not UNWOUND.search(self.cause)

    @property
    def timed_out(self) -> bool:
        """Whether this rank waited in a collective until its time limit."""
        return bool(TIMED_OUT.search("\n".join(self.lines)))

    @property
    def _with_what_led_to_it(self) -> tuple[str, ...]:
        """The last traceback, after the log line that it belongs to or after the output of the program that it names
        as the cause; empty if there is no such line."""
        if not (found := self.traceback) or self.lines[self._start :][: len(found)] != found:
            return ()
        before = self.lines[: self._start]
        if any(map(CHILD.match, found)):
            return (*before[-CHILD_LINES:], *found)
        return (*before[-1:], *found) if any(map(LOGGED.search, before[-1:])) else ()

    def shown(self, count: int) -> tuple[str, ...]:
        """At most `count` lines for a person: the traceback if there is one, without torch's noise after it."""
        kept = [line for line in self._with_what_led_to_it or self.traceback or self.lines if not NOISE.match(line)]
        while kept and not kept[-1].strip():
            kept.pop()
        output = self.output[-min(OUTPUT_LINES, count // 2) :] if count > 1 else ()
        return (*output, *kept[-(count - len(output)) :])


def read(logs: Sequence[Path], reported: tuple[str, ...] = ()) -> LogTail:
    """The end of a rank's logs, which are standard output and standard error. Never raises."""
    found = [(log, lines) for log in reversed(logs) if (lines := tail(log))]
    if len(found) > 1 and found[0][1] == found[1][1]:
        # Both streams of the rank go to one place, in order, and each log has everything.
        del found[1:]
    with_traceback = next(((log, lines) for log, lines in found if _last_traceback(lines) is not None), None)
    log, lines = with_traceback or next(iter(found), (None, []))
    output = [line for _, more in found[1:] for line in more[-OUTPUT_LINES:]] if with_traceback is None else []
    return LogTail(tuple(lines), log, reported, tuple(output))


def tail(path: Path) -> list[str]:
    """The last lines of a log, without blank ones at its end; [] where there is none. Never raises."""
    try:
        with path.open("rb") as file:
            text = _end(file).decode("utf-8", errors="replace")
    except OSError:
        return []
    lines = (part for line in text.replace("\r\n", "\n").rstrip().split("\n") for part in _seen(line))
    return [_shortened(RANK_PREFIX.sub("", line)) for line in lines] if text.strip() else []


def _seen(line: str) -> Sequence[str]:
    """A line without control sequences of a terminal and without text that a carriage return overwrote; as two lines
    where a traceback begins after a progress bar."""
    line = CONTROL.sub("", line).rpartition("\r")[2]
    found = BAR_BEFORE.match(line) if line.endswith("Traceback (most recent call last):") else None
    return (line,) if found is None else found.group(1, 2)


def _end(file: BinaryIO) -> bytes:
    """The last bytes of a log, the beginning of the line in which they begin, and the text before that line: it may be
    an error's message of megabytes, with its traceback before it."""
    begin = max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES)
    at, earlier = begin, b""
    while at > max(0, begin - LONGEST_LINE) and b"\n" not in earlier:
        at = max(0, at - TAIL_BYTES)
        file.seek(at)
        earlier = file.read(min(TAIL_BYTES, begin - at))
    file.seek(begin)
    last = file.read()
    start = at + earlier.rfind(b"\n") + 1
    # Of a long line, keep only as much of the beginning as is shown; its end is among the last bytes.
    file.seek(max(0, start - TAIL_BYTES))
    return file.read(min(start, TAIL_BYTES) + min(begin - start, LINE_CHARS)) + last


def _shortened(line: str) -> str:
    """A line of thousands of characters is data: keep only its two ends."""
    return line if len(line) <= LINE_CHARS else f"{line[: LINE_CHARS // 2]} ... {line[-LINE_CHARS // 2 :]}"


def _last_traceback(lines: Sequence[str]) -> int | None:
    """The index at which the last traceback begins, including those that it names as its cause; None without one.

    Not one that was logged long before the end. What Python printed aside counts only where there is nothing else.
    """
    every = [index for index, line in enumerate(lines) if TRACEBACK.match(line)]
    starts = every[:1] + [
        start
        for before, start in pairwise(every)
        if not (GROUP_BAR.match(lines[start]) or any(map(LINK.match, lines[before:start])))
    ]
    logs = [index for index, line in enumerate(lines) if LOG_LINE.match(line)]
    recent = logs[-CONTINUED_LINES - 1] if len(logs) > CONTINUED_LINES else 0
    ending = [start for start in starts if start >= recent or not (start and LOGGED.search(lines[start - 1]))]
    own = [start for start in ending if not (start and ASIDE.match(lines[start - 1]))]
    return next(reversed(own or ending), None)


def _without_asides(lines: Sequence[str]) -> tuple[str, ...]:
    """The lines up to those that Python printed aside."""
    return tuple(takewhile(lambda line: not ASIDE.match(line), lines))
