"""Real runs that end well, fail, stall, are stopped or killed: what is told, and that no receiver holds them up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ddp_launch import main
from ddp_launch.cli.options import parse
from ddp_launch.notify.notifier import Notifier
from ddp_launch.notify.receiver import EVENTS, receiver
from tests.ddp_launch.notify.loopback import Server, dead, hang, raw, server

ROOT = Path(__file__).parents[3]
FAILS = """
import os, time
print(os.environ.get("DDP_NOTIFY"), flush=True)
assert os.environ["RANK"] == "0", "broken with " + os.environ["MY_API_KEY"]
time.sleep(60)
"""
STALLS = """
import os, time, torch, torch.distributed as dist
dist.init_process_group("gloo")
dist.all_reduce(torch.ones(1))
if os.environ["RANK"] == "1":
    time.sleep(120)
dist.all_reduce(torch.ones(1))
"""
WAITS = """
import os, pathlib, time
pathlib.Path("ready-" + os.environ["RANK"]).touch()
time.sleep(120)
"""


def events(there: Server) -> list[str]:
    return [one.json["event"] for one in there.received]


def test_a_run_of_the_trainer_and_a_receiver_that_never_answers(launcher: Any) -> None:
    options = ["--cpu", "--nproc", "1", "--dataset", "synthetic", "--synthetic-samples", "64", "--model", "small"]
    options += ["--epochs", "1", "--batch-size", "32", "--out-dir", "folder"]
    with server() as there, raw(hang) as silent:
        notify = ["--notify", f"{there.url}/s3cret", "--notify", f"slack+{silent}/s3cret", "--notify-on", "start,end"]
        done = launcher.run(*notify, *options, "--json-events", "events.jsonl", DDP_NOTIFY="http://127.0.0.1:1/x")
        ended = time.monotonic()
        assert done.returncode == 0, done.stderr
        assert events(there) == ["start", "end"]
        last = there.received[-1].json
        assert ended - there.received[-1].at < 15
    assert (last["run"], last["run_folder"]) == ("folder", str(launcher.folder / "folder"))
    assert last["best"].keys() == {"epoch", "split", "accuracy", "of"}
    assert done.stderr.count("note: --notify: Slack (127.0.0.1) did not get a message: no answer in time") == 2
    assert "s3cret" not in done.stdout + done.stderr
    for path in launcher.folder.rglob("*"):
        if path.is_file():
            assert b"s3cret" not in path.read_bytes(), path


def test_a_run_that_fails_and_receivers_that_are_dead_or_fail_too(launcher: Any) -> None:
    script = launcher.script(FAILS)
    with server() as there, server(*[(500, {}, b"")] * 20) as broken:
        to = f"{there.url}/a {dead()}/b {broken.url}/c"
        done = launcher.run("--cpu", "--max-restarts", "1", str(script), DDP_NOTIFY=to, MY_API_KEY="s3cret")
    assert done.returncode == 1, done.stderr
    assert done.stdout == "None\n" * 2
    assert events(there) == ["restart", "fail"]
    cause = there.received[-1].json["cause"]
    assert (cause["rank"], cause["attempt"], cause["error"]) == (1, 1, "AssertionError: broken with ***")
    assert b"s3cret" not in b"".join(one.body for one in there.received)
    assert "JSON (127.0.0.1) did not get a message: connection refused" in done.stderr
    assert "JSON (127.0.0.1) did not get a message: HTTP 500" in done.stderr


def test_a_stall_and_a_launcher_that_is_killed(launcher: Any) -> None:
    script = launcher.script(STALLS)
    with server() as there:
        process = launcher.start("--cpu", "--stall-report", "1", "--notify", f"{there.url}/s3cret", str(script))
        stall = there.wait_for(1)[0].json
        # The address is not among the words of any process below the launcher.
        seen = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in launcher.alive() if pid != process.pid]
        assert len(seen) >= 3
        assert not any(b"s3cret" in words for words in seen)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        last = there.wait_for(2)[1].json
        deadline = time.monotonic() + 30
        while launcher.alive() and time.monotonic() < deadline:
            time.sleep(0.05)
    assert (stall["event"], stall["stall"]["ranks"], stall["stall"]["killing"]) == ("stall", [1], False)
    assert "rank 1" in stall["text"]
    assert (last["event"], last["status"]) == ("fail", None)
    assert "it was killed" in last["text"]


def test_a_process_that_sends_and_is_killed_costs_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    with server() as there, Notifier((receiver(there.url),), EVENTS, "x") as notifier:
        assert notifier._process is not None
        notifier._process.kill()
        notifier._process.wait()
        for _ in range(100):
            notifier.hear({"event": "signal", "signal": "x" * 10_000})
    assert "messages may not have been delivered" in capsys.readouterr().err


def test_a_process_that_takes_nothing_holds_nobody_up(capsys: pytest.CaptureFixture[str]) -> None:
    with server() as there:
        began = time.monotonic()
        with Notifier((receiver(there.url),), EVENTS, "x") as notifier:
            assert notifier._process is not None
            notifier._process.send_signal(signal.SIGSTOP)
            for _ in range(1000):
                notifier.hear({"event": "signal", "signal": "x" * 10_000})
            assert time.monotonic() - began < 3
        assert time.monotonic() - began < 12
    assert "the last message was not delivered in 5 s" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_told_and_a_second_one_waits_for_no_receiver(launcher: Any, number: signal.Signals) -> None:
    script = launcher.script(WAITS)
    with server() as there, raw(hang) as silent:
        process = launcher.start("--cpu", "--notify", there.url, "--notify", silent, str(script))
        launcher.wait_for("ready-0", "ready-1")
        process.send_signal(number)
        record = there.wait_for(1)[0].json
        began = time.monotonic()
        while process.poll() is None and time.monotonic() - began < 30:
            time.sleep(0.5)
            process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number, err
    assert (record["event"], record["signal"], record["status"]) == ("fail", number.name, 128 + number)
    assert "the last message may not have been delivered" in err


def test_a_mistake_before_anything_started_is_told_where_nobody_looks(launcher: Any) -> None:
    with server() as there:
        done = launcher.run("--notify", there.url, "missing.py")
        assert done.returncode == 2
        assert launcher.run("--notify", there.url, "--cpu", "--dry-run", "missing.py").returncode == 2
        message = f"error: {there.received[0].json['message']}"
    assert events(there) == ["fail"]
    assert done.stderr.splitlines()[0].startswith(message)


def test_the_command_sends_a_test_message() -> None:
    with server() as there:
        command = [sys.executable, "-m", "ddp_launch", "notify", f"ntfy+{there.url}/topic"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (0, "ntfy (127.0.0.1) has taken a test message\n"), done.stderr
        assert there.received[0].json["topic"] == "topic"
        there.answers.append((403, {}, b"forbidden"))
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "ntfy (127.0.0.1) did not get a message: HTTP 403: forbidden\n")


@pytest.mark.parametrize(("rank", "tells"), [("0", True), ("1", False)])
def test_of_several_nodes_the_first_has_a_process_that_sends(rank: str, tells: bool) -> None:
    with server() as there:
        nodes = ["--nnodes", "2", "--node-rank", rank, "--rdzv-endpoint", "box:1234"]
        with main._notifier(parse([*nodes, "--notify", there.url, "x.py"])) as notifier:
            assert (notifier._process is not None) is tells
            notifier.hear({"event": "end", "status": 0, "monotonic_ms": time.monotonic() * 1000})
        assert events(there) == ["end"] * tells
