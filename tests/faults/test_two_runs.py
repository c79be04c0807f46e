"""Two runs started 10 ms apart in one folder: one trains, the other says who does and changes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_RUN = (
    *("--dataset", "synthetic", "--synthetic-samples", "64", "--model", "small"),
    *("--epochs", "1", "--no-tensorboard", "--no-examine", "--device", "cpu", "--batch-size", "32"),
)
_FRONT = {
    "launcher": ("launch.py", "--cpu", "--nproc", "1"),
    "torchrun": ("-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "ddp_train/main.py"),
    "python": ("ddp_train/main.py",),
}
_TIMES = {"launcher": (1, 20), "torchrun": (0, 5), "python": (0, 20)}


@pytest.mark.parametrize("front", _FRONT)
def test_exactly_one_proceeds(front: str, times: Callable[[int, int], int], tmp_path: Path) -> None:
    for number in range(times(*_TIMES[front])):
        folder = tmp_path / str(number)
        command = [sys.executable, *_FRONT[front], *_RUN, "--out-dir", str(folder)]
        runs = []
        for _ in range(2):
            runs.append(subprocess.Popen(command, cwd=_ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            time.sleep(0.01)
        texts = ["".join(run.communicate(timeout=180)) for run in runs]
        statuses = [run.returncode for run in runs]
        refused = 1 if front == "torchrun" else 2  # torchrun has a status of its own
        assert sorted(statuses) == [0, refused], texts
        winner, loser = statuses.index(0), statuses.index(refused)
        assert f"error: --out-dir {folder}: another run is using this folder: pid " in texts[loser]
        if front != "torchrun":
            assert f"folder: pid {runs[winner].pid} (" in texts[loser]
            assert texts[loser].count("\n") <= 3, texts[loser]
        history = json.loads((folder / "training_history.json").read_text())
        assert [epoch["epoch"] for epoch in history["epochs"]] == [1]
        left = sorted(entry.name for entry in folder.iterdir() if entry.name.startswith((".", "earlier-")))
        assert left == []
