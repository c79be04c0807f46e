"""One short torchrun job under a time limit: started, watched, and ended as a whole, whatever its ranks do.

The job's processes carry the name of its folder in their environment, which is how every one of them is found again.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gpu_topology.verify.journal import FOLDER_VARIABLE, Record, read_record

PACKAGES = Path(__file__).resolve().parents[2]
PR_SET_PDEATHSIG = 1
# Seconds to wait at most for a process to end: one inside a driver call ends only when the call does.
END_S = 5.0
LAST_LINES = 12


@dataclass(frozen=True, slots=True)
class JobResult:
    """How a job ended.

    status    torchrun's exit status, None where the time limit ended it
    seconds   from start to end
    records   what each rank has written down
    codes     rank -> exit code as in subprocess (-n: signal n), for the ranks that torchrun reports as failed
    words     by rank, the last lines of its stderr, with NCCL's warnings
    talk      the last lines of torchrun itself
    left      processes that survive even SIGKILL: they hang in the driver
    """

    status: int | None
    seconds: float
    records: tuple[Record, ...]
    codes: Mapping[int, int]
    words: tuple[tuple[str, ...], ...]
    talk: tuple[str, ...] = ()
    left: tuple[int, ...] = ()


def run_job(
    worker: Sequence[str],
    *,
    ranks: int,
    environment: Mapping[str, str],
    time_limit_s: float,
    options: Sequence[str] = (),
) -> JobResult:
    """Run `worker` (the program and its arguments) on `ranks` ranks of this machine. `options`: more of torchrun's own.

    `environment` is the job's complete environment. No process of the job survives, however this function ends.
    """
    with tempfile.TemporaryDirectory(prefix="gpu-topology-verify-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        begin = time.monotonic()
        status, left = _run(_command(folder, ranks, options, worker), _environment(environment, folder), time_limit_s)
        talk = _lines(folder / "torchrun.log")
        return JobResult(
            status=status,
            seconds=time.monotonic() - begin,
            records=tuple(read_record(folder, rank) for rank in range(ranks)),
            codes=_codes(talk),
            words=tuple(_words(folder, rank) for rank in range(ranks)),
            talk=tuple(talk[-LAST_LINES:]),
            left=left,
        )


def _command(folder: Path, ranks: int, options: Sequence[str], worker: Sequence[str]) -> list[str]:
    """torchrun's command line. Every option is given: torchrun takes missing ones from the user's variables (PET_...).

    The ranks meet in a file, so that the job neither listens on a port nor asks for the name of this host.
    """
    return [
        *(sys.executable, "-m", "torch.distributed.run"),
        *("--nnodes=1", f"--nproc-per-node={ranks}", "--node-rank=0", "--max-restarts=0", "--monitor-interval=0.1"),
        *("--rdzv-backend=c10d", f"--rdzv-endpoint={folder / 'store'}", "--rdzv-conf=store_type=file"),
        *("--rdzv-id=verify", "--local-addr=127.0.0.1", f"--log-dir={folder / 'logs'}", "--redirects=3", "--tee=0"),
        *options,
        *worker,
    ]


def _environment(given: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The environment of the job: one machine, over loopback unless the user's variables say otherwise."""
    kept = {name: value for name, value in given.items() if not name.startswith(("PET_", "TORCHELASTIC_"))}
    # On one machine loopback suffices for the bootstrap and is private. NCCL's warnings explain what its errors do not.
    defaults = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", "NCCL_DEBUG": "WARN"}
    return {
        **defaults,
        **kept,
        FOLDER_VARIABLE: str(folder),
        "TMPDIR": str(folder),
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        # The ranks find this package wherever it is, and do not import a torch.py from the current folder.
        "PYTHONPATH": os.pathsep.join(filter(None, (str(PACKAGES), kept.get("PYTHONPATH")))),
        "PYTHONSAFEPATH": "1",
    }


def _run(command: list[str], environment: dict[str, str], time_limit_s: float) -> tuple[int | None, tuple[int, ...]]:
    """Run torchrun; its exit status, None at the time limit, and the processes that do not end."""
    folder = environment[FOLDER_VARIABLE]
    process: subprocess.Popen[bytes] | None = None
    left: tuple[int, ...] = ()
    try:
        with (Path(folder) / "torchrun.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C is for this process, which ends the job in its own way.
                start_new_session=True,
                preexec_fn=_dies_with(os.getpid()),
            )
        status: int | None = process.wait(time_limit_s)
    except subprocess.TimeoutExpired:
        status = None
    finally:
        left = _end_all(f"{FOLDER_VARIABLE}={folder}".encode())
        if process is not None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_S)
    return status, left


def _dies_with(parent: int) -> Callable[[], None]:
    """A function to run in the new process, which makes the kernel kill it when this one dies, also by SIGKILL."""
    prctl = ctypes.CDLL(None).prctl

    def prepare() -> None:
        """Ask for SIGKILL at the parent's end; exit if the parent has already ended."""
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return prepare


def _end_all(mark: bytes) -> tuple[int, ...]:
    """Send SIGKILL to every process with the mark until none is left; the processes that do not end within END_S."""
    deadline = time.monotonic() + END_S
    while pids := _marked(mark):
        for pid in pids:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return pids
        time.sleep(0.01)
    return ()


def _marked(mark: bytes) -> tuple[int, ...]:
    """The ids of the processes that have the mark in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        # A process that has ended, or is another user's, has no environment to read.
        with suppress(OSError):
            if entry.name.isdecimal() and mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return tuple(found)


def _codes(talk: Sequence[str]) -> dict[int, int]:
    """Rank -> exit code, from torchrun's summary: each failed rank has `rank : 1 (...)` and `exitcode : -11 (...)`."""
    codes: dict[int, int] = {}
    rank: int | None = None
    for line in talk:
        if match := re.match(r"\s*(rank|exitcode)\s*: (-?\d+) \(", line):
            if match[1] == "rank":
                rank = int(match[2])
            elif rank is not None:
                codes.setdefault(rank, int(match[2]))
    return codes


def _words(folder: Path, rank: int) -> tuple[str, ...]:
    """The last lines of a rank: NCCL's warnings, which it writes to stdout, then those of stderr."""
    logs = f"logs/*/attempt_0/{rank}"
    warnings = [line for path in folder.glob(f"{logs}/stdout.log") for line in _lines(path) if "NCCL WARN" in line]
    said = [line for path in folder.glob(f"{logs}/stderr.log") for line in _lines(path)]
    return (*warnings[-LAST_LINES // 2 :], *said[-LAST_LINES:])


def _lines(path: Path) -> list[str]:
    """The lines of the file's last 64 KiB that are not blank; [] where there is no file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 2**16))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()]
