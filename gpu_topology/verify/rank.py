"""`python -m gpu_topology.verify.rank`: one rank of verify's job, started by torchrun, never by hand.

It first makes sure that it ends with torchrun, then imports torch with the worker, and records each step.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
import traceback
from pathlib import Path

from gpu_topology.verify.journal import FOLDER_VARIABLE, Journal, Refused, Step

PR_SET_PDEATHSIG = 1


def main() -> int:
    """Work through all steps; the exit status: 0 also where data were wrong, 1 after an exception."""
    folder = os.environ[FOLDER_VARIABLE]
    _die_with_parent(folder)
    parser = argparse.ArgumentParser()
    parser.add_argument("--backend", choices=("gloo", "nccl"), required=True)
    parser.add_argument("--copies", action="store_true")
    arguments = parser.parse_args()
    journal = Journal(Path(folder), int(os.environ["RANK"]))
    start = Step("start")
    journal.begin(start)
    try:
        from gpu_topology.verify import worker

        worker.work(journal, start, Path(folder), arguments.backend, copies=arguments.copies)
    except Refused as error:
        journal.fail(str(error))
        return 1
    except Exception as error:
        journal.fail(f"{type(error).__name__}: {' '.join(str(error).split())}")
        traceback.print_exc()
        return 1
    return 0


def _die_with_parent(folder: str) -> None:
    """Make the kernel kill this process with its parent, torchrun; exit at once where that has already ended."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    mark = f"{FOLDER_VARIABLE}={folder}".encode()
    try:
        gone = mark not in Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
    except OSError:
        gone = os.getppid() == 1
    if gone:
        sys.exit("torchrun has gone")


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is recorded. The teardown of CUDA and NCCL is not tested here, and may crash or hang.
    os._exit(status)
