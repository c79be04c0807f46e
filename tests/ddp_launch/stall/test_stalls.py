"""Real runs that hang: the right rank is named in time, with its line, and nobody is ended who was not to be.

python -m pytest tests/ddp_launch/stall --whole --timeout 3600          # every kind, 20 times each
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from ddp_launch.stall import command as stacks
from ddp_launch.stall import native
from ddp_launch.stall.watch import PATIENCE
from tests.ddp_launch.conftest import ROOT, TIMEOUT_S

REPORT_S = 3
LATE_S = 2.0
TIMES = 20

PROGRAM = """
import ctypes, os, signal, sys, time
from datetime import timedelta
import torch, torch.distributed as dist
mode, limit = sys.argv[1], float(sys.argv[2])
if mode == "late start" and os.environ["RANK"] == "1":
    time.sleep(600)  # late
dist.init_process_group("gloo", timeout=timedelta(seconds=limit))
rank, x = dist.get_rank(), torch.ones(3, 4)
pair = dist.new_group([0, 1], group_desc="pair")
for _ in range(10):
    dist.all_reduce(x)
def stall():
    if mode == "asleep":
        time.sleep(600)  # asleep
    if mode == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    if mode == "native code":
        ctypes.PyDLL(None).sleep(600)  # native
    if mode == "collectives":
        dist.broadcast(x, 0)
    if mode == "left":
        os._exit(0)
    if mode == "receiving":
        dist.recv(x, 0)  # receiving
    if mode == "subgroup":
        time.sleep(600)  # in the subgroup
    if mode == "starved":
        if os.fork() == 0:
            os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
            while os.getppid() != 1:
                sum(range(1000))
            os._exit(0)
        for thread in map(int, os.listdir("/proc/self/task")):
            os.sched_setaffinity(thread, [min(os.sched_getaffinity(0))])
            os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
        while True:
            sum(range(10))  # starved
if rank == 1:
    open("stalled", "w").write(str(time.monotonic()))
    stall()
if mode == "shapes":
    dist.all_reduce(torch.ones(3 + rank))
if mode == "subgroup":
    dist.barrier(group=pair)
if mode == "left":
    time.sleep(600)
dist.all_reduce(x)
"""

# mode -> kind, ranks that are named, what the line about it says.
STALLS = {
    "asleep": ("missing", [1], r"# asleep"),
    "collectives": ("collectives", [0, 1], r"number 11 is all_reduce \(Float \[3, 4\]\) on rank 0, broadcast"),
    "shapes": ("shapes", [0, 1], r"all_reduce number 11 with different shapes: Float \[3\] on rank 0, Float \[4\] on"),
    "stopped": ("stopped", [1], r"rank 1 is stopped \(SIGSTOP\)"),
    "native code": ("missing", [1], r"# native, in native code that holds Python's lock"),
    "starved": ("missing", [1], r"# starved(, and the machine is too busy for it to answer)?\""),
    "subgroup": ("missing", [1], r"has not come to barrier number 1 of group pair"),
    "late start": ("missing", [1], r"has not come to init_process_group"),
    "receiving": ("locked", [0, 1], r"all_reduce number 11 on rank 0, recv on rank 1"),
}
STARTS = re.compile("init_process_group|new_group")
USUALLY = ("collectives", "shapes", "stopped", "native code", "starved")
"""Without --whole; the tests below have one that is asleep."""


def events_of(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = (folder / "events.jsonl").read_text().splitlines() if (folder / "events.jsonl").exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == name]


def wait_for_report(folder: Path, process: subprocess.Popen[str], since_s: float = 0.0) -> dict[str, Any]:
    """The first report after that time of the monotonic clock, without those about the start, which may take longer
    than the reports' time, too, and may have been looked at before."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        events = (event for event in events_of(folder, "stall") if event["monotonic_ms"] > since_s * 1000)
        of_now = (event for event in events if since_s == 0 or not STARTS.search(event["words"]))
        if (found := next(of_now, None)) is not None:
            return found
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no report"
        time.sleep(0.05)


def waited_for_a_cpu(pids: Iterable[int]) -> float:
    """Seconds for which threads of these processes would have run and had no CPU: what a busy machine costs."""
    threads = (entry for pid in pids for entry in Path(f"/proc/{pid}/task").iterdir())
    return sum(int((entry / "schedstat").read_text().split()[1]) for entry in threads) / 1e9


