"""Checkpoints of a run: their contents, when they are due, and how a run resumes from one.

Collecting the state does not affect the training: state that differs among the ranks in the middle of an epoch (batch
statistics, state of techniques) is gathered as it is, and each rank gets its own back.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ddp_core.errors import TrainingDiverged, UserError
from ddp_train.checkpoint import format as checkpoint_format
from ddp_train.checkpoint import per_rank_state
from ddp_train.checkpoint.async_writer import CheckpointWriter
from ddp_train.checkpoint.progress import Advice, Progress
from ddp_train.checkpoint.values import is_finite
from ddp_train.config.validation import LATEST, Interval, resume_target
from ddp_train.distributed.flag_exchange import FlagExchange
from ddp_train.distributed.heartbeat import heartbeat
from ddp_train.distributed.process_group import Ranks, gather
from ddp_train.torch_internals import foreach


class Contents(Protocol):
    """The state of a run that a checkpoint holds, besides its progress."""

    @property
    def names(self) -> tuple[str, ...]:
        """The keys of `state_dict`."""

    def state_dict(self) -> dict[str, Any]:
        """Nested tensors and plain values, as they are between two steps."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state. Errors: KeyError, TypeError, ValueError, RuntimeError where it does not fit."""

    def weights(self) -> Iterable[Tensor]:
        """Tensors that must be finite, but for masks of minus infinity; otherwise the run is lost."""

    def why_not(self, saved: Mapping[str, Any], progress: Progress) -> str | None:
        """Why this run cannot resume at `progress` of the run described by `saved`; None: it can."""

    def resumed(self, saved: Mapping[str, Any], progress: Progress) -> tuple[str, ...]:
        """Called after resuming: corrects `progress` where this run counts differently; returns lines for the user."""


class HasState(Protocol):
    """A network, or a copy of its weights."""

    def state_dict(self) -> dict[str, Any]:
        """Names and tensors."""


