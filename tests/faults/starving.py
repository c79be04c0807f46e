"""Memory that runs out on one of two ranks; the program of the ranks of test_memory.py.

`starving.py RESULT.pt` trains each case in one process group, with the same network and data; rank 0 writes
{case: {"gradients": [steps, n], "history": ..., "said": ...}}.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ddp_train.distributed import process_group
from ddp_train.technique import Context, Moment, Technique
from tests.ddp_train.techniques import runs, tiny

STEP, RANK = 13, 1
CASES = {
    "whole": ("", None),
    "forward": ("", "forward"),
    "backward": ("", "backward"),
    "accumulated": ("--accumulate 2", None),
    "accumulated forward": ("--accumulate 2", "forward"),
    "accumulated backward": ("--accumulate 2", "backward"),
    "twice": ("", "twice"),
    "sam": ("--sam 0.05", None),
    "sam backward": ("--sam 0.05", "backward"),
    "statistics": ("", None),
    "statistics forward": ("", "last forward"),
    "to the end": ("", "always"),
}
BATCH_NORM = "tests.ddp_train.techniques.tiny:stateful"


class Plan:
    """What happens in the running case."""

    where: str | None = None
    here = False
    times = 0
    gradients: ClassVar[list[Tensor]] = []
    buckets: ClassVar[list[int]] = []
    allreduce_hook: Any = None


def network(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """tiny.plain with a layer in its middle that raises when memory is to run out.

    Behind it stands more than DistributedDataParallel's first bucket takes: when the backward pass comes to it, the
    ranks are exchanging that one already.
    """
    layers = list(tiny.plain(num_classes, image_shape))
    wide = nn.Linear(16 * 4 * 4, 1200)
    return nn.Sequential(*layers[:3], Starving(), *layers[3:-1], wide, nn.ReLU(), nn.Linear(1200, num_classes))


class Starving(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if self.training and _strikes("forward"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return _Backward.apply(x)


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        # The layers behind it have handed their gradients over by now, those before it have not.
        if Plan.here and _strikes("backward"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return gradient


def _strikes(where: str) -> bool:
    most = {"twice": 2, "always": 10**6}.get(Plan.where or "", 1)
    if not Plan.here or Plan.where is None or Plan.times >= most:
        return False
    if where not in Plan.where and not (where == "forward" and Plan.where in ("twice", "always")):
        return False
    Plan.times += 1
    Plan.buckets.append(Plan.allreduce_hook.issued)
    return True


def watch(context: Context) -> Technique:
    """Tells the network where it is, and keeps every gradient."""

    def batch(images: Tensor, targets: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        Plan.here = moment.step == STEP and context.ranks.rank == RANK
        return images, targets

    def gradient(parameters: Any, moment: Moment) -> None:
        whole = torch.cat([p.grad.flatten() for p in parameters])
        Plan.gradients.append(whole.clone() if moment.step == STEP else whole.norm().reshape(1))

    return Technique(name="watch", batch=batch, gradient=gradient)


def one(case: str, folder: Path, ranks: process_group.Ranks) -> dict[str, Any]:
    options, Plan.where = CASES[case]
    Plan.times, Plan.gradients, Plan.buckets, Plan.here = 0, [], [], False
    model = BATCH_NORM if case.startswith("statistics") else "tests.faults.starving:network"
    if model == BATCH_NORM:
        options += " --technique tests.faults.starving:watch,tests.faults.starving:starve"
    else:
        options += " --technique tests.faults.starving:watch"
    place = process_group.on_first_rank(lambda: str(folder / case.replace(" ", "-")), ranks)
    said, error = io.StringIO(), ""
    run = runs.make(options, Path(place), model, ranks)
    Plan.allreduce_hook = run.trainer.components.allreduce_hook
    with contextlib.redirect_stderr(said):
        try:
            run.trainer.fit()
        except process_group.SharedError as shared:
            error = str(shared)
    history = runs.rows_of_history(run) if ranks.is_first and not error else []
    buffers = {name: value.clone() for name, value in run.trainer.components.network.named_buffers()}
    of_ranks: list[Any] = [None, None]
    torch.distributed.all_gather_object(of_ranks, Plan.buckets)
    lines = [line for line in said.getvalue().splitlines() if "memory ran out" in line]
    return {
        "gradient": next((g for g in Plan.gradients if len(g) > 1), None),
        "norms": [float(g) for g in Plan.gradients if len(g) == 1],
        "buckets": of_ranks[RANK],
        "history": history,
        "said": lines,
        "error": error,
        "buffers": buffers,
        "sums": list(run.trainer.progress.sums),
        "step": run.trainer.progress.step,
        "accumulate": run.trainer.progress.accumulate,
    }


def starve(context: Context) -> Technique:
    """Memory runs out behind the forward pass, when batch statistics have been moved already."""

    def wrap(inner: Any) -> Any:
        def loss(logits: Tensor, targets: Tensor) -> Tensor:
            if _strikes("forward"):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return inner(logits, targets)

        return loss

    return Technique(name="starve", loss=wrap)


def main() -> None:
    torch.set_num_threads(1)
    ranks = process_group.Ranks.from_environment()
    process_group.start(ranks, runs.CPU, timeout_s=60)
    with tempfile.TemporaryDirectory() as folder:
        found = {case: one(case, Path(folder), ranks) for case in CASES}
        if ranks.is_first:
            torch.save(found, sys.argv[1])
        process_group.wait_for_all()
    process_group.leave(0)


if __name__ == "__main__":
    sys.modules["tests.faults.starving"] = sys.modules["__main__"]
    main()
