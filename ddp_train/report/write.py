"""Writes report.html into a run folder at the end of a run; it can neither fail the run nor delay its end for long."""

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
"""Bytes near the beginning of each file that show that it was written by this project."""


def write_page(folder: Path, output: Path | None = None) -> Path:
    """Write the page of a run; returns its path. output: a path in place of report.html. Errors: UserError."""
    from ddp_train.report.page import page

    path = output or folder / PAGE
    if output is None and is_foreign(path):
        raise UserError(f"{path} is another program's: -o FILE writes the page of the run somewhere else")
    write_text(path, page(read_run(folder)))
    return path


def is_foreign(path: Path) -> bool:
    """Whether a file of this name was written by another program: a --log-dir may hold a user's own files."""
    try:
        with path.open("rb") as file:
            return MARKS[path.name] not in file.read(4096)
    except OSError:
        return False


def write_page_if_possible(folder: Path) -> None:
    """As `write_page`, after a run: a page that cannot be written only causes one line on stderr."""
    reason: list[str] = []

    def write() -> None:
        """Write the page; keep the reason if that fails."""
        try:
            write_page(folder)
        except Exception as error:
            reason.append(" ".join(str(error).split())[:300] or type(error).__name__)

    # A disk that hangs may block the thread; the process can end without it.
    writer = threading.Thread(target=write, daemon=True)
    try:
        writer.start()
        writer.join(LIMIT_S)
        if writer.is_alive():
            reason.append(f"not done after {LIMIT_S:.0f} s")
    except (KeyboardInterrupt, SystemExit):  # the run is over, and its exit status stays
        reason.append("interrupted")
    except RuntimeError as error:  # no thread can be started
        reason.append(str(error))
    if reason:
        print(f"warning: {folder / PAGE} was not written: {reason[0]}", file=sys.stderr, flush=True)
