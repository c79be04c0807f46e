"""Image files to uint8 arrays: one at a time, or a whole dataset by one process per core.

Processes rather than threads: for small images most of the time is spent in Python. They are forked, write to memory
that they share with the caller, and end when it does.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import math
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ddp_core.errors import UserError
from ddp_train.data.sources.pixels import Extent, Reading, Unreadable, as_rgb, is_sideways, opened
from gpu_topology.host.host import read_host

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_BLOCK = 64  # files per unit of work
_SMALL = 256  # fewer files are not worth starting processes
_PROBES = 1024
_HELD = (signal.SIGINT, signal.SIGTERM)
_FINER = 2  # a JPEG is decoded at the smallest of its scales that is at least this many times the size needed
AS_STORED = Reading()
_REFUSED = {  # bytes among the first 12 of a file -> reason
    b"II*\0": "a TIFF of a form that Pillow does not read",
    b"MM\0*": "a TIFF of a form that Pillow does not read",
    b"ftyphei": "HEIC: convert it to JPEG",
    b"ftypmif1": "HEIC: convert it to JPEG",
    b"version http": "a pointer of Git LFS, not the image: git lfs pull",
    b"<!DOCTYPE": "a web page",
    b"<html": "a web page",
}


def read_image(path: str | Path, size: tuple[int, int], reading: Reading = AS_STORED) -> np.ndarray:
    """uint8 [H, W, 3] of `size` (height, width). Errors: UserError naming a file that is no readable image."""
    try:
        return read_unchanged(path, size, reading)
    except Unreadable as error:
        raise UserError(f"{path}: {error}") from error


def read_unchanged(
    path: str | Path, size: tuple[int, int], reading: Reading, stamp: np.ndarray | None = None
) -> np.ndarray:
    """As read_image, of an unchanged file. stamp: int64 [3], listed size, mtime in ns, inode. Errors: Unreadable."""
    return _decoded(_content(path, stamp), size, reading)[0]


def _content(path: str | Path, stamp: np.ndarray | None = None) -> bytes:
    """The content of a file that has not changed since its stamp. Errors: Unreadable."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 (a Path for each file is slow)
            if stamp is not None:
                facts = os.fstat(file.fileno())
                if (facts.st_size, facts.st_mtime_ns) != (stamp[0], stamp[1]):
                    raise Unreadable("has changed since the run started")
            return file.read()
    except OSError as error:
        raise Unreadable(f"cannot be read ({error.strerror or error})") from error


def _decoded(content: bytes, size: tuple[int, int], reading: Reading) -> tuple[np.ndarray, Extent | None]:
    """Decode an image file's content. Errors: Unreadable for whatever Pillow's decoders raise, and MemoryError."""
    if not content:
        raise Unreadable("is empty")
    try:
        with opened(io.BytesIO(content), reading) as image:
            if image.format == "JPEG" and reading.resize is None:  # torchvision scales from all pixels
                height, width = reversed(size) if is_sideways(image) else size
                scale = _FINER * max(width / image.width, height / image.height)
                image.draft(None, (math.ceil(image.width * scale), math.ceil(image.height * scale)))
            rgb, extent = as_rgb(image, reading)
            return fit(rgb, size, reading.resize), extent
    except (MemoryError, Unreadable):
        raise
    except Exception as error:  # each decoder has its own: OSError, ValueError, SyntaxError, struct.error, ...
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = next(
                (why for mark, why in _REFUSED.items() if mark in content[:12]), "not an image that Pillow knows"
            )
        raise Unreadable(f"cannot be read as an image ({reason})") from error


def fit(image: Image.Image, size: tuple[int, int], resize: int | None = None) -> np.ndarray:
    """Scale an RGB image until it covers `size` (height, width), and cut out the centre: uint8 [H, W, 3].

    resize: scale its shorter side to this many pixels instead, as torchvision's Resize(resize) and CenterCrop(size) do.
    Only the part that is kept is scaled; otherwise a narrow image would become huge.
    """
    wanted = size[::-1]
    if resize is None and image.size == wanted:
        return np.asarray(image)
    starts, ends = [], []
    scale = max(kept / side for kept, side in zip(wanted, image.size, strict=True))
    for side, kept in zip(image.size, wanted, strict=True):
        if resize is None:
            start = max(0, side - kept / scale) / 2
            end = side - start
        else:  # as in torchvision, the longer side and the corner are whole pixels
            scaled = int(resize * side / min(image.size))
            corner = round((scaled - kept) / 2)
            start, end = corner * side / scaled, (corner + kept) * side / scaled
        starts.append(start)
        ends.append(end)
    return np.asarray(image.resize(wanted, Image.Resampling.BILINEAR, box=(starts[0], starts[1], ends[0], ends[1])))


