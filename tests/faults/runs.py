"""Real runs of seconds for the fault tests: two gloo ranks under launch.py, a tiny network, synthetic data.

A run is 30 steps in 3 epochs; its checkpoints come every 3 steps. What it ends with is told by `digest` and `history`.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ddp_train.checkpoint import format as checkpoint_format
from ddp_train.checkpoint.per_rank_state import leaves
from tests.ddp_launch.conftest import ROOT, Launcher
from tests.faults.accident import VARIABLE

STEPS = 30
NETWORK = "tests.ddp_train.techniques.tiny:stateful"
"""With batch norm and dropout; `PLAIN` has neither."""
PLAIN = "tests.ddp_train.techniques.tiny:plain"
COMMON = (
    "--dataset synthetic --synthetic-samples 160 --batch-size 16 --epochs 3 --amp off --lr 0.01 --save-every 3 "
    "--no-tensorboard --no-examine --device cpu"
)
SGD = ""
HEAVIEST = {
    "muon": "--optimizer muon --lookahead 3 --ema 0.8 --mixup 1 --accumulate 2",
    "sam": "--sam 0.05 --ema 0.8 --mixup 1 --accumulate 2",
}
CLOCK = ("seconds", "images_per_second")
Accident = Mapping[str, object]


class Runs:
    """Starts runs in one folder, each with its accidents."""

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher
        self.folder = launcher.folder

    def start(
        self,
        name: str,
        options: str = "",
        *,
        accidents: Sequence[Accident] = (),
        ranks: int = 2,
        launch: str = "",
        network: str = NETWORK,
        **env: str,
    ) -> subprocess.Popen[str]:
        """Start the run that writes into the folder `name`; `launch`: options of the launcher.

        Accidents of an earlier start of the same name happen only once.
        """
        plans = self.folder / f"accidents-{name}"
        plans.mkdir(exist_ok=True)
        (plans / "plan.json").write_text(json.dumps(list(accidents)))
        words = shlex.split(f"--cpu --nproc {ranks} {launch} {COMMON} --model {network} {options}")
        if accidents:
            own = [words[i + 1] for i, word in enumerate(words) if word == "--technique"]
            words += ["--technique", ",".join([*own, "tests.faults.accident:plan"])]
        env = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), VARIABLE: str(plans / "plan.json")} | env
        process = self.launcher.start(*words, "--out-dir", name, **env)
        (plans / "launcher.pid").write_text(str(process.pid))
        return process

    def finish(self, name: str, options: str = "", *, timeout_s: float = 120, **more: Any) -> tuple[int, str]:
        """Start a run and wait for its end: exit status, and what it said on both streams."""
        process = self.start(name, options, **more)
        out, err = process.communicate(timeout=timeout_s)
        return process.returncode, out + err

    def until_gone(self, timeout_s: float = 20) -> None:
        """Wait until no process of the runs is left: a launcher's ranks end behind it."""
        deadline = time.monotonic() + timeout_s
        while self.launcher.alive():
            assert time.monotonic() < deadline, f"still running: {self.launcher.alive()}"
            time.sleep(0.05)

    def result(self, name: str) -> tuple[str, list[dict[str, Any]]]:
        """Digest of the final state, and history."""
        return digest(self.folder / name), history(self.folder / name)


def digest(folder: Path) -> str:
    """SHA-256 of model, buffers, optimizer and what techniques keep (EMA ...) in the newest checkpoint of `folder`."""
    state = checkpoint_format.newest(folder).state
    found = hashlib.sha256()
    for part in ("model", "optimizer", "techniques"):
        for path, leaf in leaves(state[part], part):
            if path.startswith("techniques/accident"):
                continue
            found.update(path.encode())
            if isinstance(leaf, torch.Tensor):
                found.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
                leaf = leaf.contiguous().view(torch.uint8) if leaf.ndim else leaf.reshape(1).view(torch.uint8)
                found.update(leaf.numpy().tobytes())
            else:
                found.update(repr(leaf).encode())
    return found.hexdigest()


def history(folder: Path) -> list[dict[str, Any]]:
    """The epochs' records, but for the clock's."""
    epochs = json.loads((folder / "training_history.json").read_text())["epochs"]
    return [{k: v for k, v in epoch.items() if k not in CLOCK} for epoch in epochs]
