"""What the four loops have in common: options, data, network. The data brings the misfortune that LOOP_FAULT asks for.

LOOP_FAULT="KIND RANK SAMPLE": what happens when this rank has read so many samples. Each rank leaves the number that it
has read in the run's folder.
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
"""The batch divides neither the samples nor by the ranks. SAVE_EVERY: steps between two checkpoints."""
RANK, WORLD_SIZE = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
PER_RANK = -(-GLOBAL_BATCH // WORLD_SIZE)
"""What the global batch is for a library that knows the batch of a process alone."""
parser = argparse.ArgumentParser()
parser.add_argument("out_dir", type=Path)
OUT_DIR: Path = parser.parse_known_args()[0].out_dir


class Patients(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Scikit-learn's diabetes data: ten numbers each, and the one that is wanted."""

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
    """The same first weights everywhere."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 1), nn.Flatten(0))


def leave(trained: nn.Module) -> None:
    """Keep the trained weights, for the comparison."""
    if RANK == 0:
        torch.save({name: value.cpu() for name, value in trained.state_dict().items()}, OUT_DIR / "weights.pth")
