"""What the four loops have in common: options, data, network. The data causes the fault that LOOP_FAULT asks for.

LOOP_FAULT="KIND RANK SAMPLE": the kind of fault, its rank, and at which sample of this rank it happens. Each rank
writes the number of samples that it has read to the run's folder.
"""

from __future__ import annotations

import argparse
import atexit
import os
import signal
import time
from pathlib import Path

import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

SAMPLES, GLOBAL_BATCH, EPOCHS, SAVE_EVERY = 380, 37, 4, 4
"""The samples are no multiple of the global batch, and that is no multiple of 2 or 3 ranks. SAVE_EVERY: in steps."""
RANK, WORLD_SIZE = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
PER_RANK = -(-GLOBAL_BATCH // WORLD_SIZE)
"""The batch of a rank, for a library that only has a batch size per process."""
parser = argparse.ArgumentParser()
parser.add_argument("out_dir", type=Path)
OUT_DIR: Path = parser.parse_known_args()[0].out_dir


class Patients(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Scikit-learn's diabetes data: ten inputs and one target per sample."""

    def __init__(self) -> None:
        inputs, targets = (torch.tensor(part, dtype=torch.float32) for part in load_diabetes(return_X_y=True))
        self.inputs, self.targets = inputs / inputs.std(0), (targets - targets.mean()) / targets.std()
        self.read = 0
        self.kind, rank, sample = os.environ.get("LOOP_FAULT", "none -1 0").split()
        self.at = int(sample) if int(rank) == RANK else -1
        atexit.register(self._note)

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.read += 1
        inputs = self.inputs[index]
        if self.read == self.at:
            self._note()
            if self.kind == "hang":
                time.sleep(3600)
            if self.kind == "nan":
                inputs = inputs * float("nan")
            if self.kind in ("SIGKILL", "SIGTERM"):
                os.kill(os.getpid(), getattr(signal, self.kind))
        return inputs, self.targets[index]

    def _note(self) -> None:
        OUT_DIR.mkdir(parents=True, exist_ok=True)
        (OUT_DIR / f"samples-{RANK}.txt").write_text(str(self.read))


def network() -> nn.Module:
    """The network, with the same initial weights on every rank and in every loop."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 1), nn.Flatten(0))


def leave(trained: nn.Module) -> None:
    """Save the trained weights, for the comparison."""
    if RANK == 0:
        torch.save({name: value.cpu() for name, value in trained.state_dict().items()}, OUT_DIR / "weights.pth")
