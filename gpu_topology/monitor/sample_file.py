"""Samples as JSON Lines: one object per line, each line written completely before the next sample.

    {"time": ISO 8601 with offset, "seconds": since the start, by a clock that is never set back, "gpus": [one object
    with the fields of `GpuSample` for each]}

docs/monitor.md describes every key.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

from ddp_core.errors import TopologyError
from gpu_topology.monitor.sampler import Sample
from gpu_topology.monitor.usage import rounded


def sample_json(sample: Sample) -> dict[str, object]:
    """One line as an object. The key `error` exists only for a lost GPU."""
    gpus = [{name: value for name, value in asdict(gpu).items() if name != "error" or value} for gpu in sample.gpus]
    return {
        "time": sample.time.isoformat(timespec="milliseconds"),
        "seconds": round(sample.seconds, 3),
        "gpus": [rounded(gpu) for gpu in gpus],
    }


@contextmanager
def open_sample_file(path: str | None) -> Iterator[Callable[[Sample], None]]:
    """A function that appends a sample to the file; "-" is stdout, None writes nothing.

    The existing content of the file is kept. TopologyError naming the file when it cannot be written.
    """
    if path is None:
        yield lambda sample: None
        return
    if path == "-":
        yield lambda sample: print(_line(sample), end="", flush=True)
        return
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise _refused(path, error) from None
    try:
        if _is_torn(path):
            _write(file, path, "\n")
        yield lambda sample: _write(file, path, _line(sample))
    finally:
        os.close(file)


def _line(sample: Sample) -> str:
    """A sample as one line of JSON."""
    return json.dumps(sample_json(sample), separators=(",", ":")) + "\n"


def _write(file: int, path: str, text: str) -> None:
    """Write in one call, if the system takes it all: lines of two monitors on one file do not mix."""
    data = text.encode()
    try:
        while data:
            data = data[os.write(file, data) :]
    except OSError as error:
        raise _refused(path, error) from None


def _is_torn(path: str) -> bool:
    """Whether the file ends within a line, as after a crash of the machine: the next sample needs its own line."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode) or file.seek(0, os.SEEK_END) == 0:
                return False
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:
        return False  # a file that may be written but not read


def _refused(path: str, error: OSError) -> TopologyError:
    """The error for a file that cannot be written."""
    return TopologyError(f"cannot write {path}: {error.strerror or error}")
