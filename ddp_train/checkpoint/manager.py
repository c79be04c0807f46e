"""Checkpoints of a run: what is in them, when they are due, and how a run resumes from one.

Collecting the state changes nothing that is trained: what differs among the ranks between two epochs (batch statistics,
what techniques keep) is gathered as it is, and each rank gets its own back.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ddp_core.errors import TrainingDiverged, UserError
from ddp_train import optim
from ddp_train.checkpoint import compatibility, per_rank_state, rng_state
from ddp_train.checkpoint import format as checkpoint_format
from ddp_train.checkpoint.async_writer import CheckpointWriter
from ddp_train.checkpoint.progress import Progress
from ddp_train.config.validation import LATEST, Interval, read_interval
from ddp_train.data.pipeline.window import Pipeline
from ddp_train.distributed.flag_exchange import FlagExchange
from ddp_train.distributed.heartbeat import heartbeat
from ddp_train.distributed.process_group import Ranks
from ddp_train.optim.precision import Precision
from ddp_train.technique import Context, Technique
from ddp_train.torch_internals import foreach


@dataclass(frozen=True)
class RunState:
    """What a run holds in memory and a checkpoint carries. `identity`: see compatibility.py."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    precision: Precision
    techniques: Sequence[Technique]
    ranks: Ranks
    flag_exchange: FlagExchange
    identity: Mapping[str, Any]

    def state(self) -> dict[str, Any]:
        """This rank's part, as references."""
        return {
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.state_dict(),
            "techniques": {t.name: t.state.state_dict() for t in self.techniques if t.state is not None},
        }


def collect(run_state: RunState, progress: Progress) -> dict[str, Any]:
    """The state of all ranks on rank 0, elsewhere {}. Called on all ranks, between two steps."""
    ranks, device = run_state.ranks, run_state.precision.device
    state = run_state.state()
    different = per_rank_state.differences(state, ranks, run_state.flag_exchange.group)
    mine = {"sums": list(progress.sums), "generators": rng_state.capture(device)}
    gathered: list[Any] = [mine]
    if ranks.world_size > 1:
        gathered = [None] * ranks.world_size
        dist.gather_object(mine, gathered if ranks.is_first else None, dst=0, group=run_state.flag_exchange.group)
    if not ranks.is_first:
        return {}
    sums = [sum(values) for values in zip(*(one["sums"] for one in gathered), strict=True)]
    return state | {
        "optimizer_class": optim.describe(run_state.optimizer),
        "progress": dataclasses.asdict(progress) | {"sums": sums},
        "run": dict(run_state.identity),
        "ranks": [one | {"differences": leaves} for one, leaves in zip(gathered, different, strict=True)],
    }


@dataclass(frozen=True)
class Restored:
    """A checkpoint that was taken up. `generators`: of this rank, None where they are not known."""

    path: Path
    progress: Progress
    generators: dict[str, Any] | None
    notes: tuple[str, ...]


def restore(source: Path, run_state: RunState) -> Restored:
    """Take the state in `source` back; checkpoint-latest.pt stands for the newest good one of its folder.

    Errors: UserError when the file is damaged, or of another model, optimizer or run.

    Rates, decay and the like are those of the optimizer in hand, which follow this run's options.
    """
    notes: tuple[str, ...] = ()
    if source.name == LATEST:
        source, found, notes = checkpoint_format.newest(source.parent)
    else:
        found = checkpoint_format.load(source)
    saved: Mapping[str, Any] = found
    try:
        progress = Progress(**saved["progress"])
        if why := compatibility.why_not(saved.get("run", {}), run_state.identity, progress):
            raise UserError(f"--resume {source}: {why}; continue it with the options of that run")
        if saved["optimizer_class"] != optim.describe(run_state.optimizer):
            raise ValueError(f"it was trained with {saved['optimizer_class']}")
        mine, states = _of_rank(saved, run_state, progress)
        run_state.network.load_state_dict(mine["model"])
        optim.restore(run_state.optimizer, mine["optimizer"])
        run_state.precision.load_state_dict(mine["scaler"])
        _restore_techniques(mine["techniques"], run_state.techniques)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--resume {source}: does not fit this model and optimizer ({reason})") from None
    if run_state.identity["config"]["reproducible"] and (
        changed := compatibility.differences(saved.get("run", {}), run_state.identity)
    ):
        notes = (*notes, f"--reproducible: the bits may differ from those of before ({', '.join(changed)})")
    if progress.step_in_epoch == 0:
        progress.step = progress.epoch * run_state.identity["steps_per_epoch"]  # of another global batch, perhaps
    return Restored(source, progress, states, notes)


