"""Whole runs over ssh: two nodes with an sshd each, and every way in which one of them, or the way to it, can end."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ddp_launch.hosts.ssh_pair import ROOT, Pair, pair_with
from tests.ddp_launch.two_nodes import Node
from tests.fake_nvml.machine import load_machine, to_lines

BOTH = ("--hosts", "node-a,node-b", "--cpu", "--nproc", "1")
PROGRAM = """
import os, sys, time
rank, mode = int(os.environ["RANK"]), sys.argv[1]
if mode == "add":
    import torch, torch.distributed as dist
    dist.init_process_group("gloo")
    total = torch.tensor(rank + 1)
    dist.all_reduce(total)
    # In one write: what the first rank writes reaches the terminal as it is, piece by piece.
    os.write(1, f"total {int(total)} on {os.uname().nodename} with {os.environ.get('TEST_TOKEN')}\\n".encode())
    assert "DDP_LAUNCH_HOST" not in os.environ
    dist.destroy_process_group()
elif mode == "fail":
    import torch, torch.distributed as dist
    dist.init_process_group("gloo")
    if rank == 1:
        raise KeyError("the cause")
    dist.all_reduce(torch.ones(1))
elif mode == "wait":
    print("waiting", flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with pair_with(PROGRAM, tmp_path_factory.mktemp("pair")) as made:
        yield made


def waiting(pair: Pair) -> subprocess.Popen[str]:
    """A run of which both ranks are there."""
    process = pair.start(*BOTH, "program.py", "wait")
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n", process.stderr.read() if process.stderr else ""
    deadline = time.monotonic() + 30
    while len(ranks := [line for line in pair.running("program.py wait") if "-u program.py" in line]) < 2:
        assert time.monotonic() < deadline, ranks
        time.sleep(0.1)
    return process


def rule(node: Node, change: str) -> None:
    """Add or delete (-A, -D) a rule of a node's firewall."""
    node.run(f"iptables -w {change}")


def test_users_program_on_both_hosts_from_one_command(pair: Pair) -> None:
    done = pair.run(*BOTH, "--tee", "all", "--export", "TEST_TOKEN", "program.py", "add", TEST_TOKEN="tok-5316")
    assert done.returncode == 0, done.stderr
    # The first rank of the first host as ever, the others with host and rank.
    assert sorted(done.stdout.splitlines()) == [
        "[node-b] [rank 1] total 3 on node-b with tok-5316",
        "total 3 on node-a with tok-5316",
    ]
    assert "tok-5316" not in done.stderr
    rows = {words[0]: words for line in done.stderr.splitlines() if (words := line.split())}
    assert "10.77.0.1" in rows["node-a"]
    assert "10.77.0.2" in rows["node-b"]
    assert rows["export"] == ["export", "TEST_TOKEN"]


def test_bundled_trainer_on_both_hosts_from_a_hostfile(pair: Pair) -> None:
    # The first is the machine itself, to which no ssh is needed.
    (pair.folder / "hosts.txt").write_text("# two boxes\nlocalhost slots=1\nnode-b slots=1 max_slots=4\n")
    training = ("--dataset", "digits", "--epochs", "1", "--batch-size", "512", "--out-dir", "trained")
    done = pair.run("--hostfile", "hosts.txt", "--cpu", *training)
    assert done.returncode == 0, done.stderr
    assert (pair.folder / "trained" / "done.json").exists()
    assert "2 ranks on 2 hosts" in done.stderr
    assert "each host reads the images" in done.stderr


def test_rank_of_the_second_host_is_the_cause(pair: Pair) -> None:
    done = pair.run(*BOTH, "program.py", "fail")
    assert done.returncode == 1
    assert done.stderr.count("failed first") == 1
    assert "1 on node-b" in done.stderr
    assert "KeyError: 'the cause'" in done.stderr
    assert "node-b: " in done.stderr.partition("log ")[2]
    assert pair.gone_within("program.py fail", 5) == []


def test_firewall_cuts_the_connection(pair: Pair) -> None:
    process = waiting(pair)
    rule(pair.b, "-A INPUT -s 10.77.0.1 -j DROP")
    rule(pair.b, "-A OUTPUT -d 10.77.0.1 -j DROP")
    begin = time.monotonic()
    try:
        assert pair.gone_within("program.py wait", 15) == []
        _, err = process.communicate(timeout=15)
    finally:
        rule(pair.b, "-F")
    assert time.monotonic() - begin < 15
    assert process.returncode == 1
    assert "error: node-b: the connection was lost" in err
    assert pair.gone_within("launch.py", 5) == []


@pytest.mark.parametrize("killed", ["launcher", "launcher there", "sshd", "keeper"])
def test_killed_parts_leave_nothing(pair: Pair, killed: str) -> None:
    process = waiting(pair)
    begin = time.monotonic()
    match killed:
        case "launcher":
            pair.a.run("pkill -KILL -f '[l]aunch.py --hosts'")
        case "launcher there":
            pair.b.run("pkill -KILL -f '[l]aunch.py --cpu'")
        case "sshd":
            # That of the session; the one that listens serves the next test.
            pair.b.run("pkill -KILL -f '[s]shd: .*@notty'")
        case "keeper":
            pair.b.run("pkill -KILL -f '[i]mport sys;sys.path'")
    assert pair.gone_within("program.py wait", 10) == []
    _, err = process.communicate(timeout=10)
    # The launcher of each host ends a moment after its ranks, with none above it to wait for it.
    assert pair.gone_within("launch.py", 10 - (time.monotonic() - begin)) == []
    assert time.monotonic() - begin < 10
    assert process.returncode == {"launcher": -signal.SIGKILL, "launcher there": 128 + signal.SIGKILL}.get(killed, 1)
    if killed == "launcher there":
        assert "error: the launcher on node-b ended by SIGKILL" in err
    elif killed != "launcher":
        assert "error: node-b: the connection was" in err


def test_interrupt_ends_both_hosts(pair: Pair) -> None:
    process = waiting(pair)
    pair.a.run("pkill -INT -f '[l]aunch.py --hosts'")
    assert pair.gone_within("program.py wait", 10) == []
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "ddp_launch" not in err


def test_hosts_that_cannot_be_reached_are_named_in_words(pair: Pair) -> None:
    rule(pair.b, "-A INPUT -p tcp --dport 2223 -j DROP")
    names = "node-a,node-b,node-silent,node-closed,node-stranger,node-denied,nowhere.invalid"
    begin = time.monotonic()
    done = pair.run("--hosts", names, "--cpu", "program.py", "wait")
    seconds = time.monotonic() - begin
    rule(pair.b, "-F")
    assert done.returncode == 2
    lines = dict(line.removeprefix("error: ").split(": ", 1) for line in done.stderr.splitlines())
    assert sorted(lines) == ["node-closed", "node-denied", "node-silent", "node-stranger", "nowhere.invalid"]
    assert "no answer within" in lines["node-silent"]
    assert "refused" in lines["node-closed"]
    assert "host key unknown" in lines["node-stranger"]
    assert "permission denied" in lines["node-denied"]
    assert "does not resolve" in lines["nowhere.invalid"]
    # 10 s for the silent one, and the start of this program.
    assert seconds < 14


def test_route_between_hosts_is_tried_before_anything_starts(pair: Pair) -> None:
    rule(pair.a, "-A INPUT -s 10.77.0.2 -p tcp --dport 20000:29999 -j DROP")
    try:
        done = pair.run(*BOTH, "program.py", "wait")
    finally:
        rule(pair.a, "-F")
    assert done.returncode == 2
    assert "error: node-b: no route to node-a at port 2" in done.stderr
    assert "10.77.0.1: no answer: a firewall" in done.stderr
    assert "node-a: no route" not in done.stderr


def test_network_between_hosts_is_measured(pair: Pair) -> None:
    pair.b.run("ip link set wire-b mtu 1400")
    # What the ranks choose themselves.
    rule(pair.a, "-A INPUT -s 10.77.0.2 -p tcp --dport 30000:65535 --syn -j DROP")
    done = pair.run("--hosts", "node-a,node-b", "--cpu", "--check-hosts")
    rule(pair.a, "-F")
    assert done.returncode == 2
    assert re.search(
        r"error: node-b: no route to node-a at port [3-6]\d{4} .*10.77.0.1: no answer: a firewall", done.stderr
    )
    there = [sys.executable, "-m", "gpu_topology", "verify", "--hosts", "node-a,node-b", "--cpu", "--json"]
    path = f"PATH={pair.bin}:/usr/sbin:/usr/bin:/sbin:/bin"
    words = pair.a.command("env", path, f"PYTHONPATH={ROOT}", *there)
    verdict = json.loads(subprocess.run(words, capture_output=True, timeout=60, check=True).stdout)
    pair.b.run("ip link set wire-b mtu 1500")
    assert verdict["ok"]
    assert [(one["host"], one["interface"], one["mtu"]) for one in verdict["hosts"]] == [
        ("node-a", "wire-a", 1500),
        ("node-b", "wire-b", 1400),
    ]
    # A veth pair says that it does 10 Gbit/s.
    assert verdict["share"] == pytest.approx(verdict["gbit_s"] / 10)
    assert any("different MTU: wire-a of node-a 1500, wire-b of node-b 1400" in line for line in verdict["concerns"])


def test_preflight_measures_the_network_and_the_run_follows(pair: Pair) -> None:
    # The check of the network, that of the devices and the run, one after the other.
    done = pair.run(*BOTH, "--preflight", "program.py", "add", timeout_s=150)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "total 3 on node-a with None\n"
    measured = re.search(r"all-reduce between 2 hosts with gloo: [\d.]+ Gbit/s", done.stderr)
    assert measured is not None and done.stderr.index("run    2 ranks on 2 hosts") > measured.start()
    assert done.stderr.count("preflight: every byte and every sum right") == 2, "each host checks its own devices"


def test_mistakes_on_the_hosts_are_one_line(pair: Pair) -> None:
    done = pair.run(*BOTH, "nothere.py")
    assert (done.returncode, done.stderr) == (2, "error: node-a, node-b: 'nothere.py': no such script\n")
    # Only the first host has this folder.
    (pair.folder / "elsewhere").mkdir()
    pair.a.run("mount -t tmpfs none elsewhere; mkdir elsewhere/mine")
    only_a = Node("node-a", pair.a.address, pair.a.pid, pair.folder / "elsewhere" / "mine")
    process = pair.start(*BOTH, "program.py", on=only_a)
    _, err = process.communicate(timeout=30)
    folder: Path = pair.folder / "elsewhere" / "mine"
    words = f"folder missing: {folder} (No such file or directory); make it there, or copy it with --sync {folder}"
    assert (process.returncode, err) == (2, f"error: node-b: {words}\n")


def test_different_gpus_are_named_in_the_plan(pair: Pair, fake_nvml_library: Path) -> None:
    for name in ("rtx3090_2x_nvlink", "a100_a5000_t400"):
        (pair.folder / f"{name}.txt").write_text(to_lines(load_machine(name)))
    pair.b.run("mount --bind a100_a5000_t400.txt rtx3090_2x_nvlink.txt")
    machine = str(pair.folder / "rtx3090_2x_nvlink.txt")
    # Claims of other tests on these GPUs are in the usual folder.
    claims = str(pair.folder / "tmp")
    variables = {"LD_LIBRARY_PATH": str(fake_nvml_library), "FAKE_NVML_MACHINE": machine, "XDG_RUNTIME_DIR": claims}
    done = pair.run("--hosts", "node-a,node-b", "--export", ",".join(variables), "--dry-run", "program.py", **variables)
    pair.b.run("umount rtx3090_2x_nvlink.txt")
    assert done.returncode == 0, done.stderr
    assert "note: different GPUs: node-a: 2 x NVIDIA GeForce RTX 3090; node-b: 3 x NVIDIA RTX A5000\n" in done.stdout
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line}
    assert "  2 x NVIDIA GeForce RTX 3090 (GPU 0, 1)  0 to 1  wire-a 10.77.0.1" in rows["node-a"]
    # The ranks of the first host come first.
    assert "  3 x NVIDIA RTX A5000 (GPU 0, 2, 4)      2 to 4  wire-b 10.77.0.2" in rows["node-b"]
    assert "5 ranks on 2 hosts: program.py" in rows["run"]
    assert done.stdout.count("torchrun") == 2


