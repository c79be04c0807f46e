"""Tiny runs of the real trainer; also the program of the runs on two ranks.

`runs.py RESULT.pt` trains every row of the table whose result must not depend on the ranks, and SAM; and
under --reproducible all rows that do something. Rank 0 writes {name: [weights]}.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from ddp_train import data
from ddp_train.assemble.build import Run, build
from ddp_train.config.parse import parse
from ddp_train.data.pipeline.window import Batch, Window
from ddp_train.distributed import process_group
from ddp_train.engine.components import Components
from ddp_train.observers.records import read_history
from ddp_train.optim.lr_schedule import set_learning_rate
from tests.ddp_train.techniques.table import TABLE, Row

CPU = torch.device("cpu")
SAM = next(row for row in TABLE if row.name == "sam")
"""Differs on two ranks, in a way that a formula tells (`sam_by_hand`)."""
PLAIN, STATEFUL = (f"tests.ddp_train.techniques.tiny:{name}" for name in ("plain", "stateful"))
COMMON = "--dataset synthetic --synthetic-samples 160 --batch-size 16 --epochs 2 --amp off --no-tensorboard --lr 0.01"
"""Two epochs of ten steps."""


def make(options: str, out_dir: Path, network: str, ranks: process_group.Ranks | None = None) -> Run:
    """A run, ready to go."""
    words = [*shlex.split(f"{COMMON} --model {network} {options}"), "--out-dir", str(out_dir)]
    return build(parse(words), ranks or process_group.Ranks(), CPU)


def weights(run: Run) -> dict[str, torch.Tensor]:
    """Everything that a run has learned: the trained network, and the one that is evaluated."""
    components = run.trainer.components
    found = {f"network.{name}": value.clone() for name, value in components.network.state_dict().items()}
    return found | {f"evaluated.{name}": value.clone() for name, value in components.evaluated.state_dict().items()}


def train(options: str, network: str = STATEFUL) -> dict[str, torch.Tensor]:
    """The weights of a whole run on one rank."""
    return trained(options, network)[0]


@cache
def trained(options: str, network: str = STATEFUL) -> tuple[dict[str, torch.Tensor], list[dict[str, object]]]:
    """A whole run on one rank: weights and history. Kept, since several checks ask for the same one."""
    with tempfile.TemporaryDirectory() as folder:
        run = make(options, Path(folder) / "run", network)
        run.trainer.fit()
        return weights(run), rows_of_history(run)


def sam_by_hand(options: str, rho: float, world_size: int, out_dir: Path) -> dict[str, torch.Tensor]:
    """The weights after a run with SAM on `world_size` ranks, all in this process and without DistributedDataParallel.

    Each rank's part of a global batch gives its own climb and the gradient there; the step is with their mean.
    """
    run = make(options, out_dir, PLAIN)
    components, chosen = run.trainer.components, run.config
    dataset = data.load("synthetic", chosen.data)
    pipelines = [
        data.build_pipeline(
            dataset, chosen.data, chosen.augment, rank=rank, world_size=world_size, device=CPU, global_batch=16,
            accumulate=1, seed=0,
        )
        for rank in range(world_size)
    ]  # fmt: skip
    named = dict(components.network.named_parameters())
    windows = (
        window
        for epoch in range(components.epochs)
        for window in zip(*(p.train(epoch) for p in pipelines), strict=True)
    )
    for step, of_ranks in enumerate(windows):
        found = []
        for window in of_ranks:
            (batch,) = window.batches
            here = {name: weight.detach().clone().requires_grad_() for name, weight in named.items()}
            first = _gradient(components, here, batch, world_size / window.size)
            norm = torch.cat([g.flatten() for g in first]).norm()
            there = {
                name: (w + rho * g / norm).detach().requires_grad_()
                for (name, w), g in zip(here.items(), first, strict=True)
            }
            found.append(_gradient(components, there, batch, world_size / window.size))
        for weight, *gradients in zip(named.values(), *found, strict=True):
            weight.grad = sum(gradients) / world_size
        set_learning_rate(components.optimizer, components.schedule(step))
        components.optimizer.step()
    return weights(run)


def _gradient(
    components: Components, at: dict[str, torch.Tensor], batch: Batch, weight: float
) -> tuple[torch.Tensor, ...]:
    logits = torch.func.functional_call(components.network, at, (batch.images,))
    return torch.autograd.grad(components.loss(logits, batch.labels) * weight, list(at.values()))


class Killed(Exception):
    """Ends a run at a step."""


def train_with_a_kill(
    options: str, out_dir: Path, network: str = STATEFUL, *, at: int, saved: int
) -> tuple[dict[str, torch.Tensor], Run]:
    """The same run with a checkpoint every `saved` steps, ended before step `at` and resumed by new objects."""
    options = f"{options} --save-every {saved}"
    run = make(options, out_dir, network)
    step, saver = run.trainer.train_step, run.trainer.components.saver
    assert saver is not None

    def step_or_die(window: Window) -> None:
        saver.finish()  # none is skipped because the one before is still being written
        if run.trainer.progress.step == at:
            raise Killed
        step(window)

    run.trainer.train_step = step_or_die  # type: ignore[method-assign]
    for observer in run.observers:
        observer.on_start(run.facts)
    with suppress(Killed):
        run.trainer.fit()
    torch.manual_seed(12345)  # whatever a generator's state was, it is gone
    again = make(f"{options} --resume auto", out_dir, network)
    per_epoch = again.facts.steps_per_epoch
    expected = max(at // saved * saved, at // per_epoch * per_epoch)
    assert again.trainer.progress.step == expected, "the newest checkpoint is the one to go on from"
    for observer in again.observers:
        observer.on_start(again.facts)
    again.trainer.fit()
    for observer in again.observers:
        observer.leave()
    return weights(again), again


def rows_of_history(run: Run) -> list[dict[str, object]]:
    """The epochs' records, but for the clock's."""
    epochs = read_history(run.folder.history)["epochs"]
    return [{k: v for k, v in epoch.items() if k not in ("seconds", "images_per_second")} for epoch in epochs]


def rows_for_ranks() -> list[Row]:
    """The rows whose result must not depend on the number of ranks."""
    return [row for row in TABLE if row.ranks is None]


def rows_for_bits() -> list[Row]:
    """The rows whose bits must not depend on the number of ranks under --reproducible: all. But one that only looks
    changes no bits, and a schedule is a function of the step."""
    return [row for row in TABLE if not row.silent and not row.name.startswith("scheduler ")]


def reproducibly(row: Row) -> tuple[str, str]:
    """The options and the network of its short run under --reproducible; its last global batch has 8 samples of 16."""
    options = f"{row.on.replace('--sync-batch-norm', '')} --reproducible --reproducible-shards 4 --synthetic-samples 40"
    return options, row.network or STATEFUL


def main() -> None:
    """The worker of two ranks."""
    torch.set_num_threads(1)
    ranks = process_group.Ranks.from_environment()
    process_group.start(ranks, CPU, timeout_s=120)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        # The folder must be the same on all ranks: rank 0 makes it.
        place = Path(process_group.on_first_rank(lambda: folder, ranks))
        jobs = [(row.name, row.on, row.network or PLAIN) for row in (*rows_for_ranks(), SAM)]
        jobs += [(f"{row.name}, reproducible", *reproducibly(row)) for row in rows_for_bits()]
        for name, options, network in jobs:
            run = make(options, place / name.replace(" ", "-"), network, ranks)
            run.trainer.fit()
            found[name] = weights(run)
        if ranks.is_first:
            torch.save(found, sys.argv[1])
        process_group.wait_for_all()
    process_group.leave(0)


if __name__ == "__main__":
    main()
