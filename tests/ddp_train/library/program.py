"""A program of a user's own, with exit handlers of its own: `program.py FOLDER HOW` ends in one way or another.

Every rank prints the threads that are left after the block, and what its exit handlers say.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

from ddp_train import Run


def threads() -> list[str]:
    """The names of this process's threads, those of C++ too."""
    tasks = Path("/proc/self/task").iterdir()
    return sorted((task / "comm").read_text().strip() for task in tasks)


def train(folder: str, how: str) -> None:
    with Run(folder, seed=1) as run:
        net = run.model(nn.Linear(3, 1))
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        loader = run.loader(TensorDataset(torch.randn(13, 3)), batch_size=4)
        run.keep(net=net, optimizer=optimizer)
        for _ in run.epochs(2):
            for (inputs,) in loader:
                if run.step_number == 2 and run.rank == run.world_size - 1:
                    if how in ("error", "caught"):
                        raise ValueError("of the user's own")
                    if how == "hang":
                        time.sleep(600)
                    if how == "mistake":
                        run.keep(more=1)
                if run.step_number == 2 and how == "signal":
                    os.kill(os.getpid(), signal.SIGTERM)
                run.backward(net(inputs).sum())
                run.step(optimizer)
    assert torch.isfinite(net(torch.ones(2, 3))).all(), "after the block it is the network alone"


if __name__ == "__main__":
    atexit.register(lambda: print("\nexit handler", flush=True))
    try:
        train(*sys.argv[1:])
    except ValueError:
        if sys.argv[2] != "caught":
            raise
        print("\ncaught", flush=True)
    assert sys.argv[2] == "caught" or not any("gloo" in name for name in threads()), threads()
    sys.exit(5 if sys.argv[2] == "status" else 0)