def probe_size(paths: Sequence[str], reading: Reading = AS_STORED) -> tuple[int, int] | None:
    """(height, width) of the upright images, or None where sizes differ; read from the headers of up to 1024 images,
    evenly spread. Unreadable ones are skipped."""
    sizes: Counter[tuple[int, int]] = Counter()
    for path in paths[:: max(1, len(paths) // _PROBES)]:
        with suppress(Exception), opened(path, reading) as image:
            sizes[image.size if is_sideways(image) else (image.height, image.width)] += 1
    return next(iter(sizes)) if len(sizes) == 1 else None


def decode_files(
    paths: Sequence[str],
    out: np.ndarray,
    *,
    reading: Reading = AS_STORED,
    rows: Sequence[int] | None = None,
    digests: np.ndarray | None = None,
    extents: dict[int, Extent] | None = None,
    tolerated: int = 0,
    processes: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[int, str]:
    """Decode paths[i] into out[i]. out: uint8 [N, H, W, 3] in shared memory (a memory-mapped file, say).

    rows: the indices i to decode (None: all). digests: uint8 [N, 32] in shared memory, filled with the SHA-256 of each
    file. extents: filled with those of images of more than 8 bits, by index. processes: None is one per core that this
    process may use. progress: called with the number of files done. Returns why files cannot be read, by index; stops
    at more than `tolerated` of them. Errors: UserError when a process dies.
    """
    work = _Work(paths, out, reading, range(len(paths)) if rows is None else rows, digests)
    count = processes or read_host().usable_cpus  # in a container with a quota fewer than its affinity
    count = 1 if len(work.rows) < _SMALL else min(count, -(-len(work.rows) // _BLOCK))
    extents = {} if extents is None else extents
    if count > 1:
        return _decode_in_processes(work, count, tolerated, extents, progress)
    refused: dict[int, str] = {}
    for report in work.blocks(range(0, len(work.rows), _BLOCK)):
        refused |= report.refused
        extents |= report.extents
        progress(report.done)
        if len(refused) > tolerated:
            break
    return refused


@dataclass(frozen=True)
class _Progress:
    """Number of files that a process has done; the unreadable files and the extents of its last block, by index."""

    done: int
    refused: dict[int, str]
    extents: dict[int, Extent]


@dataclass(frozen=True, eq=False)
class _Work:
    """The arguments of decode_files."""

    paths: Sequence[str]
    out: np.ndarray
    reading: Reading
    rows: Sequence[int]
    digests: np.ndarray | None

    def blocks(self, blocks: range) -> Iterator[_Progress]:
        """Decode block after block."""
        done = 0
        for first in blocks:
            rows = self.rows[first : first + _BLOCK]
            refused, extents = {}, {}
            for index in rows:
                try:
                    if extent := self._one(index):
                        extents[index] = extent
                except Unreadable as error:
                    refused[index] = str(error)
            done += len(rows)
            yield _Progress(done, refused, extents)

    def _one(self, index: int) -> Extent | None:
        """Decode one file into `out`; returns its extent if above 8 bits. Errors: Unreadable, MemoryError."""
        content = _content(self.paths[index])
        if self.digests is not None:
            self.digests[index] = np.frombuffer(hashlib.sha256(content).digest(), np.uint8)
        self.out[index], extent = _decoded(content, self.out.shape[1:3], self.reading)
        return extent


def _decode_in_processes(
    work: _Work, count: int, tolerated: int, extents: dict[int, Extent], progress: Callable[[int], None]
) -> dict[int, str]:
    """Decode with `count` processes; row -> why it could not be decoded."""
    context = multiprocessing.get_context("fork")
    readers, workers = [], []
    try:
        with _signals_held():
            for number in range(count):
                reader, writer = context.Pipe(duplex=False)
                blocks = range(number * _BLOCK, len(work.rows), count * _BLOCK)
                worker = context.Process(target=_process, args=(work, blocks, writer, os.getpid()), daemon=True)
                worker.start()
                writer.close()
                readers.append(reader)
                workers.append(worker)
        return _follow(readers, tolerated, extents, progress)
    finally:
        for worker in workers:
            worker.kill()  # not SIGTERM: while another one is pending, the parent's would be lost
        for worker in workers:
            worker.join()


@contextmanager
def _signals_held() -> Iterator[None]:
    """Deliver signals only after the block. Python drops a KeyboardInterrupt that is raised during a fork, and a new
    process would use its parent's handlers until it has set its own."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _process(work: _Work, blocks: range, writer: Connection, parent: int) -> None:
    """A decoding process: sends a report after each block, and None at its end."""
    end_with_parent(parent)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    for report in work.blocks(blocks):
        writer.send(report)
    writer.send(None)


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this forked process when its parent, of process id `parent`, ends: prctl(2).

    Strictly, when the thread that forked it ends. The DataLoader's own watchdog compares parents every five seconds,
    and misses a parent that died before the worker first looked.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    # The parent's handlers are inherited. Signals that end a run reach the whole group, but the parent needs this
    # process until it has saved, and then ends it with SIGTERM: so only the parent's SIGTERM counts.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_at_sigterm_of, args=(parent,), daemon=True).start()
    if os.getppid() != parent:
        os._exit(1)


def _end_at_sigterm_of(parent: int) -> None:
    """The thread's function: exit the process when the parent sends SIGTERM."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def _follow(
    readers: Sequence[Connection], tolerated: int, extents: dict[int, Extent], progress: Callable[[int], None]
) -> dict[int, str]:
    """Handle the processes' reports until all are done or too many files are refused. Errors: UserError if one dies."""
    done = dict.fromkeys(readers, 0)
    refused: dict[int, str] = {}
    running = set(readers)
    while running and len(refused) <= tolerated:
        for reader in wait(list(running)):
            assert isinstance(reader, Connection)
            try:
                report: _Progress | None = reader.recv()
            except EOFError:
                raise UserError("a process that decodes images was killed: is the machine out of memory?") from None
            if report is None:
                running.discard(reader)
            else:
                done[reader] = report.done
                refused |= report.refused
                extents |= report.extents
        progress(sum(done.values()))
    return refused
