"""Runs on several nodes: two machines in namespaces, and two launchers on one machine."""

from __future__ import annotations

import fcntl
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ddp_launch.cluster.cluster import Cluster
from ddp_launch.rendezvous import multi_node
from tests.ddp_launch.two_nodes import Node, two_nodes, why_not

ROOT = Path(__file__).parents[3]
TRAINING = ("--dataset", "digits", "--out-dir", "results", "--batch-size", "512")
ADD_UP = """
import os, torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor(float(os.environ["RANK"]))
dist.all_reduce(total)
print("total", int(total), "of", dist.get_world_size(), flush=True)
dist.destroy_process_group()
"""
FAILING = """
import os, pathlib, signal, sys, time, traceback
rank, culprit = int(os.environ["RANK"]), int(os.environ["CULPRIT"])
if rank // 2 == culprit // 2 and rank != culprit:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(f"here-{rank}").touch()
while len(list(pathlib.Path().glob("here-*"))) < 4:
    time.sleep(0.01)
try:
    if rank == culprit:
        raise ValueError("the cause")
except ValueError:
    traceback.print_exc()
    sys.exit(7)
if rank // 2 == culprit // 2:
    time.sleep(60)
time.sleep(0.15)
raise RuntimeError("Connection closed by peer [127.0.0.1]:4242")
"""


@pytest.fixture
def pair(launcher: Any) -> Iterator[tuple[Node, Node]]:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with two_nodes(launcher.folder) as nodes:
        yield nodes


