"""Memory that grows is found in real runs, in the rank and in a worker; memory that only fills at first is not."""

from __future__ import annotations

import gc
import mmap
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ddp_train.data.pipeline.loader import ImageReader
from ddp_train.diagnostics.memory_growth import LEAST, Growth, Memory, judge, read
from ddp_train.technique import Context, Moment, Technique

MEMORY = Memory("rank 0 (PID 1)", "host memory")
STEPS, KEPT = 5, 2**20
"""Steps of an epoch, and bytes that each of them keeps."""


def judged(*values: float) -> Growth | None:
    """Of readings in units of LEAST."""
    return judge([{MEMORY: round(value * LEAST)} for value in values])


def test_even_growth_is_found() -> None:
    assert judged(100, 102, 104, 106) == Growth(MEMORY, 2 * LEAST, 106 * LEAST)
    assert judged(0, 500, 510, 516, 525) == Growth(MEMORY, 25 * LEAST / 3, 525 * LEAST)
    other = Memory("rank 0 (PID 1)", "GPU memory")
    both = [{MEMORY: at * 2 * LEAST, other: at * 9 * LEAST} for at in range(4)]
    found = judge(both)
    assert found is not None and found.memory == other, "the larger of both"
    assert judge([{other: 0}, *both[1:]]) == judge(both), "a process that is new has no history"


@pytest.mark.parametrize(
    "values",
    [
        (100, 102, 104),  # too few epochs
        (100, 102, 104, 104),  # it has ended
        (100, 150, 160, 162),  # ever less
        (100, 100.5, 101, 101.5),  # next to nothing
        (100, 104, 102, 106),
        (106, 104, 102, 100),
    ],
)
def test_what_does_not_grow_evenly_is_no_leak(values: tuple[float, ...]) -> None:
    assert judged(*values) is None


def test_the_reading_is_the_kernels() -> None:
    before, kept = read(0, torch.device("cpu")), pages(64 * LEAST)
    after = read(0, torch.device("cpu"))
    (mine,) = (memory for memory in after if memory.who.startswith("rank 0 (PID "))
    assert 60 * LEAST < after[mine] - before[mine] < 70 * LEAST
    kept.close()


def pages(size: int) -> mmap.mmap:
    """Fresh memory of this process alone: a tensor could fit into what the heap has kept of earlier tests."""
    kept = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for offset in range(0, size, mmap.PAGESIZE):
        kept[offset] = 1
    return kept


def leaking(context: Context) -> Technique:
    """Keeps something of every step."""
    kept: list[mmap.mmap] = []
    return Technique(name="leaking", after_step=lambda moment: kept.append(pages(KEPT)))


def harmless(context: Context) -> Technique:
    """Keeps something of the first steps."""
    kept: list[mmap.mmap] = []

    def after_step(moment: Moment) -> None:
        if moment.step < STEPS:
            kept.append(pages(KEPT))

    return Technique(name="harmless", after_step=after_step)


@pytest.mark.parametrize(
    ("where", "options"),
    [
        (r"rank 0 \(PID \d+\)", f"--technique {__name__}:leaking"),
        (r"\S+ \(PID \d+\) of rank 0", "--pipeline loader --num-workers 1"),
        ("", f"--technique {__name__}:harmless"),
        ("", f"--technique {__name__}:leaking --no-memory-growth-check"),
    ],
)
def test_a_run_that_leaks_says_how_much_and_where(
    trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, where: str, options: str
) -> None:
    plain, kept = ImageReader.__getitem__, []

    def keeping(self: ImageReader, indices: list[int]) -> Any:
        kept.extend([pages(KEPT)] * (self.part == "train"))
        return plain(self, indices)

    if "loader" in options:
        monkeypatch.setattr(ImageReader, "__getitem__", keeping)
    words = f"--dataset synthetic --synthetic-samples {STEPS * 16} --batch-size 16 --epochs 6 --device cpu --amp off"
    words += f" --model tests.ddp_train.techniques.tiny:plain --no-tensorboard --no-examine {options}"
    done = trainer(*words.split())
    gc.collect()  # the loader, whose workers end with it
    assert done.returncode == 0, done.stderr
    assert "--num-workers 1:" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if "memory grows" in line]
    assert len(lines) == bool(where), done.stderr
    if where:
        found = re.match(
            rf"note: host memory grows: {where} took ([\d.]+) MB more in each of the last 3 epochs", lines[0]
        )
        assert found is not None, lines
        assert float(found[1]) == pytest.approx(STEPS * KEPT / 1e6, rel=0.3)
