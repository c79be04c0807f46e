"""`ddp_launch.launch`: a function on the planned ranks, in fresh processes, from a script, a REPL or a notebook.

The function and its arguments travel to the ranks by cloudpickle, and the results back, through files in a temporary
folder. The launcher runs in a separate process and starts the ranks from there, so it does not matter what the caller
has done with CUDA, threads or a process group.
"""

from __future__ import annotations

import codecs
import json
import os
import pickle
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from ddp_core.errors import UserError
from ddp_launch.notify.receiver import VARIABLE as NOTIFY
from ddp_launch.run.process_tree import with_pdeathsig

T = TypeVar("T")

PACKAGES = Path(__file__).resolve().parents[1]
RANK_PROGRAM = Path(__file__).resolve().parent / "run" / "function_rank.py"
OF_A_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
OF_ENGINES = ("TORCHELASTIC_", "ROLE_", "GROUP_", "PET_")
USER_ERROR_STATUS = 2
STOP_S = 10.0
"""Seconds that the launcher has to end its ranks after SIGTERM. Then it is killed, which ends them too."""


class LaunchError(RuntimeError):
    """The run failed. `rank`: the rank that failed first, None where no rank did; `status`: the launcher's exit status;
    `traceback`: that rank's traceback, empty where it left none."""

    def __init__(self, message: str, rank: int | None, status: int, traceback: str) -> None:
        super().__init__(message)
        self.rank, self.status, self.traceback = rank, status, traceback

    def __reduce__(self) -> tuple[type[LaunchError], tuple[str, int | None, int, str]]:
        """Pickle all arguments of `__init__`; by default an exception is pickled with its message alone."""
        # A process pool, for example, pickles the exception to send it from a worker to the parent.
        return LaunchError, (str(self), self.rank, self.status, self.traceback)


def launch(
    fn: Callable[..., T],
    /,
    *args: Any,
    nproc: int | None = None,
    gpus: str | int | Iterable[int | str] | None = None,
    cpu: bool = False,
    timeout_s: float | None = None,
    **kwargs: Any,
) -> list[T]:
    """Run `fn(*args, **kwargs)` on every rank of this machine. Returns the results, by rank.

    nproc      number of ranks; None: one for each chosen GPU, or two on the CPU
    gpus       these GPUs, by index or UUID, as in "0,1" or [0, 1]; None: the best group of identical ones
    cpu        use no GPUs
    timeout_s  seconds until the ranks are ended; None: no limit

    Each rank finds torchrun's variables, so that `torch.distributed.init_process_group()` needs no arguments. Results
    are pickled; tensors come back on the CPU. Errors: LaunchError with the traceback of the rank that failed first;
    TimeoutError; UserError for options that cannot be met; TypeError for what cannot be pickled.
    """
    from ddp_launch.run.pickling import dumps

    if not callable(fn):
        raise TypeError(f"{fn!r} is no function: expected one, then its arguments, as in launch(f, 1)")
    if "DDP_LAUNCH" in os.environ and "RANK" in os.environ:
        raise UserError("launch() was called inside a rank of another run: call it before the ranks start")
    with tempfile.TemporaryDirectory(prefix="ddp-launch-call-") as name:
        folder = Path(name)
        try:
            call = dumps((fn, args, kwargs))
        except Exception as error:
            raise TypeError(f"{_name(fn)} and its arguments cannot be sent to the ranks: {error}") from error
        with (folder / "call.pkl").open("wb") as file:
            pickle.dump((sys.path, call), file)
        listed = str(gpus) if gpus is None or isinstance(gpus, str | int) else ",".join(map(str, gpus))
        devices = [*(["--cpu"] if cpu else []), *([] if gpus is None else ["--gpus", listed])]
        number = [] if nproc is None else ["--nproc", str(nproc)]
        # The launcher keeps the logs of a run that failed: the summary names them.
        run = ["--quiet", "--nnodes", "1", "--json-events", str(folder / "events.jsonl")]
        command = [sys.executable, "-m", "ddp_launch", *devices, *number, *run, str(RANK_PROGRAM), name]
        status, last_line = _run(command, timeout_s)
        if status != 0:
            raise _error(folder, status, last_line)
        world_size = int((_last_event(folder, "attempt") or {})["world_size"])
        results = [folder / f"result-{rank:06}.pkl" for rank in range(world_size)]
        for rank, result in enumerate(results):
            if not result.exists():
                message = f"rank {rank} ended before {_name(fn)} returned, with exit code 0: its result is missing"
                raise LaunchError(message, rank, status, _traceback(folder, rank))
        return [pickle.loads(result.read_bytes()) for result in results]  # noqa: S301 (our own ranks')


