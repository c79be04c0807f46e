"""What each epoch costs, for the records: the energy of the run's GPUs, and each rank's time by phase.

Effect: `energy_joules` of each epoch in the history and in the curves, where every GPU of the run has a counter;
`rank_seconds` in the history; training is not touched. Cost: one reading of the driver on each node and one small
exchange over gloo an epoch. Source: NVML, nvmlDeviceGetTotalEnergyConsumption.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from ddp_train.distributed.flag_exchange import FlagExchange
from ddp_train.distributed.heartbeat import heartbeat
from ddp_train.distributed.process_group import Ranks, gather, gpu_uuids
from ddp_train.observers.records import EpochRecord


class EpochCosts:
    """The costs of one loop's epochs; created on all ranks. flags: its gloo group is looked up at each use, not stored.

    The first rank of a node reads the counters of the node's GPUs, each GPU once even if several ranks use it.
    """

    def __init__(self, ranks: Ranks, device: torch.device, flags: FlagExchange) -> None:
        self._ranks, self._device, self._flags = ranks, device, flags
        self._uuids: tuple[str, ...] = ()
        self._before: Mapping[str, float] | None = None

    def begin(self, *, within_an_epoch: bool) -> None:
        """Call before the first epoch. within_an_epoch: another process began that epoch, so its energy is unknown."""
        uuids = dict.fromkeys(gpu_uuids(self._ranks, self._device))
        reads = self._ranks.rank % self._ranks.local_world_size == 0
        self._uuids = tuple(uuids) if reads else ()
        self._before = None if within_an_epoch else self._read()

    def add(self, record: EpochRecord) -> EpochRecord:
        """Return `record`, that of the epoch that ends now, with its costs. A collective."""
        joules = self._joules()
        seconds = {name: round(ns / 1e9, 3) for name, ns in heartbeat.spent_ns.items() if ns}
        everyone = gather((joules, seconds), self._ranks, self._flags.group)
        known = [part for part, _ in everyone if part is not None]
        extra = dict(record.extra)
        if self._device.type == "cuda" and len(known) == len(everyone):
            extra["energy_joules"] = sum(known)
        return replace(record, extra=extra, rank_seconds={rank: parts for rank, (_, parts) in enumerate(everyone)})

    def _joules(self) -> float | None:
        """Joules used since the last call by the GPUs that this rank reads; None where one of them does not report."""
        from gpu_topology.monitor import taken

        before, self._before = self._before, self._read()
        found = None if before is None else taken(before, self._before)
        return sum(found.values()) if found is not None and len(found) == len(self._uuids) else None

    def _read(self) -> Mapping[str, float]:
        """UUID -> joules since the driver was loaded."""
        from gpu_topology.monitor import read_energy

        return read_energy(self._uuids)
