"""The beats of a rank: what the watchdog reads, and what an error says of its place."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ddp_train.data.pipeline.window import Batch, Window
from ddp_train.diagnostics.heartbeat_phases import Watched
from ddp_train.distributed.heartbeat import BEAT, PHASES, Heartbeat
from ddp_train.watchdog.rank_probe import Rank


def test_what_the_watchdog_reads(tmp_path: Path) -> None:
    heart = Heartbeat()
    heart.announce(tmp_path / "rank-0")
    pid, beats, _ = map(int, (tmp_path / "rank-0").read_text().split())
    assert pid == os.getpid()
    with Path(f"/proc/{pid}/fd/{beats}").open("rb") as file:
        seen = mmap.mmap(file.fileno(), BEAT.size, prot=mmap.PROT_READ)
    before = time.monotonic_ns()
    heart.at(2, 57)
    heart.beat("backward")
    heart.at(2, 58)
    heart.beat("forward")
    epoch, step, phase, when, first = BEAT.unpack_from(seen)
    assert (epoch, step, PHASES[phase]) == (2, 58, "forward")
    assert first == 57, "also for one that looks now for the first time"
    assert before <= when <= time.monotonic_ns()
    assert [path.name for path in tmp_path.iterdir()] == ["rank-0"]


def test_ranks_that_end_before_anybody_met_them_leave_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "ranks"
    folder.mkdir()
    ranks = [Heartbeat() for _ in range(2)]
    for number, rank in enumerate(ranks):
        rank.announce(folder / f"rank-{number}")
    ranks[0].withdraw()
    assert [path.name for path in folder.iterdir()] == ["rank-1"]
    ranks[1].withdraw()
    assert not folder.exists()
    ranks[1].withdraw()
    Heartbeat().withdraw()


def test_the_dump_signal_costs_a_process_nothing(tmp_path: Path) -> None:
    """A sleep goes on where it was, and the stack is there."""
    program = (
        "import time, sys\nfrom pathlib import Path\nfrom ddp_train.distributed.heartbeat import heartbeat\n"
        "heartbeat.announce(Path(sys.argv[1]))\nbegin = time.monotonic()\ntime.sleep(1)\n"
        "print(time.monotonic() - begin)"
    )
    path = tmp_path / "rank-0"
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    while not path.exists():
        time.sleep(0.01)
    frames = Rank(0, *map(int, path.read_text().split())).stack()
    out, _ = process.communicate(timeout=30)
    assert [(frame.function, frame.line) for frame in frames] == [("<module>", 6)]
    assert process.returncode == 0
    assert float(out) >= 1.0


def test_the_place_in_words() -> None:
    heart = Heartbeat()
    assert heart.place is None
    heart.at(0, 0)
    with heart.during("data"):
        assert str(heart.place) == "step 1 (epoch 1), data"
    assert str(heart.place) == "step 1 (epoch 1), start"
    with pytest.raises(ValueError), heart.during("evaluation"), heart.during("communication"):
        raise ValueError
    assert str(heart.place) == "step 1 (epoch 1), communication", "where it was lost"


class Pipeline:
    """Two steps of two batches each, and two batches to evaluate."""

    steps_per_epoch = 2
    sampler = None

    def __init__(self) -> None:
        empty = torch.empty(0)
        self.batch = Batch(empty, empty, empty)

    def train(self, epoch: int, start_step: int = 0) -> Iterator[Window]:
        for _ in range(start_step, 2):
            yield Window(iter([self.batch] * 2), 2, 0, 0)

    def evaluate(self, *_: object) -> Iterator[Batch]:
        yield from [self.batch] * 2

    def dummy_batch(self) -> Batch:
        return self.batch


def test_steps_of_a_watched_pipeline() -> None:
    heart = Heartbeat()
    seen = []
    for window in Watched(Pipeline(), heart).train(3, 1):
        for batch in window.batches:
            seen.append((heart.epoch, heart.step, batch.images.shape))
    assert seen == [(3, 7, (0,))] * 2
    assert (heart.epoch, heart.step) == (3, 7), "behind an epoch its last step"
    assert len(list(Watched(Pipeline(), heart).evaluate())) == 2
