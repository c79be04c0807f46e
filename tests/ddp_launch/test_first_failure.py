"""Which rank is named after a failure, in real runs of programs that know nothing of the launcher or of `record`."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

GLOO = """
import os, time, torch
import torch.distributed as dist
dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
if dist.get_rank() == 1:
    raise ValueError("the true cause")
try:
    dist.all_reduce(total)
except RuntimeError:
    time.sleep(0.15)
    raise
"""
# Rank 0 hears from the others over plain sockets; the last one lets go of its connection before it says why.
SOCKETS = """
import os, pathlib, socket, time
rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])

def lost(peer):
    if peer.recv(1) == b"":
        raise ConnectionError("Connection closed by peer")

def fail():
    raise ValueError(f"the true cause on rank {rank}")

if rank == 0:
    server = socket.create_server(("127.0.0.1", 0), backlog=ranks)
    pathlib.Path("port.new").write_text(str(server.getsockname()[1]))
    os.rename("port.new", "port")
    peers = {}
    while len(peers) < ranks - 1:
        peer = server.accept()[0]
        peers[int(peer.recv(8))] = peer
    for peer in peers.values():
        peer.sendall(b"!")
    lost(peers[ranks - 1])
while not os.path.exists("port"):
    time.sleep(0.01)
server = socket.create_connection(("127.0.0.1", int(open("port").read())))
server.sendall(str(rank).encode())
server.recv(1)
if rank < ranks - 1:
    lost(server)
server.close()
time.sleep(0.15)
fail()
"""
# What torch's threads may do to the interpreter that leaves with an open process group, here every time.
TERMINATE = "terminate called without an active exception"
ABORT = f"""
import atexit
if rank == ranks - 1:
    atexit.register(os.abort)
    atexit.register(os.write, 2, b"{TERMINATE}\\n")
