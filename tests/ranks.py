"""Real ranks with gloo that start at once, since torch is imported already."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.warm import ROOT, WarmPopen


def run_ranks(ranks: int, program: str | Path, *words: str, folder: Path, timeout_s: float = 240.0) -> None:
    """Run a program on so many real ranks of one thread each, for gloo. folder: for what they print.

    For what happens between the ranks: a test of how ranks are started and ended runs the command itself. Fails with
    the output of every rank where one does not end with status 0, or not in time.
    """
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, None, is_master=True, wait_for_workers=False)
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": "True"}
    common |= {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "OMP_NUM_THREADS": 1, "PYTHONPATH": ROOT}
    outputs = [folder / f"output-of-rank-{rank}.txt" for rank in range(ranks)]
    processes = []
    try:
        for rank, output in enumerate(outputs):
            own = common | {"RANK": rank, "LOCAL_RANK": rank}
            env = os.environ | {name: str(value) for name, value in own.items()}
            with output.open("wb") as file:
                command, streams = [sys.executable, str(program), *words], {"stdout": file, "stderr": file}
                processes.append(WarmPopen(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, **streams))
        end = time.monotonic() + timeout_s
        while None in (ended := [process.poll() for process in processes]) and not any(ended):
            assert time.monotonic() < end, "the ranks wait for one another"
            time.sleep(0.02)
        said = "\n".join(f"{output.name}:\n{output.read_text()[-3000:]}" for output in outputs)
        assert ended == [0] * ranks, said
    finally:
        for process in processes:
            process.kill()
            process.wait()
