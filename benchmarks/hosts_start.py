"""From the command to the first line of rank 0 on two hosts: `--hosts` over ssh, and the same launch by hand.

Both hosts are this machine, each through an sshd on 127.0.0.1 with a key made for it. By hand means the two commands
with --nnodes 2, started at the same moment. What counts is the difference within a round.

Seconds; by hand again shows the noise. `--hosts` is to take at most 1 s longer.
"""

from __future__ import annotations

import os
import random
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from benchmarks.harness import Arguments, Figures, measurement, rounds
from benchmarks.launch_overhead import WORKER
from benchmarks.programs import LAUNCH, seconds_to_mark
from benchmarks.turns import take_turns
from ddp_core.errors import UserError

BY_HAND, AGAIN, OURS = "by hand", "by hand again", "--hosts"
NAMES = ("host-one", "host-two")
LOOPBACK = "127.0.0.1"
START_S = 5.0


def _by_hand(words: Sequence[str], mark: Path, env: Mapping[str, str]) -> float:
    """Seconds to the first line with both launchers started by hand."""
    # Below the system's range of ephemeral ports.
    place = ["--nnodes", "2", "--rdzv-endpoint", f"{LOOPBACK}:{random.randint(20_000, 29_999)}"]
    first, second = ([*LAUNCH, *place, "--node-rank", str(rank), *words] for rank in range(2))
    both = f"{shlex.join(second)} & {shlex.join(first)}; status=$?; wait; exit $status"
    return seconds_to_mark(["sh", "-c", both], mark, env)


def _served(servers: Mapping[int, Sequence[str]], command: Sequence[str], mark: Path, env: Mapping[str, str]) -> float:
    """Seconds to the first line, with ssh servers running."""
    with _running(servers):
        return seconds_to_mark(command, mark, env)


@contextmanager
def _running(servers: Mapping[int, Sequence[str]]) -> Iterator[None]:
    """Run the sshds for one launch: once they have ended, their CPU time counts as this program's own."""
    Path("/run/sshd").mkdir(exist_ok=True)
    processes = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for command in servers.values()]
    try:
        for port in servers:
            _await(port)
        yield
    finally:
        for process in processes:
            process.terminate()
            process.wait()


def _servers(folder: Path, ssh: str, sshd: str) -> dict[int, list[str]]:
    """Port -> command of an sshd; makes the keys, and an `ssh` in the folder that knows them by NAMES."""
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    host_key = " ".join((folder / "host.pub").read_text().split()[:2])
    ports = [_free_port() for _ in NAMES]
    (folder / "known").write_text("".join(f"[{LOOPBACK}]:{port} {host_key}\n" for port in ports))
    hosts = "".join(f"Host {name}\n  Port {port}\n" for name, port in zip(NAMES, ports, strict=True))
    every = f"Host *\n  HostName {LOOPBACK}\n  IdentityFile {folder}/user\n  UserKnownHostsFile {folder}/known\n"
    (folder / "config").write_text(hosts + every)
    (folder / "ssh").write_text(f'#!/bin/sh\nexec {ssh} -F {folder}/config "$@"\n')
    (folder / "ssh").chmod(0o755)
    options = [f"AuthorizedKeysFile={folder}/authorized", "StrictModes=no", "UsePAM=no", "PidFile=none"]
    words = [word for option in (*options, f"ListenAddress={LOOPBACK}") for word in ("-o", option)]
    return {
        port: [sshd, "-D", "-f", "/dev/null", "-h", str(folder / "host"), "-p", str(port), *words] for port in ports
    }


def _free_port() -> int:
    """A port that is free now."""
    with socket.create_server((LOOPBACK, 0)) as server:
        return int(server.getsockname()[1])


def _await(port: int) -> None:
    """Wait until a server listens at the port. Errors: TimeoutError."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection((LOOPBACK, port)):
            return
        time.sleep(0.02)
    raise TimeoutError(f"no sshd at port {port}")


@measurement(rounds(8))
def main(arguments: Arguments) -> Figures:
    """Measure both ways in turn."""
    ssh, sshd = shutil.which("ssh"), shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if ssh is None or sshd is None:
        raise UserError("hosts_start needs ssh and sshd (Debian: openssh-client, openssh-server)")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        servers = _servers(folder, ssh, sshd)
        program, mark = folder / "worker.py", folder / "first-line"
        program.write_text(WORKER)
        words = ["--cpu", "--nproc", "1", str(program), str(mark)]
        path = f"{folder}:{os.environ['PATH']}"
        env = {name: value for name, value in os.environ.items() if not name.startswith(("PET_", "SLURM_", "OMPI_"))}
        env |= {"PATH": path}
        hosts = partial(_served, servers, [*LAUNCH, "--hosts", ",".join(NAMES), *words], mark, env)
        by_hand = partial(_by_hand, words, mark, env)
        turns = take_turns({OURS: hosts, BY_HAND: by_hand, AGAIN: by_hand}, arguments.rounds, unit="s")
    found: Figures = {}
    if turns.enough:
        found["over_by_hand_s"] = {case: turns.difference(case, BY_HAND).rounded(3) for case in turns.cases}
        columns = ["start", "s to the first line, median (quartiles)", "over the start by hand"]
        found["table"] = {"columns": columns, "rows": turns.rows(BY_HAND, ".2f", turns.difference, "+.2f")}
    return {**turns.account(), **found, "rounds": turns.rounded(3)}
