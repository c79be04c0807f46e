"""Ends the run at a step with a loss or gradient that is not finite, on any rank, with what is needed to see why.

Every rank looks at its loss, and at each parameter's gradient before the optimizer uses it. After the all-reduce the
gradients are the same on all ranks, and so is the verdict on them; the ranks still exchange it
(distributed/flag_exchange.py), because of the losses. The step's batch is then passed through the network once more, to
name the first layer that goes wrong, and the indices of its samples are written to bad_batch.json in the run folder.
Under fp16 the loss scaler handles gradients that overflow: the step is skipped, and counted.

On a GPU the host does not wait for the verdict but reads it one step later; a fused optimizer skips the bad step by
itself (not yet verified on a GPU). Other optimizers have spoilt the weights by then; no checkpoint is written of them.

Cost on the CPU, one thread: 62 us a step for 100 gradients of 4096 numbers (`python -m benchmarks.control_cost`, on a
machine of two cores); on a GPU not yet measured.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ddp_core.errors import TrainingDiverged
from ddp_core.files import write_text
from ddp_train.checkpoint.progress import Advice
from ddp_train.config.validation import resume_target
from ddp_train.data.pipeline.window import Pipeline
from ddp_train.diagnostics.watch_numbers import first_bad_gradient, first_bad_layer
from ddp_train.distributed.flag_exchange import FlagExchange
from ddp_train.distributed.heartbeat import heartbeat
from ddp_train.distributed.process_group import Ranks, gather
from ddp_train.engine.gradient_sync import seed_shard
from ddp_train.optim.precision import Precision
from ddp_train.technique import Moment
from ddp_train.torch_internals import any_not_finite, foreach

FILE = "bad_batch.json"
SCHEMA = "ddp-train-bad-batch/1"
BatchChange = Callable[[Tensor, Tensor, Moment], tuple[Tensor, Tensor]]


class SecondPass(Protocol):
    """Examines a step again that was not finite; called on all ranks."""

    def __call__(self, moment: Moment) -> tuple[str | None, list[int]]:
        """The first fault in this rank's part of the step, None if there is none; the indices of its samples."""


class NanGuard:
    """Watches the steps of a run whose folder is `folder`."""

    def __init__(
        self,
        network: nn.Module,
        precision: Precision,
        ranks: Ranks,
        flag_exchange: FlagExchange,
        folder: Path,
        second_pass: SecondPass,
        advice: Advice,
    ) -> None:
        self._network, self._second_pass, self._folder = network, second_pass, folder
        self._ranks, self._flag_exchange, self._advice = ranks, flag_exchange, advice
        self._scaled = precision.mode == "fp16"
        self._late = precision.device.type == "cuda"
        self._pending: tuple[Moment, Tensor, Any] | None = None
        self._bad, self._one = torch.zeros(()), torch.ones(())
        self._skipped: Tensor | int = 0
        self._suspect: Moment | None = None

    def look(
        self,
        parameters: Sequence[nn.Parameter],
        losses: Sequence[Tensor],
        moment: Moment,
        optimizer: torch.optim.Optimizer,
    ) -> int:
        """A flag for the exchange: 0 if all is finite, else larger for a lower rank. `losses`: this rank's losses in
        the step; `optimizer`: the one about to step with the gradients of `parameters`."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not self._late:
            self._suspect = moment
            return self._flag(any_not_finite([*gradients, *losses], self._bad, self._one))
        norms = [*foreach("norm", gradients)] if gradients else []
        if not self._scaled:
            norms += losses
        if not norms:
            return 0
        total = torch.stack(norms).sum()
        # 1 or 0: a number that is not finite minus itself is NaN. Fused optimizers read it as float32.
        bad = (total - total).ne_(0).float()
        if self._scaled:
            self._skipped = self._skipped + bad
            return 0
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.found_inf = bad  # type: ignore[attr-defined]  # what GradScaler sets as well
        host = torch.empty((), pin_memory=True)
        host.copy_(bad, non_blocking=True)
        ready = torch.cuda.Event()
        ready.record()
        before, self._pending = self._pending, (moment, host, ready)
        if before is None:
            return 0
        self._suspect, host, ready = before
        with heartbeat.during("device"):
            ready.synchronize()
        return self._flag(bool(host))

    def look_at_losses(self, losses: Sequence[Tensor]) -> int:
        """Like `look`, for the losses, which no other rank can see; 0 on a GPU, where the host would have to wait."""
        return self._flag(not self._late and any_not_finite([*losses], self._bad, self._one))

    def _flag(self, bad: bool) -> int:
        """The flag for the exchange: 0, or larger for a lower rank, as the largest counts: the lowest is reported."""
        return self._ranks.world_size - self._ranks.rank if bad else 0

    def report(self) -> Mapping[str, float]:
        """Steps that were skipped under fp16, in this process."""
        return {"skipped_steps": float(self._skipped)} if self._scaled else {}

    def refuse(self) -> None:
        """End the run because of the step that was judged last. Errors: TrainingDiverged, on all ranks alike."""
        moment = self._suspect
        assert moment is not None
        found, indices = self._second_pass(moment)
        of_ranks = gather((found, indices), self._ranks, self._flag_exchange.group)
        where = next((f"rank {rank}: {text}" for rank, (text, _) in enumerate(of_ranks) if text), None)
        where = where or first_bad_gradient(self._network) or "the loss is not finite, all outputs of a second pass are"
        if self._ranks.is_first:
            document = {"schema": SCHEMA, "epoch": moment.epoch + 1, "step": moment.step + 1, "seed": moment.seed}
            document |= {"found": where, "indices": [part for _, part in of_ranks]}
            document |= {"replay": self._advice.resume}
            write_text(self._folder / FILE, json.dumps(document, indent=2) + "\n")
        saved = resume_target("auto", str(self._folder)) is not None
        again = self._advice.resume if saved else self._advice.restart
        held = "no checkpoint has it" if saved else "there is no checkpoint yet"
        raise TrainingDiverged(
            f"step {moment.step + 1} (epoch {moment.epoch + 1}), {where}; "
            f"its samples are in {self._folder / FILE}, and {again} comes to it again, bit for bit; "
            f"{held}: {self._advice.remedy}"
        )


class Replay:
    """The trainer's second pass: the batches of the step once more, layer by layer.

    changes: how techniques change a batch.
    """

    def __init__(
        self, network: nn.Module, precision: Precision, pipeline: Pipeline, changes: Sequence[BatchChange]
    ) -> None:
        self._network, self._precision, self._pipeline, self._changes = network, precision, pipeline, changes

    def __call__(self, moment: Moment) -> tuple[str | None, list[int]]:
        """See SecondPass."""
        window = next(self._pipeline.train(moment.epoch, moment.step % self._pipeline.steps_per_epoch))
        found: str | None = None
        indices: list[int] = []
        seed_shard(self._precision.device, moment)
        for batch in window.batches:
            images, targets = batch.images, batch.labels
            for change in self._changes if len(images) else ():
                images, targets = change(images, targets, moment)
            indices += batch.indices.tolist()
            seen = first_bad_layer(self._network, images, self._precision.autocast())  # always: may be a collective
            found = found or seen
        return found, indices
