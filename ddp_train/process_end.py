"""How a rank exits: together with all ranks, one of which prints the reason, or alone and at once. Torch-free.

Used by the trainer (main.py) and by users' own training loops (library/setup.py).
"""

from __future__ import annotations

import atexit
import os
import sys
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn

from ddp_core import rank_report
from ddp_core.errors import SharedError, Stopped, TrainingDiverged, UserError
from ddp_core.process import end_process
from ddp_train.distributed.heartbeat import heartbeat

OTHER_RANKS_WAIT_S = 0.3


def end_with(error: BaseException, *, saves: bool, leave: Callable[[int], NoReturn] | None = None) -> int:
    """End this rank because training raised `error`; returns the exit status where all ranks end together.

    saves: whether the run writes checkpoints. A rank that fails alone does not return but calls `leave` (os._exit) with
    its status: the others wait for it in a collective, and a regular shutdown of the process group would wait, too.
    """
    from ddp_train.distributed import process_group

    first = os.environ.get("RANK", "0") == "0"
    if isinstance(error, SharedError):
        heartbeat.withdraw()
        return end_together(f"error: {error}", status=2, speaks=error.speaks, error=error)
    if isinstance(error, TrainingDiverged):
        process_group.wait_for_all()  # rank 0 draws curves
        return end_together(f"error: {error}", status=1, speaks=first, error=error)
    if isinstance(error, Stopped) and error.together:
        process_group.wait_for_all()  # rank 0 writes a checkpoint
        return end_together(str(error), status=error.status, speaks=first)
    return exit_alone(error, saves=saves, leave=leave)


def end_together(message: str, *, status: int, speaks: bool, error: BaseException | None = None) -> int:
    """End all ranks with this status: the one that `speaks` exits first, so that no other rank looks like the cause."""
    if error is not None:
        report(error, status, message)
    if speaks:
        print(message, file=sys.stderr, flush=True)
    else:
        time.sleep(OTHER_RANKS_WAIT_S)
    return status


def exit_alone(error: BaseException, *, saves: bool, leave: Callable[[int], NoReturn] | None = None) -> NoReturn:
    """End this process at once: one line for a user's mistake and after a signal, else the traceback."""
    status = 1
    if isinstance(error, Stopped):
        status = error.status
        heartbeat.withdraw()
        if os.environ.get("RANK", "0") == "0":
            at = f"at step {heartbeat.step + 1} (epoch {heartbeat.epoch + 1}): what was saved before is still there"
            if not saves:
                at = "before the measurement was done: there is nothing to save"
            elif heartbeat.step < 0:
                at = "before the first step: there is nothing to save"
            print(f"{error} {at}", file=sys.stderr)
    elif isinstance(error, UserError):
        status = 2
        report(error, status, f"error: {error}")
        print(f"error: {error}", file=sys.stderr)
    elif isinstance(error, KeyboardInterrupt):
        status = 130  # the user knows why: no traceback
    else:
        if place := heartbeat.place:
            error.add_note(f"rank {os.environ.get('RANK', '0')} was at {place}")
        report(error, status)
        traceback.print_exception(error)
    heartbeat.fail()
    sys.stdout.flush()
    sys.stderr.flush()
    (leave or os._exit)(status)


def end_after_traceback(otherwise: Callable[[], object]) -> None:
    """Make the error that is being raised end this process as soon as its traceback is shown, unless it is caught.

    The other ranks wait for this one in a collective, and Python's regular exit would wait, too. otherwise: called at
    process exit if the error was caught.
    """
    show = sys.excepthook

    def shown(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Show the traceback, then end the process at once."""
        show(kind, error, trace)
        atexit.unregister(otherwise)
        end_process(130 if issubclass(kind, KeyboardInterrupt) else 1)

    sys.excepthook = shown
    atexit.register(otherwise)


def report(error: BaseException, status: int, message: str = "") -> None:
    """Write the error for the launcher, or torchrun, into the error file of this rank."""
    rank = int(os.environ.get("RANK", "0"))
    found = rank_report.of_error(error, rank=rank, status=status, place=heartbeat.place, message=message)
    rank_report.write(found, os.environ.get(rank_report.ERROR_FILE))
