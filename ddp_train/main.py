"""Entry point of the trainer: under `launch.py`, under `torchrun`, or as a plain Python program.

Options are checked before torch is imported, so that a mistake is answered at once.
Exit status: 0 success; 1 the run failed (diverged); 2 a user's mistake; 130 after Ctrl-C.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    # Run as a file: the packages stand beside this folder, whatever the working directory.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from ddp_train.config import Config, UserError, check_paths, parse

__all__ = ["main"]


LATER_S = 0.3


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the command line says; the exit status."""
    try:
        wanted = parse(sys.argv[1:] if argv is None else argv)
        check_paths(wanted)
        return _run(wanted)
    except UserError as error:
        return _end(f"error: {error}", status=2)
    except KeyboardInterrupt:
        # The last checkpoint stands; a traceback would say nothing that the user does not know.
        return 130


def _end(message: str, *, status: int) -> int:
    """All ranks come to the same end; rank 0 says why, and ends first, so that no other looks like the cause."""
    if os.environ.get("RANK", "0") == "0":
        print(message, file=sys.stderr, flush=True)
    else:
        time.sleep(LATER_S)
    return status


def _run(wanted: Config) -> int:
    from ddp_train import distributed
    from ddp_train.build import build
    from ddp_train.resolve import set_threads
    from ddp_train.trainer import TrainingDiverged

    ranks = distributed.Ranks.from_environment()
    device = distributed.choose_device(wanted.run.device, ranks)
    set_threads(ranks, device)
    distributed.start(ranks, device)
    try:
        run = build(wanted, ranks, device)
        try:
            for observer in run.observers:
                observer.on_start(run.facts)
            run.trainer.fit()
            for observer in run.observers:
                observer.on_end(run.trainer.best)
        finally:
            for observer in run.observers:
                observer.close()
    except TrainingDiverged as error:
        # Rank 0 has curves to draw first.
        distributed.wait_for_all()
        return _end(f"error: {error}", status=1)
    finally:
        distributed.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
