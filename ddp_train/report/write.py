"""Writes report.html into a run folder at the end of a run, which it can neither fail nor hold up for long."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from ddp_core.errors import UserError
from ddp_core.files import write_text
from ddp_train.report.read_run import EVENTS, PAGE, PLAN, TOPOLOGY, read_run

LIMIT_S = 10.0
MARKS = {
    PAGE: b'name="generator" content="ddp-launch"',
    PLAN: b'"selection"',
    TOPOLOGY: b'"gpu-topology/',
    EVENTS: b'{"event": ',
}
"""What our own files have near their beginning."""


def write_page(folder: Path, output: Path | None = None) -> Path:
    """Write the page of a run; its path. output: in place of report.html in the folder. Errors: UserError."""
    from ddp_train.report.page import page

    path = output or folder / PAGE
    if output is None and is_foreign(path):
        raise UserError(f"{path} is another program's: -o FILE writes the page of the run somewhere else")
    write_text(path, page(read_run(folder)))
    return path


def is_foreign(path: Path) -> bool:
    """Whether a file with the name of one of ours is another program's: a --log-dir may hold what a user has made."""
    try:
        with path.open("rb") as file:
            return MARKS[path.name] not in file.read(4096)
    except OSError:
        return False


def write_page_if_possible(folder: Path) -> None:
    """As `write_page`, after a run: what keeps the page from being written is one line on stderr."""
    reason: list[str] = []

    def write() -> None:
        try:
            write_page(folder)
        except Exception as error:
            reason.append(" ".join(str(error).split())[:300] or type(error).__name__)

    # A disk that hangs may keep the thread; the process ends without it.
    writer = threading.Thread(target=write, daemon=True)
    try:
        writer.start()
        writer.join(LIMIT_S)
        if writer.is_alive():
            reason.append(f"not done after {LIMIT_S:.0f} s")
    except (KeyboardInterrupt, SystemExit):  # the run is over, and so is its status
        reason.append("interrupted")
    except RuntimeError as error:  # no thread can be started
        reason.append(str(error))
    if reason:
        print(f"warning: {folder / PAGE} was not written: {reason[0]}", file=sys.stderr, flush=True)
