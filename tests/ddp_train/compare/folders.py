"""Run folders as the trainer leaves them, made by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml


def run_folder(
    path: Path,
    accuracies: Sequence[float],
    *,
    split: str = "test",
    finished: bool = True,
    seconds: float = 10.0,
    content: str = "abc",
    environment: dict[str, Any] | None = None,
    joules: float | None = None,
    **settings: Any,
) -> Path:
    """A run with these accuracies by epoch."""
    path.mkdir(parents=True)
    epochs = [
        {
            "epoch": number,
            "train_loss": 1 / number,
            "train_accuracy": accuracy,
            f"{split}_loss": 2 / number,
            f"{split}_accuracy": accuracy,
            "learning_rate": 0.1,
            "seconds": seconds,
            "images_per_second": 1000.0 / seconds,
            "global_batch": 128,
        }
        for number, accuracy in enumerate(accuracies, 1)
    ]
    best = max(range(len(accuracies)), key=accuracies.__getitem__)
    history = {
        "schema": "ddp-train-history/1",
        "environment": {"torch": "2.14.1", "device": "cpu", "world_size": 2, **(environment or {})},
        "epochs": epochs,
        "best": {"epoch": best + 1, f"{split}_accuracy": accuracies[best]},
    }
    if joules is not None:
        history["energy"] = {"joules": joules, "epochs": len(history["epochs"])}
    (path / "training_history.json").write_text(json.dumps(history))
    config = {"epochs": len(accuracies), "seed": 0, "out_dir": str(path), "resume": None, "lr": 0.1, **settings}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    data = {"name": "digits", "classes": ["0", "1"], "image_shape": [1, 8, 8], "content": content}
    (path / "dataset.json").write_text(json.dumps({**data, "train_samples": 100, "test_samples": 20}))
    if finished:
        (path / "done.json").write_text("{}")
    return path


def program_folder(path: Path, *command: str, status: int | None = 0) -> Path:
    """The logs of another program."""
    path.mkdir(parents=True)
    events: list[dict[str, Any]] = [{"event": "plan", "argv": ["launch.py", *command], "plan": {}, "host": "box"}]
    if status is not None:
        events.append({"event": "end", "status": status, "seconds": 5.0})
    (path / "events.jsonl").write_text("".join(json.dumps(one) + "\n" for one in events))
    return path