def test_sync_copies_the_folder(pair: Pair) -> None:
    (pair.folder / "own").mkdir()
    pair.a.run("mount -t tmpfs none own; mkdir own/.git; touch own/.git/config; cp program.py own/prog.py")
    only_a = Node("node-a", pair.a.address, pair.a.pid, pair.folder / "own")
    process = pair.start(*BOTH, "--sync", ".", "--dry-run", "prog.py", "add", on=only_a)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert (pair.folder / "own" / "prog.py").exists()
    assert not (pair.folder / "own" / ".git").exists()
    assert "node-b" in out


def test_sync_brings_this_project_too(pair: Pair) -> None:
    """The second host has an older version of the clone in which the command is typed."""
    clone = pair.folder / "clone"
    for name, text in (("ddp_core/__init__.py", '__version__ = "0.0.1"\n'), ("ddp_launch/__main__.py", "")):
        (clone / name).parent.mkdir(parents=True)
        (clone / name).write_text(text)
    packages = " ".join(str(ROOT / name) for name in ("ddp_core", "ddp_launch", "ddp_train", "gpu_topology"))
    pair.a.run(f"mount -t tmpfs none clone; cp -r {packages} {ROOT}/launch.py program.py clone")
    only_a = Node("node-a", pair.a.address, pair.a.pid, clone)
    process = pair.start(*BOTH, "--sync", ".", "--dry-run", "program.py", on=only_a, project=clone)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "node-b" in out
    assert (clone / "launch.py").exists()