def _of_rank(
    saved: Mapping[str, Any], run_state: RunState, progress: Progress
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """This rank's part of a saved state and its generators: its own where there are as many ranks as then, else what
    all have in common, and None."""
    of_ranks: Sequence[Mapping[str, Any]] = saved.get("ranks", [])
    state = {name: saved[name] for name in ("model", "optimizer", "scaler")}
    state["techniques"] = saved.get("techniques", {})
    found = [one["differences"] for one in of_ranks]
    rank = run_state.ranks.rank
    if len(of_ranks) != run_state.ranks.world_size:
        if rank > 0:
            progress.sums = (0.0, 0.0, 0.0)
        return per_rank_state.mean(state, found), None
    loss, correct, samples = of_ranks[rank]["sums"]
    progress.sums = (loss, correct, samples)
    return per_rank_state.own(state, found, rank), of_ranks[rank]["generators"]


def _restore_techniques(saved: Mapping[str, Any], techniques: Sequence[Technique]) -> None:
    """Errors: ValueError where a technique of this run was not in the saved one: its state would be made up."""
    for technique in techniques:
        if technique.state is None:
            continue
        if technique.name in saved:
            technique.state.load_state_dict(saved[technique.name])
        elif not technique.looks:
            raise ValueError(f"it was trained without {technique.name}")


class Saver:
    """Writes the checkpoints of a run to `latest`, and the best model to `best`, beside the training."""

    def __init__(self, run_state: RunState, latest: Path, best: Path, interval: Interval) -> None:
        self._run_state, self._best, self._interval = run_state, best, interval
        self._writer = CheckpointWriter(latest)
        self._saved_at = time.monotonic()
        self._generators: dict[str, Any] | None = None

    def restore(self, source: Path) -> Restored:
        """Take a checkpoint up; see `restore`."""
        restored = restore(source, self._run_state)
        self._generators = restored.generators
        return restored

    def begin(self) -> None:
        """Right before the first step: the random generators as they were left, where this rank has been before."""
        if self._generators is not None:
            rng_state.restore(self._generators, self._run_state.precision.device)
        self._saved_at = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether this rank finds that it is time for a checkpoint after the run's first `step` steps; rank 0's clock
        counts."""
        if self._interval.steps is not None:
            return step % self._interval.steps == 0
        waited = time.monotonic() - self._saved_at
        return (
            self._run_state.ranks.is_first and self._interval.seconds is not None and waited >= self._interval.seconds
        )

    def save(self, progress: Progress, best: nn.Module | None = None, *, periodic: bool = False) -> None:
        """Write the state as it is between two steps; called on all ranks, rank 0 writes.

        `best`: the network to keep where this epoch is the best one so far; written first, so that the checkpoint
        never runs ahead. `periodic`: it may be left out while another one is being written.
        """
        with heartbeat.during("checkpoint"):
            self._save(progress, best, periodic)
        self._saved_at = time.monotonic()

    def _save(self, progress: Progress, best: nn.Module | None, periodic: bool) -> None:
        self._refuse_poison(progress)
        state = collect(self._run_state, progress)
        if self._run_state.ranks.is_first:
            first = {} if best is None else {self._best: best.state_dict()}
            self._writer.save(state, step=progress.step, periodic=periodic, first=first)

    def _refuse_poison(self, progress: Progress) -> None:
        """Errors: TrainingDiverged where weights or buffers are not finite, on any rank; on all alike."""
        run_state = self._run_state
        values = [v for v in run_state.network.state_dict().values() if v.is_floating_point() and v.numel()]
        bad = not bool(torch.isfinite(torch.stack([n.double() for n in foreach("norm", values)])).all())
        if run_state.flag_exchange.exchange({"not_finite": bad})["not_finite"]:
            raise TrainingDiverged(
                f"the weights are not finite after step {progress.step} (epoch {progress.epoch + 1}): no checkpoint "
                "is written of them, and the last one stands; try a lower --lr, more --warmup-epochs, or --clip-grad 1"
            )

    def finish(self) -> None:
        """Wait until all that was saved is on the disk. Errors: UserError where it is not."""
        with heartbeat.during("checkpoint"):
            self._writer.close()


def create_saver(
    context: Context,
    techniques: Sequence[Technique],
    optimizer: torch.optim.Optimizer,
    flag_exchange: FlagExchange,
    pipeline: Pipeline,
    train_samples: int,
    latest: Path,
    best: Path,
) -> Saver:
    """The saver of a run that is otherwise put together; `train_samples`: images in its training set."""
    known = compatibility.describe(
        context.config,
        context.ranks,
        context.device,
        global_batch=context.global_batch,
        train_samples=train_samples,
        steps_per_epoch=context.steps_per_epoch,
        shares=pipeline.sampler.shares,
    )
    run_state = RunState(context.network, optimizer, context.precision, techniques, context.ranks, flag_exchange, known)
    return Saver(run_state, latest, best, read_interval(str(context.config.run.save_every), "--save-every"))