def _name(fn: Callable[..., Any]) -> str:
    """The function's qualified name."""
    return getattr(fn, "__qualname__", None) or repr(fn)


def _environment() -> dict[str, str]:
    """This process's variables without those of a rank or an engine, which a notebook may have set for itself, and
    without the receivers of messages: the caller sees the outcome without them."""
    kept = {name: value for name, value in os.environ.items() if name not in (*OF_A_RANK, NOTIFY)}
    kept = {name: value for name, value in kept.items() if not name.startswith(OF_ENGINES)}
    # Only the launcher itself needs PYTHONPATH, to find this package from any folder.
    path = [str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
    return kept | {"PYTHONPATH": os.pathsep.join(path)}


def _run(command: Sequence[str], timeout_s: float | None) -> tuple[int, str]:
    """Run the launcher with its output on the caller's streams. Returns its exit status and its last line on stderr.

    A notebook's streams are not files, so the output is read from pipes and written to them as it arrives.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    process = subprocess.Popen(
        with_pdeathsig(command),
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        last_line = _pass_on(process, deadline)
        return process.wait(None if deadline is None else max(0.0, deadline - time.monotonic())), last_line
    except (TimeoutError, subprocess.TimeoutExpired):
        raise TimeoutError(f"the ranks were still running after {timeout_s:g} s, and were ended") from None
    finally:
        _end(process)


def _pass_on(process: subprocess.Popen[bytes], deadline: float | None) -> str:
    """Copy the launcher's output to the caller's streams until it ends. Returns the last line of its standard error."""
    last = ""
    with selectors.DefaultSelector() as ready:
        for source, sink in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
            assert source is not None
            ready.register(source, selectors.EVENT_READ, (codecs.getincrementaldecoder("utf-8")("replace"), sink))
        while ready.get_map():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError
            for key, _ in ready.select(left):
                data = os.read(key.fd, 1 << 16)
                decoder, sink = key.data
                text = decoder.decode(data, final=not data)
                encoding = getattr(sink, "encoding", None) or "utf-8"
                sink.write(text.encode(encoding, "backslashreplace").decode(encoding))
                sink.flush()
                if sink is sys.stderr:
                    last = (last + text)[-4096:]
                if not data:
                    ready.unregister(key.fileobj)
    return next(reversed(last.rstrip().splitlines()), "")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the launcher, and with it the ranks, if it still runs: after a timeout or an interrupt."""
    for stop in (process.terminate, process.kill):
        if process.poll() is None:
            stop()
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _error(folder: Path, status: int, last_line: str) -> Exception:
    """The exception to raise, from the launcher's record of the run and the traceback that the rank left."""
    with suppress(OSError):
        failure = _last_event(folder, "failure")
        if failure is not None:
            rank, advice = failure["rank"], (failure["remedy"] or {}).get("advice")
            traceback = _traceback(folder, rank)
            message = f"rank {rank} failed: {failure['error'] or failure['words']}"
            message += (f" (to do: {advice})" if advice else "") + (f"\n\n{traceback}" if traceback else "")
            return LaunchError(message, rank, status, traceback)
    last_line = last_line.removeprefix("error: ")
    return UserError(last_line) if status == USER_ERROR_STATUS else LaunchError(last_line, None, status, "")


def _last_event(folder: Path, name: str) -> dict[str, Any] | None:
    """The last event of this name in the run's record; None without one."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    return next((event for event in reversed(events) if event["event"] == name), None)


def _traceback(folder: Path, rank: int) -> str:
    """The traceback that a rank left; empty without one."""
    left = folder / f"error-{rank}.txt"
    return left.read_text(encoding="utf-8") if left.exists() else ""