def start(launcher: Any, node: Node, *args: str, **env: str) -> subprocess.Popen[str]:
    command = node.command(sys.executable, str(ROOT / "launch.py"), "--cpu", "--nproc", "1", *args)
    return subprocess.Popen(
        command,
        env=launcher.env | env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def listeners(node: Node) -> set[str]:
    """Addresses at which something on the node listens."""
    rows = node.run("ss -Hltn").splitlines()
    return {row.split()[3].rpartition(":")[0].strip("[]").removeprefix("::ffff:") for row in rows}


def test_training_over_the_wire(launcher: Any, pair: tuple[Node, Node]) -> None:
    """Neither the decoy nor the name that means 127.0.1.1 leads the nodes astray; nothing listens off the wire."""
    a, b = pair
    args = ("--nnodes", "2", "--rdzv-endpoint", "node-a:29511", "--epochs", "1", *TRAINING)
    runs = [start(launcher, node, *args) for node in (b, a)]
    seen: set[str] = set()
    while runs[1].poll() is None:
        seen |= listeners(a)
        time.sleep(0.5)
    outputs = [run.communicate(timeout=60) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert seen == {a.address}
    (_, err_b), (_, err_a) = outputs
    assert "2 ranks on cpu" in err_a
    assert "GLOO_SOCKET_IFNAME=wire-a" in err_a
    assert "GLOO_SOCKET_IFNAME=wire-b" in err_b
    assert "node-a is 127.0.1.1 on this machine: listening on 10.77.0.1 (wire-a) instead" in err_a
    assert "must be trusted" in err_b
    history = json.loads((launcher.folder / "results" / "training_history.json").read_text())
    assert [epoch["epoch"] for epoch in history["epochs"]] == [1]


def test_a_node_that_never_comes_is_named(launcher: Any, pair: tuple[Node, Node]) -> None:
    """The second node for the first, the first for the second, which Slurm has named."""
    a, b = pair
    script = str(launcher.script(ADD_UP))
    slurm = {
        "SLURM_JOB_ID": "5",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_STEP_NODELIST": "node-a,node-b",
    }
    begin = time.monotonic()
    runs = [
        start(launcher, a, "--nnodes", "2", "--rdzv-endpoint", "node-a:29511", "--rdzv-timeout", "3", script),
        start(launcher, b, "--rdzv-timeout", "3", script, SLURM_NODEID="1", **slurm),
    ]
    (_, err_a), (_, err_b) = (run.communicate(timeout=60) for run in runs)
    assert time.monotonic() - begin < 40, "3 s and the start of two launchers"
    assert [run.returncode for run in runs] == [1, 1]
    assert err_a.splitlines()[-1] == "error: 1 of 2 nodes did not come within 3 s: node rank 1 (here: node-a)"
    assert "node rank 0 (node-a), at whose endpoint node-a:20005 nobody listens" in err_b.splitlines()[-1]


def test_a_lost_node_leaves_the_other_to_go_on_from_the_checkpoint(launcher: Any, pair: tuple[Node, Node]) -> None:
    """Lost at the end of the first epoch: each step of the others needs both nodes."""
    a, b = pair
    args = ("--nnodes", "1:2", "--rdzv-endpoint", "node-a:29511", "--epochs", "4", *TRAINING)
    runs = [start(launcher, node, *args) for node in (a, b)]
    launcher.wait_for("results/checkpoint-latest.pt")
    b.lose()
    _, err = runs[0].communicate(timeout=150)
    runs[1].communicate(timeout=10)
    assert runs[0].returncode == 0, err
    assert "2 ranks on cpu" in err
    later = err[err.index("continues results") :]
    assert re.search(r"1 rank on cpu.* epochs [2-4] to 4", later)
    history = json.loads((launcher.folder / "results" / "training_history.json").read_text())
    assert [epoch["epoch"] for epoch in history["epochs"]] == [1, 2, 3, 4]


def free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
        free.bind((host, 0))
        return int(free.getsockname()[1])


def test_two_launchers_on_one_machine_without_ranks(launcher: Any) -> None:
    """Both own the endpoint, here an IPv6 one: the first to come holds it."""
    try:
        endpoint = f"[::1]:{free_port('::1')}"
    except OSError as error:
        pytest.skip(f"no IPv6 here ({error})")
    args = ("--cpu", "--nproc", "1", "--nnodes", "2", "--rdzv-endpoint", endpoint, str(launcher.script(ADD_UP)))
    runs = [launcher.start(*args) for _ in range(2)]
    outputs = [run.communicate(timeout=60) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert [out for out, _ in outputs] == ["total 1 of 2\n"] * 2


def test_one_node_of_a_range_starts_within_a_short_time_limit(launcher: Any) -> None:
    """torch alone waits 30 s for more nodes, and gives up when the time limit is shorter."""
    launcher.script("print('ran')")
    options = ("--nnodes", "1:2", "--rdzv-timeout", "6", "--rdzv-endpoint", f"127.0.0.1:{free_port('127.0.0.1')}")
    begin = time.monotonic()
    done = launcher.run("--cpu", "--nproc", "1", *options, "program.py")
    assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr
    assert time.monotonic() - begin < 30


def test_ctrl_c_while_waiting(launcher: Any) -> None:
    port = free_port("127.0.0.1")
    args = ("--cpu", "--nnodes", "2", "--rdzv-endpoint", f"127.0.0.1:{port}", "--node-rank")
    script = str(launcher.script(ADD_UP))
    holder = launcher.start(*args, "0", script)
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.2)
    time.sleep(1)
    begin = time.monotonic()
    holder.send_signal(signal.SIGINT)
    _, err = holder.communicate(timeout=30)
    assert time.monotonic() - begin < 2
    assert holder.returncode == 130
    assert "Traceback" not in err


def test_port_that_is_taken(launcher: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        endpoint = f"127.0.0.1:{taken.getsockname()[1]}"
        args = ("--cpu", "--nnodes", "2", "--rdzv-endpoint", endpoint, "--node-rank", "0", "--rdzv-timeout", "3")
        done = launcher.run(*args, str(launcher.script(ADD_UP)))
    assert done.returncode == 1
    assert "the port is in use" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("culprit", [0, 3])
def test_a_failure_on_the_other_node_is_named_on_both(launcher: Any, culprit: int) -> None:
    """The rank beside the one that fails takes its whole grace time; the ranks of the other node are victims."""
    script = str(launcher.script(FAILING))
    endpoint = f"127.0.0.1:{free_port('127.0.0.1')}"
    ends = [
        launcher.start(
            *("--cpu", "--nproc", "2", "--grace", "4", "--nnodes", "2", "--node-rank", str(rank)),
            *("--rdzv-endpoint", endpoint, "--json-events", f"events-{rank}", script),
            CULPRIT=str(culprit),
        )
        for rank in (0, 1)
    ]
    errors = [end.communicate(timeout=60)[1] for end in ends]
    host = socket.gethostname()
    for error in errors:
        summary = error[error.index(f"rank {culprit} failed first") :]
        assert f"{culprit} on {host}" in summary
        assert "exit code 7" in summary
        assert "ValueError: the cause" in summary
    there = 0 if culprit else 1
    assert [end.returncode for end in ends] == [7, 7]
    assert f"ranks {'0, 1' if culprit else '2, 3'}: lost the connection to it" in errors[there]
    assert f"{host}: " in errors[there].rpartition("log ")[2]
    events = [json.loads(line) for line in (launcher.folder / f"events-{there}").read_text().splitlines()]
    (failure,) = (event for event in events if event["event"] == "failure")
    assert (failure["rank"], failure["status"], failure["error"]) == (culprit, 7, "ValueError: the cause")


def test_nodes_on_which_the_trainer_would_train_differently(launcher: Any) -> None:
    endpoint = f"127.0.0.1:{free_port('127.0.0.1')}"
    common = ("--cpu", "--nproc", "1", "--nnodes", "2", "--rdzv-endpoint", endpoint, "--dataset", "digits")
    options = ("--out-dir", "results", "--epochs", "1", "--batch-size")
    ends = [launcher.start(*common, "--node-rank", str(rank), *options, str(100 + rank)) for rank in (0, 1)]
    for end in ends:
        last = end.communicate(timeout=60)[1].splitlines()[-1]
        assert last.startswith("error: the nodes would train differently: ")
        assert "--batch-size 100" in last and "--batch-size 101" in last
    assert [end.returncode for end in ends] == [1, 1]


def test_the_locks_of_this_process_stay(tmp_path: Path) -> None:
    """POSIX locks go with the first descriptor of their file that is closed (fcntl(2))."""
    path = tmp_path / "claim"
    other = f"import fcntl; fcntl.lockf(open({str(path)!r}, 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    with path.open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        multi_node._notice_silence(1)
        taken = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True)
    assert "BlockingIOError" in taken.stderr


def test_every_address_of_the_first_node_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolver lists first an address at which nobody listens."""
    known = socket.getaddrinfo

    def resolver(host: str, *args: Any, **named: Any) -> list[Any]:
        names = ("127.0.0.2", "127.0.0.1") if host == "node01" else (host,)
        return [row for name in names for row in known(name, *args, **named)]

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        cluster = Cluster(nnodes=(2, 2), endpoint=f"node01:{port}", rdzv_timeout_s=1)
        assert multi_node._await_listener(cluster, "node01", port, time.monotonic()) == "127.0.0.1"
    with pytest.raises(multi_node.MeetingFailed, match=r"nobody listens \(Connection refused\)"):
        multi_node._await_listener(cluster, "node01", port, time.monotonic())
