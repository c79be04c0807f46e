"""Image files to uint8 arrays: one at a time, or a whole dataset by one process per core.

Processes rather than threads: for small images most of the time is Python's own. They are forked, write into
memory that they share with the caller, and end when it does.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ddp_train.data.worker_process import end_with_parent
from ddp_train.options import UserError

__all__ = ["decode_files", "fit", "probe_size", "read_image"]

_BLOCK = 64  # files per unit of work
_SMALL = 256  # fewer files are not worth starting processes
_PROBES = 1024
_HELD = (signal.SIGINT, signal.SIGTERM)


def read_image(path: str | Path, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, 3] of `size` (height, width). Errors: UserError naming a file that is no readable image."""
    with _readable(path), Image.open(path) as image:
        return fit(image, size)


def fit(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Scale an image until it covers `size` (height, width), and cut out the centre: uint8 [H, W, 3]."""
    height, width = size
    if image.mode.startswith("I;16"):  # Pillow would clip 16 bits to 8, not scale them
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image = image.convert("RGB")
    if image.size != (width, height):
        scale = max(width / image.width, height / image.height)
        covering = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
        image = image.resize(covering, Image.Resampling.BILINEAR)
        left, top = (covering[0] - width) // 2, (covering[1] - height) // 2
        image = image.crop((left, top, left + width, top + height))
    return np.asarray(image)


def probe_size(paths: Sequence[str]) -> tuple[int, int] | None:
    """(height, width) of the images, or None where sizes differ; read from the headers of up to 1024 of them,
    evenly spread. Errors: UserError naming a file that is no readable image."""
    sizes: Counter[tuple[int, int]] = Counter()
    for path in paths[:: max(1, len(paths) // _PROBES)]:
        with _readable(path), Image.open(path) as image:
            sizes[(image.height, image.width)] += 1
    return next(iter(sizes)) if len(sizes) == 1 else None


def decode_files(
    paths: Sequence[str],
    out: np.ndarray,
    *,
    processes: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Decode paths[i] into out[i]. out: uint8 [N, H, W, 3] in shared memory (a memory-mapped file, say).

    processes: None is one per core that this process may use. progress is told how many are done.
    Errors: UserError naming the first unreadable image that was met, or when a process dies.
    """
    count = processes or len(os.sched_getaffinity(0))
    count = 1 if len(paths) < _SMALL else min(count, -(-len(paths) // _BLOCK))
    if count == 1:
        for done in _decode_blocks(paths, out, range(0, len(paths), _BLOCK)):
            progress(done)
    else:
        _decode_in_processes(paths, out, count, progress)


def _decode_in_processes(paths: Sequence[str], out: np.ndarray, count: int, progress: Callable[[int], None]) -> None:
    context = multiprocessing.get_context("fork")
    readers, workers = [], []
    try:
        with _signals_held():
            for number in range(count):
                reader, writer = context.Pipe(duplex=False)
                blocks = range(number * _BLOCK, len(paths), count * _BLOCK)
                worker = context.Process(target=_work, args=(paths, out, blocks, writer, os.getpid()), daemon=True)
                worker.start()
                writer.close()
                readers.append(reader)
                workers.append(worker)
        _follow(readers, progress)
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()


@contextmanager
def _signals_held() -> Iterator[None]:
    """Deliver signals only afterwards. Python drops a KeyboardInterrupt that is raised while it forks, and a new
    process would act upon its parent's handlers until it has set its own."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _decode_blocks(paths: Sequence[str], out: np.ndarray, blocks: range) -> Iterator[int]:
    """Decode block after block; yields how many files are done."""
    done = 0
    for first in blocks:
        last = min(first + _BLOCK, len(paths))
        for index in range(first, last):
            out[index] = read_image(paths[index], out.shape[1:3])
        done += last - first
        yield done


def _work(paths: Sequence[str], out: np.ndarray, blocks: range, writer: Connection, parent: int) -> None:
    """A decoding process: reports the number done after each block, the text of an error, and None at its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)
    end_with_parent(parent)
    try:
        for done in _decode_blocks(paths, out, blocks):
            writer.send(done)
        writer.send(None)
    except UserError as error:
        writer.send(str(error))


def _follow(readers: Sequence[Connection], progress: Callable[[int], None]) -> None:
    """Pass on the processes' reports until all are done. Errors: UserError, theirs or when one of them dies."""
    done = dict.fromkeys(readers, 0)
    running = set(readers)
    while running:
        for reader in wait(list(running)):
            assert isinstance(reader, Connection)
            try:
                report = reader.recv()
            except EOFError:
                raise UserError("a process that decodes images was killed: is the machine out of memory?") from None
            if isinstance(report, str):
                raise UserError(report)
            if report is None:
                running.discard(reader)
            else:
                done[reader] = report
        progress(sum(done.values()))


@contextmanager
def _readable(path: str | Path) -> Iterator[None]:
    """Whatever Pillow's decoders raise, as the user's error that names the file."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # each decoder has its own: OSError, ValueError, SyntaxError, struct.error, ...
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "not an image that Pillow knows"
        raise UserError(f"{path}: cannot be read as an image ({reason})") from error