def test_preflight_copies_the_folder_first(pair: Pair) -> None:
    """Its launchers have found the folder; they end at once, for a GPU that no host has."""
    (pair.folder / "early").mkdir()
    pair.a.run("mount -t tmpfs none early; mkdir early/mine; cp program.py early/mine")
    folder = pair.folder / "early" / "mine"
    only_a = Node("node-a", pair.a.address, pair.a.pid, folder)
    words = ("--hosts", "node-a,node-b", "--gpus", "7", "--sync", ".", "--preflight", "program.py", "add")
    process = pair.start(*words, on=only_a)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "folder missing" not in err
    assert "error: node-a, node-b: unknown GPU '7'" in err
    assert (folder / "program.py").exists()


def test_interrupt_ends_a_copy_that_stalls(pair: Pair) -> None:
    rsync = pair.bin / "rsync"
    rsync.write_text("#!/bin/sh\nsleep 611\n")
    rsync.chmod(0o755)
    process = pair.start(*BOTH, "--sync", ".", "program.py", "add")
    try:
        deadline = time.monotonic() + 30
        while not pair.running("sleep 611"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        pair.a.run("pkill -INT -f '[l]aunch.py --hosts'")
        _, err = process.communicate(timeout=10)
    finally:
        rsync.unlink()
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert pair.gone_within("sleep 611", 5) == []


def test_endpoint_by_a_name_that_is_loopback_here(pair: Pair) -> None:
    """node-a is 127.0.1.1 in its own /etc/hosts."""
    done = pair.run(*BOTH, "--rdzv-endpoint", "node-a:29517", "--dry-run", "--json", "program.py")
    assert done.returncode == 0, done.stderr
    assert "10.77.0.1:29517" in done.stdout
