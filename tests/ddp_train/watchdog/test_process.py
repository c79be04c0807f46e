"""The real watchdog beside small processes that beat as ranks do: no torch, no network."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ddp_core import rank_report
from ddp_train.watchdog import process

ROOT = Path(__file__).parents[3]
TIMEOUT_S = 0.5
RANK = """
import os, subprocess, sys, time
from pathlib import Path
from ddp_train.watchdog import process as watchdog
from ddp_train.distributed.heartbeat import heartbeat

folder, rank, nodes, story = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:]
heartbeat.announce(folder / f"rank-{rank}")
if rank == "0":
    with open("watchdog", "w") as file:
        command = [sys.executable, "-I", "-S", watchdog.__file__, str(folder), "2", nodes, "TIMEOUT", str(os.getpid())]
        print(subprocess.Popen(command).pid, file=file)
heartbeat.at(0, 0)
heartbeat.beat("forward")
time.sleep(0.8)  # so that the first step is seen
heartbeat.at(0, 1)
for word in story:
    if word == "leave":
        os._exit(0)
    elif word == "fail":
        heartbeat.fail()
        os._exit(3)
    elif word[0].isdigit():
        time.sleep(float(word))
    else:
        heartbeat.beat(word)
os._exit(0)
"""


class Node:
    """Two ranks, each with what it does from its second step on: phases and seconds."""

    def __init__(self, folder: Path, first: str, second: str, nodes: int = 1) -> None:
        self.folder, self.meet = folder, folder / "meet"
        self.meet.mkdir()
        program = RANK.replace("TIMEOUT", str(TIMEOUT_S))
        self.ranks = [
            subprocess.Popen(
                [sys.executable, "-c", program, str(self.meet), str(rank), str(nodes), *story.split()],
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(ROOT), rank_report.ERROR_FILE: f"error-{rank}"},
                stderr=(folder / f"err-{rank}").open("w"),
            )
            for rank, story in enumerate((first, second))
        ]

    def end(self) -> tuple[list[int], str]:
        """Exit statuses and what stands in the error outputs, once the ranks and their watchdog have ended."""
        codes = [rank.wait(30) for rank in self.ranks]
        watchdog, deadline = Path("/proc") / (self.folder / "watchdog").read_text().strip(), time.monotonic() + 5
        while watchdog.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not watchdog.exists(), "the watchdog goes with the first rank"
        assert not self.meet.exists(), "no folder stays"
        return codes, (self.folder / "err-0").read_text() + (self.folder / "err-1").read_text()


def test_the_rank_that_others_wait_for(tmp_path: Path) -> None:
    begin = time.monotonic()
    codes, text = Node(tmp_path, "communication 60", "forward 60").end()
    assert codes == [-9, -9]
    assert "HungRank: rank 1 has made no progress for 0." in text
    assert "(--step-timeout, 0.5 s): step 2 (epoch 1), forward\n  rank 0 meanwhile: step 2 (epoch 1), comm" in text
    assert 'File "<string>", line' in text, "its stack"
    assert "HungRank" in (tmp_path / "err-1").read_text(), "among its own last words"
    found = rank_report.read(tmp_path / "error-1")
    assert found is not None
    assert (found.kind, found.rank, found.verdict, str(found.place)) == ("hang", 1, "hung", "step 2 (epoch 1), forward")
    assert found.messages[0] in text
    assert any('File "<string>", line' in line for line in found.stack)
    assert not (tmp_path / "error-0").exists(), "only the rank that hung has a report"
    assert time.monotonic() - begin < 20


def test_a_stopped_rank_in_a_phase_that_may_take_long(tmp_path: Path) -> None:
    node = Node(tmp_path, "checkpoint 60", "communication 60")
    time.sleep(1.5)
    node.ranks[0].send_signal(signal.SIGSTOP)
    codes, text = node.end()
    assert codes == [-9, -9]
    assert "HungRank: rank 0 has" in text
    assert "step 2 (epoch 1), checkpoint; its process was stopped (SIGSTOP)" in text


def test_one_that_has_left(tmp_path: Path) -> None:
    codes, text = Node(tmp_path, "communication 60", "backward leave").end()
    assert codes == [-9, 0]
    line = "RankLeft: rank 1 left early, with exit code 0, at step 2 (epoch 1), backward; the others were still at work"
    assert text.count(line) == 2, "printed at once, and again for the rank that was ended because of it"
    found = rank_report.read(tmp_path / "error-0")
    assert found is not None
    assert (found.kind, found.rank, found.messages) == ("left", 1, (line,))


@pytest.mark.parametrize(("nodes", "codes"), [(1, [-9, -9]), (2, [0, 0])])
def test_ranks_that_all_wait(tmp_path: Path, nodes: int, codes: list[int]) -> None:
    """For one another, or for a rank of another node, whose own watchdog is the one to judge."""
    found, text = Node(tmp_path, "communication 3 done", "communication 3 done", nodes).end()
    assert found == codes
    assert ("all ranks wait for one another" in text) == (nodes == 1)
    assert text.count("look at the other nodes") == (nodes == 2)


@pytest.mark.parametrize(
    ("first", "second", "codes"),
    [
        ("evaluation 0.3 evaluation 0.3 evaluation 0.3 evaluation 0.3 done", "communication 1.2 done", [0, 0]),
        ("checkpoint 1.5 done", "communication 1.5 done", [0, 0]),
        ("communication 1.5 fail", "forward fail", [3, 3]),
    ],
)
def test_nothing_is_said_of_a_run_that_goes_on(tmp_path: Path, first: str, second: str, codes: list[int]) -> None:
    assert Node(tmp_path, first, second).end() == (codes, "")


def test_it_ends_where_its_rank_was_gone_before_it_began(tmp_path: Path) -> None:
    """Its parent is another process then, from the beginning, and would be for ever."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    command = [sys.executable, "-I", "-S", process.__file__, str(tmp_path), "2", "1", "auto", str(gone.pid)]
    subprocess.run(command, check=True, timeout=60)
