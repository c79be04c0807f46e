"""Ranks that hang, raise, or leave: the right one is named, with its step and stack, and soon nothing is left.

python -m pytest tests/faults/test_hangs.py --whole          # 20 hangs
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ddp_launch.conftest import ROOT, Launcher

TIMEOUT_S = 3.0
NAMED_S = GONE_S = 1.0
"""What was promised: named within the timeout and this, and everything gone this much later."""
BUSY = 4
"""In a usual test run other processes may have the processor: it asks who is named, and this many times slower."""
OPTIONS = (
    "--dataset synthetic --synthetic-samples 320 --batch-size 16 --epochs 500 --amp off --no-tensorboard --device cpu "
    f"--model tests.ddp_train.techniques.tiny:plain --technique tests.faults.trouble:make --step-timeout {TIMEOUT_S:g}"
)
HUNG = re.compile(r"HungRank: rank (\d) has made no progress for ([\d.]+) s \(.*\): step (\d+) \(epoch \d+\), (\w+)")
Plan = list[dict[str, object]]


@pytest.fixture
def whole(request: pytest.FixtureRequest) -> bool:
    """Whether all is tried as often, and timed as strictly, as was promised: on a machine that does nothing else."""
    return bool(request.config.getoption("--whole"))


class Started:
    """A run whose error output is noted line by line, each with the time at which it came."""

    def __init__(self, made: Launcher, under: str, plan: Plan, *more: str) -> None:
        self.folder, self.under, self._made = made.folder, under, made
        words = [*OPTIONS.split(), "--out-dir", "run"]
        if under == "launch.py":
            command = [str(ROOT / "launch.py"), "--cpu", "--nproc", "2", *more, *words]
        else:
            one_node = ["--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2"]
            command = ["-m", "torch.distributed.run", *one_node, str(ROOT / "ddp_train/main.py"), *words]
        env = made.env | {"TROUBLE": json.dumps(plan), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, *command],
            cwd=made.folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.lines: list[tuple[float, str]] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append((time.monotonic(), line.rstrip()))

    def trouble(self, attempt: int = 0) -> dict[str, Any]:
        """When it began, and the process id of the rank; waits for it."""
        self._made.wait_for(f"trouble-{attempt}")
        found: dict[str, Any] = json.loads((self.folder / f"trouble-{attempt}").read_text())
        return found

    def end(self) -> float:
        """Wait until it and all that it started is gone; when that was."""
        # How long torchrun itself takes to leave, its ranks gone, is not for us to say.
        others = {self.process.pid} if self.under == "torchrun" else set()
        deadline = time.monotonic() + 120
        while set(self._made.alive()) - others and time.monotonic() < deadline:
            time.sleep(0.01)
        gone = time.monotonic()
        self.process.wait(timeout=60)
        self._reader.join()
        return gone

    @property
    def text(self) -> str:
        """Its error output."""
        return "\n".join(line for _, line in self.lines)

    def hang(self) -> tuple[float, re.Match[str]]:
        """When the rank that hangs was named, and the words."""
        found = ((when, HUNG.search(line)) for when, line in self.lines)
        return next((when, match) for when, match in found if match)

    def events(self, kind: str) -> Iterator[dict[str, Any]]:
        """Of one kind, from the launcher's record."""
        lines = map(json.loads, (self.folder / "events").read_text().splitlines())
        return (event for event in lines if event["event"] == kind)


def hang(made: Launcher, under: str, how: str, rank: int, step: int, pause_s: float) -> tuple[float, float]:
    """A run with one hang, all of it checked but the times: seconds from the hang to its name, and to nothing left.

    `how`: a kind of trouble in the forward pass of `step`, or "stop from outside" `pause_s` behind it.
    """
    outside = how == "stop from outside"
    plan: Plan = [{"kind": "ready" if outside else how, "rank": rank, "step": step}]
    run = Started(made, under, plan, "--json-events", "events")
    trouble = run.trouble()
    if outside:
        time.sleep(pause_s)
        os.kill(trouble["pid"], signal.SIGSTOP)
        trouble["at"] = time.monotonic()
    gone = run.end()
    named, match = run.hang()
    assert int(match[1]) == rank, run.text
    if outside:
        assert int(match[3]) >= step
        assert "its process was stopped (SIGSTOP)" in run.text
    else:
        assert (int(match[3]), match[4]) == (step, "forward")
        assert f"in {how}" in run.text, "the function in the stack"
    if under == "launch.py":
        (failure,) = run.events("failure")
        assert (failure["rank"], failure["signal"]) == (rank, "SIGKILL")
        assert failure["hang"]["stopped"] == outside
        assert failure["place"]["step"] == int(match[3])
        assert any("ddp_train/main.py" in line for line in failure["hang"]["stack"]), "from the outermost call on"
        assert failure["remedy"]["name"] == "hang"
        named = failure["monotonic_ms"] / 1000
        assert f"rank {rank} hung" in run.text
        assert run.process.returncode == 137
    assert not list((made.folder / "tmp").glob("ddp-train-*")), "left behind"
    return named - trouble["at"], gone - named


def in_time(took: tuple[float, float], *, whole: bool) -> None:
    named, gone = took
    print(f"named after {named:.2f} s, all gone {gone:.2f} s later")
    slack = 1 if whole else BUSY
    assert TIMEOUT_S - 0.2 <= named <= TIMEOUT_S + slack * NAMED_S
    assert gone <= slack * GONE_S


