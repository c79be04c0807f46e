"""`--shares measured`: each rank's part of a global batch by its measured speed, so that none waits for another.

All ranks are calibrated before the first step and measured again at the end of each epoch. Another division is used
where it would have gained 5% in two epochs in a row (or 20% in one). The division is in the history (`share_0` ...) and
in the checkpoint. The gradient is that of the global batch under any division, and the order of
the samples does not depend on it. Source: see distributed/load_balance.py.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import astuple
from typing import Any

import torch

from ddp_core.errors import UserError
from ddp_train.config.batch_split import split
from ddp_train.data.pipeline.sampler import GlobalBatchSampler
from ddp_train.distributed.load_balance import Division, Hysteresis, Speed, divide, gain
from ddp_train.distributed.process_group import gather
from ddp_train.distributed.speed_cache import KnownSpeeds, remember
from ddp_train.engine.components import Components
from ddp_train.observers.records import EpochRecord
from ddp_train.technique import Technique
from ddp_train.tune.calibration import calibrate, measure_communication, slowdown


class Balance:
    """Sets the shares of `sampler`.

    work: the kind of work under which the speeds are kept (see distributed/speed_cache.py). All ranks must call `start`
    with the components of the run.
    """

    def __init__(self, sampler: GlobalBatchSampler, accumulate: int, work: str = "") -> None:
        self._work = work
        self._sampler, self._accumulate = sampler, accumulate
        self._components: Components | None = None
        self._speeds: tuple[Speed, ...] = ()
        self._communication = 0.0
        self._hysteresis = Hysteresis()

    def technique(self) -> Technique:
        """The technique by which it takes part in the run."""
        return Technique(name="balance", after_epoch=self._after_epoch, report=self._report, state=self, looks=True)

    def start(self, components: Components) -> str:
        """Calibrate, unless a resumed run has its division in the checkpoint; returns a line for the user."""
        self._components = components
        world_size = components.ranks.world_size
        if len(self._speeds) == world_size:
            return f"shares {_shown(self._sampler.shares)} of the global batch, as in the run that is resumed"
        micro_batch = max(1, components.global_batch // world_size // self._accumulate)
        self._speeds = tuple(gather(calibrate(components, micro_batch, self._accumulate), components.ranks))
        self._communication = measure_communication(components)
        self._remember(components)
        division = self._divide()
        even = split(components.global_batch, [1.0] * world_size)
        faster = 1 + gain(even, division.samples, self._speeds, self._communication)
        self._sampler.share(division.samples)
        idle = f"; rank {', '.join(map(str, division.idle))} would not make it 5% faster" if division.idle else ""
        return (
            f"shares {_shown(division.samples)} of the global batch of {components.global_batch}, by measured speed "
            f"(predicted {faster:.2f} times as fast as equal shares{idle})"
        )

    def _remember(self, components: Components) -> None:
        """Keep the speeds of these models of GPU for the next plan; of ranks with one model the last counts."""
        if components.device.type != "cuda":
            return
        names = gather(torch.cuda.get_device_name(components.device), components.ranks)
        if components.ranks.is_first:
            remember(self._work, KnownSpeeds(dict(zip(names, self._speeds, strict=True)), self._communication))

    def _divide(self) -> Division:
        """The division by the measured speeds. Errors: UserError."""
        assert self._components is not None
        try:
            return divide(self._components.global_batch, self._speeds, self._communication)
        except ValueError as error:
            raise UserError(f"--shares measured: {error}; take a higher --accumulate") from None

    def _after_epoch(self, record: EpochRecord) -> bool:
        """Measure again, and change the division where that pays; never ends the run."""
        components = self._components
        assert components is not None
        if record.epoch >= components.epochs:
            return False
        rank = components.ranks.rank
        before = tuple(split(components.global_batch, self._sampler.shares))
        factors = gather(slowdown(components, self._speeds[rank], before[rank], self._accumulate), components.ranks)
        self._speeds = tuple(speed.slower(f) for speed, f in zip(self._speeds, factors, strict=True))
        after = self._divide().samples
        better = gain(before, after, self._speeds, self._communication)
        if self._hysteresis.decide(better):
            self._sampler.share(after)
            if components.ranks.is_first:
                line = f"shares {_shown(before)} -> {_shown(after)} from epoch {record.epoch + 1} on"
                print(f"{line}: predicted {1 + better:.2f} times as fast", file=sys.stderr)
        return False

    def _report(self) -> Mapping[str, float]:
        """Samples of each rank in a whole global batch."""
        samples = split(self._sampler.global_batch, self._sampler.shares)
        return {f"share_{rank}": float(count) for rank, count in enumerate(samples)}

    def state_dict(self) -> dict[str, Any]:
        """The division, and the speeds from which it was computed."""
        return {
            "shares": list(self._sampler.shares),
            "speeds": [list(astuple(speed)) for speed in self._speeds],
            "communication": self._communication,
            "waiting": self._hysteresis.waiting,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Use a saved division; one for another number of ranks is ignored, and `start` measures again."""
        if len(state["shares"]) != self._sampler.num_replicas:
            return
        self._sampler.share(state["shares"])
        self._speeds = tuple(Speed(*speed) for speed in state["speeds"])
        self._communication = state["communication"]
        self._hysteresis.waiting = state["waiting"]


def _shown(samples: tuple[float, ...]) -> str:
    """Shares with plus signs between them."""
    return " + ".join(f"{count:g}" for count in samples)
