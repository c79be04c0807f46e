"""Why a rank failed, as JSON: written by the trainer or its watchdog, read by the launcher. Standard library only.

torch's agent gives every rank the path of its file in TORCHELASTIC_ERROR_FILE. The key `message` is what torch's own
`@record` writes (torch.distributed.elastic.multiprocessing.errors.ErrorHandler), so that plain torchrun shows it too;
the other keys are the fields of RankReport.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"


@dataclass(frozen=True)
class Place:
    """Where a rank was. `step` and `epoch` count from 1; None before the first step."""

    phase: str
    step: int | None = None
    epoch: int | None = None

    def __str__(self) -> str:
        where = f"step {self.step} (epoch {self.epoch})" if self.step is not None else "before the first step"
        return f"{where}, {self.phase}"


@dataclass(frozen=True, kw_only=True)
class RankReport:
    """Why and where a rank ended.

    kind      "error": it raised; "hang": the watchdog ended it because it made no progress; "left": the watchdog ended
              it because another rank, which `rank` names, had left early
    messages  the messages of the error and of the errors that led to it, in the order in which they were raised
    stack     Python stack of the rank, as the lines of a traceback
    status    exit status of the rank, for an error
    step, epoch, phase   where `rank` was: see Place
    verdict   the watchdog's finding: "hung", "stopped" (by SIGSTOP), "locked" (all ranks wait for one another), "left",
              "device" (a GPU does not answer)
    seconds   time without progress, for a hang
    at, found, advice   for a hang that the launcher ended (--stall-kill), one line each: what the rank did, what held
              the ranks up, what to do about it
    """

    kind: Literal["error", "hang", "left"]
    rank: int
    messages: tuple[str, ...]
    stack: tuple[str, ...] = ()
    status: int | None = None
    step: int | None = None
    epoch: int | None = None
    phase: str = ""
    verdict: str = ""
    seconds: float | None = None
    at: str = ""
    found: str = ""
    advice: str = ""

    @property
    def place(self) -> Place | None:
        """Where the rank was; None where that is not known."""
        return Place(self.phase, self.step, self.epoch) if self.phase else None

    def to_json(self) -> dict[str, Any]:
        """The fields as plain data, and torch's own `message`."""
        now = int(time.time())  # noqa: TID251 (torch sorts the failures of several hosts by it)
        more = {"py_callstack": "\n".join(self.stack), "timestamp": str(now)}
        return {"message": {"message": self.messages[-1], "extraInfo": more}, **asdict(self)}


def from_json(data: Mapping[str, Any]) -> RankReport:
    """The inverse of `to_json`. Errors: KeyError, TypeError for data that is no report."""
    known = {field.name: data[field.name] for field in fields(RankReport)}
    return RankReport(**known | {name: tuple(known[name]) for name in ("messages", "stack")})


def of_error(error: BaseException, *, rank: int, status: int, place: Place | None, message: str = "") -> RankReport:
    """The report of an exception. `message`: what the program prints in place of a traceback."""
    import traceback  # takes milliseconds to import, and the watchdog does not need it

    messages: list[str] = []
    stack: list[str] = []
    if not message:
        stack = "".join(traceback.format_exception(error)).rstrip().splitlines()
        link: traceback.TracebackException | None = traceback.TracebackException.from_exception(error)
        while link is not None:
            lines = "".join(link.format_exception_only()).splitlines()
            # A SyntaxError shows the line of the program before its message.
            first = next((at for at, line in enumerate(lines) if line and not line[0].isspace()), 0)
            messages.insert(0, "\n".join(lines[first:]))
            link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    where = asdict(place) if place is not None else {}
    return RankReport(
        kind="error", rank=rank, messages=tuple(messages) or (message,), stack=tuple(stack), status=status, **where
    )


def write(report: RankReport, path: str | None) -> bool:
    """Write the report to the error file `path`; False where there is no path or it cannot be written."""
    if not path:
        return False
    part = f"{path}.{os.getpid()}.part"
    try:
        # torch raises an error for a half-written file.
        Path(part).write_text(json.dumps(report.to_json()), encoding="utf-8")
        Path(part).replace(path)
    except OSError:
        with suppress(OSError):
            Path(part).unlink()
        return False
    return True


def read(path: Path | None) -> RankReport | None:
    """The report in an error file; None where there is none, or another program wrote the file. Never raises."""
    if path is None:
        return None
    try:
        return from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None