class Saver:
    """Writes the checkpoints of a run to `latest`, and the best model to `best`, in the background.

    identity: plain values that describe this run, for `Contents.why_not` of a later run. interval: between checkpoints.
    """

    def __init__(
        self,
        contents: Contents,
        identity: Mapping[str, Any],
        interval: Interval,
        ranks: Ranks,
        device: torch.device,
        flag_exchange: FlagExchange,
        latest: Path,
        best: Path,
        advice: Advice,
    ) -> None:
        self._contents, self._identity, self._interval = contents, identity, interval
        self._ranks, self._device, self._flag_exchange = ranks, device, flag_exchange
        self._writer, self._folder, self._best, self._advice = CheckpointWriter(latest), latest.parent, best, advice
        self._saved_at = time.monotonic()
        self._generators: dict[str, Any] | None = None

    def restore(self, source: Path) -> tuple[Progress, tuple[str, ...]]:
        """Restore the state in `source`; checkpoint-latest.pt means the newest good checkpoint of its folder.

        Returns the progress of the saved run, and lines for the user. Errors: UserError when the file is damaged, or of
        another model, optimizer or run.
        """
        notes: tuple[str, ...] = ()
        option = self._advice.option
        if source.name == LATEST:
            source, found, notes = checkpoint_format.newest(source.parent)
        else:
            found = checkpoint_format.load(source)
        saved: Mapping[str, Any] = found
        identity: Mapping[str, Any] = saved.get("run", {})
        try:
            progress = Progress(**saved["progress"])
            progress.total_seconds = float(saved.get("total_seconds", 0.0))
            if why := self._contents.why_not(identity, progress):
                raise UserError(f"{option} {source}: {why}; continue it with the options of that run")
            self._contents.load_state_dict(self._of_this_rank(saved, progress))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{option} {source}: does not fit this model and optimizer ({reason})") from None
        notes = (*notes, *self._contents.resumed(identity, progress))
        return progress, (*notes, f"continues {source} {progress.place}")

    def _of_this_rank(self, saved: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """This rank's part of a saved state: with the same number of ranks as in the saved run, the rank's own state
        and generators; otherwise the mean over the ranks."""
        of_ranks: Sequence[Mapping[str, Any]] = saved.get("ranks", [])
        state = {name: saved.get(name, {}) for name in self._contents.names}
        found = [one["differences"] for one in of_ranks]
        rank = self._ranks.rank
        if len(of_ranks) != self._ranks.world_size:
            if rank > 0:
                progress.sums = (0.0, 0.0, 0.0)
            return per_rank_state.mean(state, found)
        loss, correct, samples = of_ranks[rank]["sums"]
        progress.sums = (loss, correct, samples)
        self._generators = of_ranks[rank]["generators"]
        return per_rank_state.own(state, found, rank)

    def begin(self) -> None:
        """Called right before the first step: restores the random generators of a resumed run, and starts the clock."""
        self.restore_generators()
        self._saved_at = time.monotonic()

    def restore_generators(self) -> None:
        """Set the random generators to their states in the checkpoint, where it has those of this rank."""
        if self._generators is not None:
            per_rank_state.restore_generators(self._generators, self._device)

    def due(self, step: int) -> bool:
        """Whether this rank considers a checkpoint due after the run's first `step` steps. For an interval in seconds
        only rank 0's clock counts."""
        if self._interval.steps is not None:
            return step % self._interval.steps == 0
        seconds = self._interval.seconds
        return seconds is not None and self._ranks.is_first and time.monotonic() - self._saved_at >= seconds

    def save(self, progress: Progress, best: HasState | None = None, *, periodic: bool = False) -> None:
        """Write the state as it is between two steps; called on all ranks, rank 0 writes.

        `best`: the network to keep where this epoch is the best one so far; written first, so that the checkpoint
        never refers to a missing best model. `periodic`: the checkpoint may be skipped while another is being written.
        """
        with heartbeat.during("checkpoint"):
            self._refuse_poison(progress)
            state = self._collect(progress)
            if state is not None:
                first = {} if best is None else {self._best: best.state_dict()}
                self._writer.save(state, step=progress.step, periodic=periodic, first=first)
        self._saved_at = time.monotonic()

    def _refuse_poison(self, progress: Progress) -> None:
        """Errors: TrainingDiverged, on all ranks, where weights or buffers are not finite on any rank."""
        weights = [v for v in self._contents.weights() if isinstance(v, Tensor)]  # else a module's extra state
        values = [v for v in weights if v.is_floating_point() and v.numel()]
        bad = bool(values) and not bool(
            torch.isfinite(torch.stack([n.double() for n in foreach("norm", values)])).all()
        )
        # A norm that is not finite decides nothing: it is infinite for large numbers, and for a mask of minus infinity.
        bad = bad and not all(map(is_finite, values))
        if self._flag_exchange.exchange({"not_finite": bad})["not_finite"]:
            epoch = progress.epoch + 1 if progress.step_in_epoch else progress.epoch  # finished: already counted
            raise TrainingDiverged(
                f"the weights are not finite after step {progress.step} (epoch {epoch}): no checkpoint is written of "
                f"them, {self.way_back()}; {self._advice.remedy}"
            )

    def way_back(self) -> str:
        """Words for a message on where a failed run can be continued from. Waits for a write that is under way."""
        with suppress(UserError):
            self._writer.close()
        there = resume_target("auto", str(self._folder)) is not None
        return f"and {self._advice.resume} continues from the last one" if there else "and there is none yet"

    def _collect(self, progress: Progress) -> dict[str, Any] | None:
        """The state of all ranks on rank 0, elsewhere None. Called on all ranks, between two steps."""
        ranks, group = self._ranks, self._flag_exchange.group
        state = self._contents.state_dict()
        different = per_rank_state.differences(state, ranks, group)
        mine = {"sums": list(progress.sums), "generators": per_rank_state.generators(self._device)}
        gathered: list[Any] = gather(mine, ranks, group)
        if not ranks.is_first:
            return None
        sums = [sum(values) for values in zip(*(one["sums"] for one in gathered), strict=True)]
        return state | {
            # The total time is kept apart from the progress: two bit-identical runs differ in their times only.
            "progress": {k: v for k, v in dataclasses.asdict(progress).items() if k != "total_seconds"}
            | {"sums": sums},
            "total_seconds": progress.total_seconds,
            "run": dict(self._identity),
            "ranks": [one | {"differences": leaves} for one, leaves in zip(gathered, different, strict=True)],
        }

    def finish(self) -> None:
        """Wait until every saved checkpoint is on the disk. Errors: UserError where it is not."""
        with heartbeat.during("checkpoint"):
            self._writer.close()
