"""A rank of two on ghost GPUs, started by test_ranks.py: several runs of the trainer, one after the other.

    python tests/ghost/two_ranks.py FOLDER

Writes FOLDER/RANK.json: of each run the places where a step waited, the weights' sums, and what the run is asked about.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ddp_train.assemble.build import Run
from ddp_train.data.pipeline.window import Window
from ddp_train.distributed import process_group
from ddp_train.distributed.process_group import Ranks, gpu_uuids
from tests.ghost import Ghost, Gpu
from tests.ghost.install import for_ever
from tests.ghost.runs import STEPS, make

WAITING_PHASES = ("data", "forward", "backward", "step", "training", "device")
MIB = 2**20


def main(folder: Path) -> None:
    """Every run, on both ranks."""
    torch.set_num_threads(1)
    ranks = Ranks.from_environment()
    gpus = [Gpu(uuid=f"GPU-00000000-0000-0000-0000-00000000000{number}") for number in range(2)]
    ghost = for_ever(*gpus)
    device = process_group.choose_device("cuda", ranks)
    process_group.start(ranks, device, timeout_s=100)
    found: dict[str, Any] = {"backend": dist.get_backend(), "device": str(device)}
    found["cpu tensor"] = refusal(lambda: dist.all_reduce(torch.ones(2)))

    def run(name: str, options: str, network: str = "plain", room: int | None = None) -> None:
        words = f"{options} --model tests.ddp_train.techniques.tiny:{network}"
        found[name] = train(ghost, make(words, folder / name.replace(" ", "-"), ranks=ranks, device=device), room)

    run("default", "")
    run("loader", "--pipeline loader --num-workers 0 --accumulate 2 --ema 0.9")
    run("batch norm", "--sync-batch-norm", "normed")
    run("out of memory", "", room=found["default"]["taken"] - 1 if ranks.rank == 1 else None)
    found["uuids"] = gpu_uuids(ranks, device)
    ghost.gpus[:], ghost.current = [gpus[ranks.rank]], 0  # as under torchrun's --virtual-local-rank
    found["uuids, each sees one"] = gpu_uuids(replace(ranks, local_rank=0), torch.device("cuda", 0))
    (folder / f"{ranks.rank}.json").write_text(json.dumps(found))
    process_group.leave(0)


def refusal(call: Callable[[], object]) -> str:
    try:
        call()
    except RuntimeError as error:
        return str(error)
    return ""


def train(ghost: Ghost, run: Run, room: int | None) -> dict[str, Any]:
    """What was seen of a run. room: bytes that its steps may take of the GPU; None: any.

    taken: the most that the steps took.
    """
    hook = run.trainer.components.allreduce_hook
    gc.collect()
    before, taken, step = ghost.gpu.allocated, [0], run.trainer.train_step

    def limited(window: Window) -> None:
        ghost.gpu.fraction = 1.0 if room is None else (before + room) / ghost.gpu.total
        torch.cuda.reset_peak_memory_stats()
        try:
            step(window)
        finally:
            ghost.gpu.fraction = 1.0
            taken.append(ghost.gpu.peak - before)

    run.trainer.train_step = limited  # type: ignore[method-assign]
    ghost.waits.forget()
    run.trainer.fit()
    often = [w for w, count in ghost.waits.counts.items() if count >= STEPS - 1 and w.phase in WAITING_PHASES]
    weights = [float(p.detach().double().sum()) for p in run.trainer.components.network.parameters()]
    return {
        "steps": run.trainer.progress.step,
        "waits": [f"{wait.place}: {wait.kind}" for wait in often],
        "weights": weights,
        "taken": max(taken),
        "accumulate": run.trainer.components.pipeline.accumulate,
        "hooked": None if hook is None else not hook._by_group,
    }


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    main(Path(sys.argv[1]))