def check(launcher: Any, mode: str) -> None:
    kind, ranks, words = STALLS[mode]
    for name in ("stalled", "events.jsonl"):
        (launcher.folder / name).unlink(missing_ok=True)
    command = ("--cpu", "--grace", "1", "--stall-report", str(REPORT_S), "--json-events", "events.jsonl")
    process = launcher.start(*command, "program.py", mode, "600")
    try:
        began_s, pids, busy_s = 0.0, (), 0.0
        if mode != "late start":
            launcher.wait_for("stalled")
            began_s = float((launcher.folder / "stalled").read_text() or time.monotonic())
            pids = events_of(launcher.folder, "attempt")[0]["pids"].values()
            busy_s = waited_for_a_cpu([process.pid, *pids])
        event = wait_for_report(launcher.folder, process, began_s)
        text = json.dumps(event["doing"]) + event["words"]
        assert (event["kind"], event["ranks"]) == (kind, ranks), json.dumps(event)
        assert re.search(words, text), text
        if mode != "late start":
            took_s = event["monotonic_ms"] / 1000 - began_s
            busy_s = waited_for_a_cpu([process.pid, *pids]) - busy_s
            print(f"{mode}: {took_s - REPORT_S:.2f} s after the report time, {busy_s:.2f} s waited for a CPU")
            # What the launcher takes for usual after a start that was too slow for the reports' time.
            earlier = [one["seconds"] for one in events_of(launcher.folder, "stall") if one != event]
            assert took_s < max([REPORT_S, *(PATIENCE * seconds for seconds in earlier)]) + LATE_S + busy_s
        assert not events_of(launcher.folder, "rank-end"), "nobody was to be ended"
        pids = events_of(launcher.folder, "attempt")[0]["pids"].values()
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    finally:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert "Nothing was ended" in err
    assert re.search(r"no progress for \d+ s", err)


@pytest.mark.parametrize("mode", STALLS)
def test_the_rank_that_holds_the_others_up_is_named(launcher: Any, mode: str, request: pytest.FixtureRequest) -> None:
    whole = request.config.getoption("whole")
    if mode not in USUALLY and not whole:
        pytest.skip("with --whole")
    launcher.script(PROGRAM)
    for _ in range(TIMES if whole else 1):
        check(launcher, mode)


def test_a_rank_that_left_early_is_named(launcher: Any, request: pytest.FixtureRequest) -> None:
    """gloo notices that its connection is gone: the run ends by itself, and the summary says because of whom."""
    launcher.script(PROGRAM.replace("    time.sleep(600)\ndist", "    time.sleep(1)\ndist"))
    for _ in range(TIMES if request.config.getoption("whole") else 1):
        done = launcher.run("--cpu", "--stall-report", str(REPORT_S), "program.py", "left", "600")
        assert done.returncode == 1
        assert "rank 1 left early" in done.stderr


def test_a_stall_before_the_time_limit_of_the_collective(launcher: Any) -> None:
    """The rank that raises is the consequence; the one that did not come is named, with its line."""
    launcher.script(PROGRAM)
    done = launcher.run("--cpu", "--grace", "1", "--json-events", "events.jsonl", "program.py", "asleep", "3")
    assert done.returncode == 1
    assert "rank 1 held the others up" in done.stderr
    assert re.search(r"was +at .*program.py:\d+ in stall: time.sleep\(600\)  # asleep", done.stderr)
    assert re.search(r"so failed +rank 0: waited for it in vain", done.stderr)
    failure = events_of(launcher.folder, "failure")[0]
    assert (failure["rank"], failure["held_up"]) == (1, True)
    assert "has not come to all_reduce number 11" in failure["found"]


def test_stall_kill_ends_the_run(launcher: Any) -> None:
    launcher.script(PROGRAM)
    done = launcher.run("--cpu", "--stall-report", "1", "--stall-kill", "3", "program.py", "asleep", "600")
    assert done.returncode == 137
    assert "rank 1 hung" in done.stderr
    assert re.search(r"ended by +SIGKILL.*after \d+\.\d s without progress: it hung", done.stderr), done.stderr
    # The summary says what was found, and names the option that did it.
    summary = " ".join(done.stderr.rpartition("rank 1 hung")[2].split())
    assert re.search(r"was at \S*program.py:\d+ in stall: time.sleep\(600\)", summary)
    assert re.search(r"because rank 1 has not come to all_reduce number \d+, in which rank 0 waits", summary)
    assert "to do if it only needs longer: --stall-kill SECONDS, 0 for no limit" in summary