"""


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("program", "ranks"),
    [(GLOO, 2), (SOCKETS, 2), (SOCKETS, 12), (SOCKETS.replace("\ndef lost", ABORT + "\ndef lost"), 2)],
    ids=["gloo", "2 sockets", "12 sockets", "abort in leaving"],
)
def test_the_cause_is_named_and_its_victims_as_such(launcher: Any, program: str, ranks: int) -> None:
    script = launcher.script(program)
    done = launcher.run("--cpu", "--nproc", str(ranks), "--json-events", "events", str(script))
    last = ranks - 1
    summary = done.stderr[done.stderr.index(f"rank {last} failed first") :]
    # torch may do so of itself: its threads race against the interpreter's end.
    aborted = ABORT in program or (program == GLOO and TERMINATE in summary)
    assert done.returncode == (134 if aborted else 1)
    if aborted:
        assert "SIGABRT (signal 6): aborted in native code after its error, while it was ending" in summary
        assert f"│ {TERMINATE}" in summary
        assert "destroy_process_group() before leaving" in " ".join(summary.split())
    else:
        assert "exit code 1" in summary
    assert "│ Traceback (most recent call last):" in summary
    assert "ValueError: the true cause" in summary
    assert summary.count(script.name) >= 1, "the line of the program"
    victims = next(line for line in summary.splitlines() if line.startswith("victims"))
    assert victims.split()[:3] in (["victims", "rank", "0:"], ["victims", "ranks", "0"])
    assert "lost the connection to it" in victims
    log = next(word for word in summary.split() if word.endswith(f"rank-{last}.stderr.log"))
    assert "ValueError: the true cause" in Path(log).read_text()
    assert summary.rstrip().splitlines()[-1].startswith("log"), "nothing stands behind the summary"

    record = events(launcher.folder / "events")
    assert [event["event"] for event in record[:2]] == ["plan", "attempt"]
    assert [event["event"] for event in record[-2:]] == ["failure", "end"]
    ends = [event for event in record if event["event"] == "rank-end"]
    assert sorted(event["rank"] for event in ends) == list(range(ranks))
    failure = record[-2]
    assert (failure["rank"], failure["exit_code"], failure["signal"]) == (
        (last, None, "SIGABRT") if aborted else (last, 1, None)
    )
    assert failure["error"].startswith("ValueError: the true cause")
    assert 0 in failure["victims"]
    assert record[-1]["status"] == done.returncode


def test_rank_0_in_trouble_is_on_the_screen_and_in_the_logs(launcher: Any) -> None:
    script = launcher.script(
        "import os, time\nos.environ['RANK'] == '0' or time.sleep(60)\nprint('step')\nopen('none.csv')"
    )
    done = launcher.run("--cpu", "--grace", "1", "--log-dir", "logs", str(script))
    assert (done.returncode, done.stdout) == (1, "step\n")
    before, _, summary = done.stderr.partition("rank 0 failed first")
    assert before.count("FileNotFoundError") == 1, "as it came"
    assert "FileNotFoundError: [Errno 2] No such file or directory: 'none.csv'" in summary
    assert "a relative path starts there" in summary
    assert (launcher.folder / "logs/attempt-0/rank-0.stdout.log").read_text() == "step\n"
    assert (launcher.folder / "logs/attempt-0/rank-0.stderr.log").read_text() in done.stderr


def test_events_on_standard_output_are_pure(launcher: Any) -> None:
    script = launcher.script(
        "print('of the program', flush=True)\nimport os, sys; sys.exit(os.environ['RANK'] == '1' and 3)"
    )
    done = launcher.run("--cpu", "--tee", "--json-events", "-", "--max-restarts", "1", str(script))
    record = [json.loads(line) for line in done.stdout.splitlines()]
    kinds = [event["event"] for event in record]
    assert kinds[:2] == ["plan", "attempt"]
    assert kinds.count("attempt") == kinds.count("failure") == kinds.count("restart") + 1 == 2
    assert kinds[-1] == "end"
    assert record[0]["plan"]["nproc_per_node"] == 2
    assert {"0", "1"} == record[1]["pids"].keys()
    assert "of the program" in done.stderr
    for event in record:
        assert event["monotonic_ms"] > 0
        assert event["time"].endswith("+00:00")


def test_a_signal_in_the_record(launcher: Any) -> None:
    script = launcher.script(
        "import os, pathlib, time\n"
        "score = pathlib.Path('/proc/self/oom_score_adj').read_text()\n"
        "pathlib.Path('score').write_text(score)\n"
        "pathlib.Path('ready-' + os.environ['RANK']).touch()\n"
        "time.sleep(60)"
    )
    process = launcher.start("--cpu", "--json-events", "events", str(script))
    launcher.wait_for("ready-0", "ready-1")
    own = int(Path("/proc/self/oom_score_adj").read_text())
    assert int((launcher.folder / "score").read_text()) == min(own + 50, 1000), "ranks go before their launcher"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    record = events(launcher.folder / "events")
    assert [event["event"] for event in record] == ["plan", "attempt", "signal", "rank-end", "rank-end", "end"]
    assert record[2]["signal"] == "SIGTERM"
    assert all(event["stopped"] and event["signal"] == "SIGTERM" for event in record[3:5])
    assert record[-1]["status"] == 143


def test_an_unwritable_record_is_refused_before_anything_starts(launcher: Any) -> None:
    script = launcher.script("open('started', 'w')")
    done = launcher.run("--cpu", "--json-events", "none/events", str(script))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: --json-events 'none/events': No such file")
    assert not (launcher.folder / "started").exists()


PIECES = (
    "",
    " ",
    "--",
    "-",
    "--help",
    "-m",
    "--nproc=2",
    "$HOME",
    "$$",
    "${rank}",
    "`id`",
    "$(id)",
    '"',
    "'",
    "\\",
    "\n",
)
PIECES += (
    "\t",
    "*",
    "~",
    "é",
    "漢字",
    "\U0001f600",
    "\u202e",
    "%s",
    "{}",
    "#",
    ";",
    "|",
    "&",
    "=",
    "a=b",
    "\r",
    "\x1b[0m",
)
PRINT = "import json, sys\nopen('argv.json', 'w').write(json.dumps(sys.argv[1:]))\n"


def odd_arguments(seed: int) -> list[str]:
    """Every piece alone, 200 random joints of them, and bytes that are no text."""
    draw = random.Random(seed)
    joints = ["".join(draw.choices(PIECES, k=draw.randint(1, 5))) for _ in range(200)]
    return [*PIECES, *joints, os.fsdecode(b"\xff\xfe"), "x" * 5000, "--version"]


@pytest.mark.parametrize("kind", ["script", "module", "executable"])
def test_all_that_follows_the_program_is_its_own(launcher: Any, kind: str) -> None:
    launcher.script(PRINT, "a dir/my program.py")
    launcher.script(PRINT, "package/__main__.py")
    named = {
        "script": ["a dir/my program.py"],
        "module": ["-m", "package"],
        "executable": ["--no-python", sys.executable, "a dir/my program.py"],
    }[kind]
    arguments = odd_arguments(seed=len(kind))
    done = launcher.run("--cpu", "--nproc", "1", *named, *arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads((launcher.folder / "argv.json").read_text()) == arguments
