"""Run folders made by hand, as the launcher and the trainer write them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

PLAN: dict[str, Any] = {
    "selection": {
        "indices": [0, 1],
        "uuids": ["GPU-a", "GPU-b"],
        "group": "2 x A100",
        "policy": "largest",
        "excluded": [{"index": 2, "reason": "in use by process 7"}],
        "reason": "the largest group",
    },
    "environment": [
        {"name": "NCCL_P2P_LEVEL", "value": "NVL", "reason": "NVLink between all", "kept": False, "unset": False},
        {"name": "MASTER_PORT", "value": "1", "reason": "stale", "kept": False, "unset": True},
    ],
    "nproc_per_node": 2,
    "nnodes": 1,
    "backend": "nccl",
    "shell": "torchrun train.py",
    "training": {"batch_size": 512, "reasons": {"batch_size": "fits the memory"}},
    "warnings": ["one GPU is hot"],
}


def epoch(number: int, **more: object) -> dict[str, object]:
    """A row of a history."""
    row: dict[str, object] = {
        "epoch": number,
        "train_loss": 2.0 / number,
        "train_accuracy": 1 - 0.6 / number,
        "test_loss": 2.2 / number,
        "test_accuracy": 1 - 0.7 / number,
        "learning_rate": 0.1 / number,
        "seconds": 10.0,
        "images_per_second": 5000.0,
        "global_batch": 512,
    }
    return row | more


def history(epochs: int = 3, **more: object) -> dict[str, object]:
    """A training_history.json."""
    rows = [epoch(number) for number in range(1, epochs + 1)]
    environment = {"python": "3.11.7", "torch": "2.14.1", "model": "resnet18", "device": "A100", "world_size": 2}
    best = {"epoch": epochs, "test_accuracy": rows[-1]["test_accuracy"]}
    document = {"schema": "ddp-train-history/1", "environment": environment, "epochs": rows, "best": best}
    return document | more


def event(name: str, **facts: object) -> dict[str, object]:
    """A line of events.jsonl."""
    return {"event": name, "time": "2026-11-30T15:21:27.821+00:00", "monotonic_ms": 1.0, **facts}


def failure(rank: int = 1, **more: object) -> dict[str, object]:
    """The event of a failed attempt."""
    facts: dict[str, object] = {
        "attempt": 0,
        "rank": rank,
        "host": "box",
        "words": "exit code 1",
        "error": "RuntimeError: CUDA error",
        "place": {"step": 12, "epoch": 2, "phase": "backward"},
        "hang": None,
        "last_lines": ["Traceback", "RuntimeError: CUDA error"],
        "victims": [0],
        "failed_as_well": [],
        "stopped": [2, 3],
        "remedy": {"name": "x", "meaning": "the GPU broke down", "advice": "reset it"},
    }
    return event("failure", **(facts | more))


def write(folder: Path, **files: object) -> Path:
    """A folder with these files: history, plan, config and dataset as objects, events as a list."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {"history": "training_history.json", "plan": "plan.json", "dataset": "dataset.json", "done": "done.json"}
    for key, content in files.items():
        if key == "events":
            assert isinstance(content, list)
            (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in content))
        elif key == "config":
            (folder / "config.yaml").write_text(str(content))
        else:
            (folder / names[key]).write_text(json.dumps(content))
    return folder


def large(folder: Path, epochs: int = 300, ranks: int = 64) -> Path:
    """A long run on many GPUs, with failures, energy and classes without end."""
    rows = []
    for number in range(1, epochs + 1):
        better = 1 - 0.94 * (1 - math.exp(-number / 40))
        extra = {"gpu_utilization": 0.93 - 0.1 / number, "gpu_memory": 4.0e10 + 1e7 * number, "gradient_norm": better}
        rows.append(
            epoch(
                number,
                train_loss=2.3 * better**2,
                test_loss=2.2 * better + 0.05,
                train_accuracy=1 - 0.9 * better**2,
                test_accuracy=1 - 0.9 * better,
                learning_rate=0.1 * (1 + math.cos(math.pi * number / epochs)) / 2,
                images_per_second=150_000 + 2000 * math.sin(number),
                energy_joules=41_000 + 900 * math.sin(number),
                extra=extra,
            )
        )
    phases = {"data": 20, "forward": 400, "backward": 800, "communication": 120, "step": 60, "evaluation": 50}
    seconds = {str(rank): {name: base + rank % 7 for name, base in phases.items()} for rank in range(ranks)}
    total = sum(float(str(row["energy_joules"])) for row in rows)
    best = {"epoch": epochs, "test_accuracy": rows[-1]["test_accuracy"]}
    document = history(rank_seconds=seconds, energy={"joules": total, "epochs": epochs})
    machine = {"model": "resnet50", "parameters": 25_557_032, "device": "NVIDIA H100", "world_size": ranks}
    document |= {"epochs": rows, "best": best, "environment": dict(document["environment"]) | machine}  # type: ignore[call-overload]
    events = [event("plan", host="box", argv=["launch.py", "--auto", "--epochs", "300"], version="0.1.0", plan=PLAN)]
    for attempt in range(40):
        events += [
            event("attempt", attempt=attempt, world_size=ranks),
            failure(attempt % ranks, attempt=attempt, last_lines=["x" * 400] * 40, victims=[*range(ranks)]),
            event("restart", attempt=attempt + 1, ranks=ranks, devices="GPU 0 to 7"),
        ]
    doing = [{"ranks": [rank], "doing": "all_reduce " * 20} for rank in range(ranks)]
    events += [event("stall", seconds=120.0, words="rank 3 is missing", doing=doing) for _ in range(40)]
    events += [event("waited-for", rank=3, ms_a_step=4.2, share=0.12, steps=10_000, ranks=None)]
    gpus = [{"index": index, "uuid": f"GPU-{index}", "joules": 1.6e6 + index} for index in range(8)]
    events += [event("energy", gpus=gpus), event("end", status=0, seconds=4000.0)]
    classes = [f"class number {number} of them" for number in range(1000)]
    dataset = {"name": "imagenet", "classes": classes, "image_shape": [3, 224, 224], "train_samples": 1_281_167}
    settings = f"epochs: {epochs}\nlr: 0.1\ntarget: 0.9\nmodel: resnet50\n"
    return write(folder, history=document, plan=PLAN, events=events, dataset=dataset, config=settings)