def draw(seed: int) -> tuple[str, str, int, int, float]:
    """A random hang."""
    choose = random.Random(seed)
    under, how = choose.choice(("launch.py", "torchrun")), choose.choice(("sleep", "stop from outside"))
    drawn = (under, how, choose.randrange(2), choose.randint(2, 60), choose.uniform(0, 0.2))
    print(f"seed {seed}: {drawn}")
    return drawn


def test_a_rank_stopped_from_outside_under_torchrun(launcher: Launcher, whole: bool) -> None:
    in_time(hang(launcher, "torchrun", "stop from outside", 0, 12, 0.05), whole=whole)


@pytest.mark.parametrize("seed", range(20))
def test_random_hangs(launcher: Launcher, seed: int, whole: bool) -> None:
    if not whole:
        pytest.skip("with --whole")
    in_time(hang(launcher, *draw(seed)), whole=whole)


@pytest.mark.parametrize("how", ["hold", "spin"])
def test_a_rank_that_holds_the_lock_or_is_busy(launcher: Launcher, how: str, whole: bool) -> None:
    if not whole:
        pytest.skip("with --whole")
    in_time(hang(launcher, "launch.py", how, 1, 5, 0), whole=whole)


def test_hangs_errors_and_early_exits_one_after_the_other(launcher: Launcher, whole: bool) -> None:
    """Attempts of one run: it goes on behind each."""
    plan: Plan = [
        {"kind": "sleep", "rank": 1, "step": 23},
        {"kind": "raise", "rank": 0, "step": 6},
        {"kind": "exit", "rank": 1, "step": 9},
    ]
    restarts = ("--max-restarts", str(len(plan) - 1), "--json-events", "events")
    run = Started(launcher, "launch.py", plan, *restarts)
    gone = run.end()
    begun = [run.trouble(attempt)["at"] for attempt in range(len(plan))]
    failures, ends = list(run.events("failure")), list(run.events("rank-end"))
    assert [failure["rank"] for failure in failures] == [1, 0, 1], run.text
    slack = 1 if whole else BUSY
    for failure, begin, slow in zip(failures, begun, (TIMEOUT_S, 0, 0), strict=True):
        named = failure["monotonic_ms"] / 1000
        assert named - begin <= slow + slack * NAMED_S
        last = max(end["monotonic_ms"] for end in ends if end["attempt"] == failure["attempt"]) / 1000
        assert last - named <= slack * GONE_S
        print(f"named after {named - begin:.2f} s, the ranks gone {last - named:.2f} s later")
    hung, raised, left = failures
    assert (hung["hang"]["stopped"], hung["place"]) == (False, {"step": 23, "epoch": 2, "phase": "forward"})
    assert any("in sleep" in line for line in hung["hang"]["stack"])
    assert raised["error"] == "ValueError: the true cause"
    assert raised["place"] == {"step": 26, "epoch": 2, "phase": "forward"}, "20 steps are in the checkpoint"
    assert raised["victims"] == [1]
    assert (left["exit_code"], left["left_early"], left["victims"]) == (0, True, [0])
    assert left["remedy"]["name"] == "left-early"
    summary = run.text[run.text.index("rank 1 left early") :]
    assert "exit code 0: it left early, while the others were still at work" in summary
    assert re.search(r"meanwhile +rank 0 was at step 29 \(epoch 2\), communication", summary)
    assert run.process.returncode == 1
    assert gone - failures[-1]["monotonic_ms"] / 1000 <= slack * GONE_S


# Both ranks end without Python's own end, in which a gloo group that was left open aborts once in a while.
EXIT = """
import os, sys, traceback
import torch, torch.distributed as dist
dist.init_process_group("gloo")
try:
    for step in range(3):
        dist.all_reduce(torch.ones(1))
        if step == 1 and dist.get_rank() == 0:
            os._exit(0)
except RuntimeError:
    traceback.print_exc()
    sys.stderr.flush()
    os._exit(1)
"""


def test_a_users_program_that_leaves_early(launcher: Launcher) -> None:
    script = launcher.script(EXIT)
    done = launcher.run("--cpu", "--nproc", "2", "--json-events", "events", str(script))
    assert done.returncode == 1
    assert "rank 0 left early" in done.stderr
    failure = next(
        event for line in Path(launcher.folder / "events").read_text().splitlines()
        if (event := json.loads(line))["event"] == "failure"
    )  # fmt: skip
    assert (failure["rank"], failure["left_early"], failure["victims"]) == (0, True, [1])


LATE = """
import os, time
import torch, torch.distributed as dist
dist.init_process_group("gloo")
dist.all_reduce(torch.ones(1))
if dist.get_rank() == 0:
    dist.destroy_process_group()
    time.sleep(0.7)  # as Python may take to end
    os._exit(0)
try:
    dist.all_reduce(torch.ones(1))
finally:
    import sys, traceback
    if sys.exc_info()[0]:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
"""


def test_one_that_leaves_early_and_takes_its_time_to_end(launcher: Launcher) -> None:
    script = launcher.script(LATE)
    done = launcher.run("--cpu", "--nproc", "2", "--json-events", "events", str(script))
    assert done.returncode == 1
    assert "rank 0 left early" in done.stderr
