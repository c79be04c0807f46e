"""Real ranks with gloo that start at once: forked from a process that has imported torch and done nothing else.

For what happens between the ranks. A test of how ranks are started and ended runs the command itself.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import time
from multiprocessing.connection import wait
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch", "torch.distributed", "torch.nn.parallel"])


def run_ranks(ranks: int, program: str | Path, *words: str, folder: Path, timeout_s: float = 240.0) -> None:
    """Runs a program, given as a file, on so many ranks of one thread each. folder: for what they print.

    Fails with the output of every rank where one does not end with status 0, or not in time.
    """
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, None, is_master=True, wait_for_workers=False)
    outputs = [folder / f"output-of-rank-{rank}.txt" for rank in range(ranks)]
    processes = []
    for rank, output in enumerate(outputs):
        env = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "OMP_NUM_THREADS": 1}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": "True"}
        texts = {name: str(value) for name, value in env.items()}
        processes.append(FORKS.Process(target=_rank, args=(str(program), words, texts, str(output)), daemon=True))
    try:
        for process in processes:
            process.start()
        end, waiting = time.monotonic() + timeout_s, {process.sentinel: process for process in processes}
        while waiting and time.monotonic() < end and not any(process.exitcode for process in processes):
            for sentinel in wait(list(waiting), timeout=1.0):
                waiting.pop(sentinel).join()
        said = "\n".join(f"{output.name}:\n{output.read_text()[-3000:]}" for output in outputs if output.exists())
        assert [process.exitcode for process in processes] == [0] * ranks, said
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()


def _rank(program: str, words: tuple[str, ...], env: dict[str, str], output: str) -> None:
    """One rank: as `python PROGRAM WORDS` with the variables, and its output in a file."""
    with Path(output).open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= env
    os.chdir(ROOT)
    sys.argv = [program, *words]
    runpy.run_path(program, run_name="__main__")
