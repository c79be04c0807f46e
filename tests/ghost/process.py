"""Ghost GPUs in processes that a test starts, and in all that these start: see site/sitecustomize.py.

Environment variables of such a process: GHOST_MACHINE (machines.py); GHOST_REPORT, a folder for one JSON file a process
with its waits; GHOST_STUCK_FROM, the step from which on its GPU does not answer; GHOST_MEMORY, bytes that torch may
have of each GPU.
"""

from __future__ import annotations

import atexit
import json
import os
from pathlib import Path
from typing import Any, NoReturn

from .install import Ghost, for_ever
from .machines import gpus_here

SITE = str(Path(__file__).parent / "site")


def begin() -> None:
    """Put the ghost in place, and see to its report."""
    gpus = gpus_here()
    if not gpus:
        return
    ghost = for_ever(*gpus)
    if memory := os.environ.get("GHOST_MEMORY"):
        for gpu in gpus:
            gpu.fraction = int(memory) / gpu.total
    if step := os.environ.get("GHOST_STUCK_FROM"):
        ghost.collectives.stuck_from = int(step)
    if folder := os.environ.get("GHOST_REPORT"):
        _report_at_the_end(ghost, Path(folder), os.getpid())


def _report_at_the_end(ghost: Ghost, folder: Path, process: int) -> None:
    leave = os._exit

    def report() -> None:
        if os.getpid() == process:  # and not a worker of the loader's
            rank = os.environ.get("RANK", "alone")
            (folder / f"rank-{rank}-{process}.json").write_text(json.dumps(_document(ghost), indent=1))

    def leave_with_report(status: int) -> NoReturn:
        report()
        leave(status)

    atexit.register(report)
    os._exit = leave_with_report


def _document(ghost: Ghost) -> dict[str, Any]:
    waits = [[*wait, count] for wait, count in ghost.waits.counts.most_common()]
    gpus = [{"name": gpu.name, "uuid": gpu.uuid, "queued": gpu.queued, "peak": gpu.peak} for gpu in ghost.gpus]
    return {"waits": waits, "gpus": gpus, "current": ghost.current, "collectives": ghost.collectives.issued}


def reports(folder: Path) -> dict[str, dict[str, Any]]:
    """What the processes have left in GHOST_REPORT: by rank, "0", "1" or "alone"; of several attempts the last."""
    files = sorted(folder.glob("rank-*.json"), key=lambda file: file.stat().st_mtime)
    return {file.name.split("-")[1]: json.loads(file.read_text()) for file in files}