def test_stacks_asks_a_running_run(launcher: Any) -> None:
    launcher.script(PROGRAM)
    process = launcher.start("--cpu", "--grace", "1", "--log-dir", "logs", "program.py", "asleep", "600")
    launcher.wait_for("stalled")
    try:
        time.sleep(1)
        for run in (str(process.pid), "logs"):
            command = [
                sys.executable,
                "-m",
                "ddp_launch",
                "stacks",
                str(launcher.folder / run) if run == "logs" else run,
            ]
            done = subprocess.run(
                command, cwd=ROOT, env=launcher.env, capture_output=True, text=True, timeout=TIMEOUT_S
            )
            assert done.returncode == 0, done.stderr
            found = "rank 1 has not come to all_reduce number 11, in which rank 0 waits"
            assert found in done.stdout, done.stdout
            assert re.search(r'File ".*program.py", line \d+, in stall\n +time.sleep\(600\)', done.stdout)
        done = subprocess.run([*command[:-1], "1"], cwd=ROOT, env=launcher.env, capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr.startswith("error: '1' is no run that is running here; there are: ")
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=TIMEOUT_S)


def test_ranks_where_a_job_manager_has_set_rank_for_the_launcher(tmp_path: Path) -> None:
    """As Kubeflow's PyTorchJob does. Neither the launcher's other children nor those of a rank are ranks."""
    script = """
    export DDP_LAUNCH_RUN=x
    sleep 60 & echo other $!
    TORCHELASTIC_ERROR_FILE=$PWD/rank-0.error.json sh -c 'sleep 60 & echo below $!; echo rank $$; wait' &
    wait"""
    env = {"PATH": os.environ["PATH"], "RANK": "0"}
    with subprocess.Popen(
        ["sh", "-c", script], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as launcher:
        assert launcher.stdout is not None
        pids = {name: int(pid) for name, pid in (launcher.stdout.readline().split() for _ in range(3))}
        try:
            ranks, logs = stacks._runs()[launcher.pid]
            assert ({number: probe.pid for number, probe in ranks.items()}, logs) == ({0: pids["rank"]}, tmp_path)
        finally:
            os.killpg(launcher.pid, signal.SIGKILL)


def test_native_calls_by_py_spy(launcher: Any) -> None:
    if native.installed() is None:
        pytest.skip("py-spy is not installed (the extra ddp-launch[stacks])")
    launcher.script(PROGRAM)
    process = launcher.start("--cpu", "--grace", "1", "program.py", "native code", "600")
    launcher.wait_for("stalled")
    try:
        command = [sys.executable, "-m", "ddp_launch", "stacks", str(process.pid)]
        done = subprocess.run(command, cwd=ROOT, env=launcher.env, capture_output=True, text=True, timeout=TIMEOUT_S)
        assert re.search(r"sleep\(600\)  # native\n(.*\n)*.*libc\S+, in clock_nanosleep\n", done.stdout), done
        assert re.search(r"lock: \w+, \w+, clock_nanosleep \(libc", " ".join(done.stdout.split())), done
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=TIMEOUT_S)


SPAWN = """
import sys
import torch.multiprocessing as mp
import torch.distributed as dist
def main(rank, world_size):
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    dist.barrier()
if __name__ == "__main__":
    mp.spawn(main, args=(3,), nprocs=3)
"""


def test_spawn_below_a_rank_says_why_it_hangs(launcher: Any) -> None:
    launcher.script(SPAWN)
    process = launcher.start(
        "--cpu", "--grace", "1", "--stall-report", "3", "--json-events", "events.jsonl", "program.py"
    )
    try:
        event = wait_for_report(launcher.folder, process)
    finally:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert event["kind"] == "spawn"
    assert "torch.multiprocessing.spawn" in event["words"]
    assert "the launcher already starts one process per rank" in " ".join(err.split())
