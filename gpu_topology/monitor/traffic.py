"""PCIe and NVLink throughput of GPUs, from the driver's running counters.

nvmlDeviceGetPcieThroughput blocks for 20 ms per direction, so it is the last resort, for one GPU at a time. The PCIe
byte counters are read instead. On some drivers they have 32 bits and wrap in less than a second at full speed; those
are read twice within a short window. NVLink counters have 64 bits and count KiB.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpu_topology.driver.library import Device, field_value

WINDOW_S = 0.02
"""A 32-bit byte counter that is read twice within this time is unambiguous up to 200 GB/s."""

_WRAP = 1 << 32

# nvml.h: NVML_FI_DEV_..., and the scope that sums up all links.
_NVLINK = (138, 139)  # NVLINK_THROUGHPUT_DATA_TX, _RX
_PCIE = (197, 198)  # PCIE_COUNT_TX_BYTES, _RX_BYTES
_ALL_LINKS = 0xFFFFFFFF
_MOST_LINKS = 18

Pair = tuple[float | None, float | None]
_UNKNOWN: Pair = (None, None)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes per second as (sent by the GPU, received by it); None where the driver does not report it."""

    pcie: Pair = _UNKNOWN
    nvlink: Pair = _UNKNOWN


@dataclass(frozen=True, slots=True)
class _Count:
    """Two counters at one moment (seconds of a monotonic clock)."""

    at: float
    sent: int
    received: int


class TrafficMeter:
    """The throughput of some GPUs since the last reading; the first reading has only what a short window shows."""

    def __init__(self, devices: Sequence[Device]) -> None:
        self._pcie = [_PcieCounter(device) for device in devices]
        self._nvlink = [_NvlinkCounter(device) for device in devices]
        self._turn = 0

    def read(self) -> list[Traffic]:
        """The traffic of each GPU, in order."""
        for counter in self._pcie:
            counter.look()
        if any(counter.narrow for counter in self._pcie):
            time.sleep(WINDOW_S)
        uncounted = [counter for counter in self._pcie if not counter.counts]
        if uncounted:  # one GPU at a time, since each costs 40 ms
            uncounted[self._turn % len(uncounted)].ask_slowly()
            self._turn += 1
        return [Traffic(pcie.rate(), nvlink.rate()) for pcie, nvlink in zip(self._pcie, self._nvlink, strict=True)]


class _PcieCounter:
    """The PCIe byte counters of one GPU. `narrow` until a value shows that they have more than 32 bits."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._before: _Count | None = None
        self._now: _Count | None = None
        self._asked: Pair = _UNKNOWN
        self._wide = False
        self.counts = True

    @property
    def narrow(self) -> bool:
        """Whether the counters may have 32 bits only, which wrap within seconds."""
        return self.counts and not self._wide

    def look(self) -> None:
        """Read the counters; after one failure they are never read again."""
        if self.counts:
            self._before, self._now = self._now, _count(self._device, _PCIE)
            self.counts = self._now is not None
            self._wide |= self._now is not None and max(self._now.sent, self._now.received) >= _WRAP

    def ask_slowly(self) -> None:
        """Measure by the driver's own call: 20 ms per direction, one after the other."""
        sent = self._device.ask("nvmlDeviceGetPcieThroughput", 0)
        received = None if sent is None else self._device.ask("nvmlDeviceGetPcieThroughput", 1)
        self._asked = (None if sent is None else sent * 1000.0, None if received is None else received * 1000.0)

    def rate(self) -> Pair:
        """Bytes per second sent and received since the last reading."""
        if not self.counts:
            return self._asked
        return _rate(self._before, self._now) if self._wide else _rate(self._now, _count(self._device, _PCIE), _WRAP)


class _NvlinkCounter:
    """The NVLink counters of one GPU: the driver's sum over all links, else those of each link, else none."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._before: _Count | None = None
        self._fields: tuple[tuple[int, int], ...] = ()
        for scopes in ((_ALL_LINKS,), tuple(range(_MOST_LINKS))):
            fields = tuple((field, scope) for scope in scopes for field in _NVLINK)
            answers = _values(device, fields)
            self._fields = tuple(field for field, value in zip(fields, answers, strict=True) if value is not None)
            if self._fields:
                break

    def rate(self) -> Pair:
        """Bytes per second sent and received over all NVLinks since the last call."""
        if not self._fields:
            return _UNKNOWN
        values = _values(self._device, self._fields)
        totals = [
            [value for (field, _), value in zip(self._fields, values, strict=True) if field == wanted]
            for wanted in _NVLINK
        ]
        if any(value is None for total in totals for value in total) or not all(totals):
            self._before = None
            return _UNKNOWN
        sent, received = (1024 * sum(value or 0 for value in total) for total in totals)
        before, self._before = self._before, _Count(time.monotonic(), sent, received)
        return _rate(before, self._before)


def _count(device: Device, fields: tuple[int, int]) -> _Count | None:
    """One reading of two counters; None where one is unknown."""
    sent, received = _values(device, fields)
    return None if sent is None or received is None else _Count(time.monotonic(), sent, received)


def _rate(before: _Count | None, after: _Count | None, wrap: int | None = None) -> Pair:
    """Bytes per second; unknown where a counter ran backwards (wrap or driver reset). `wrap`: the counters' modulus."""
    if before is None or after is None or after.at <= before.at:
        return _UNKNOWN
    steps = (after.sent - before.sent, after.received - before.received)
    if wrap is not None:
        steps = (steps[0] % wrap, steps[1] % wrap)
    seconds = after.at - before.at
    return None if steps[0] < 0 else steps[0] / seconds, None if steps[1] < 0 else steps[1] / seconds


def _values(device: Device, fields: Sequence[Any]) -> list[int | None]:
    """The values by nvmlDeviceGetFieldValues, each None where the driver does not report it."""
    answers = device.ask("nvmlDeviceGetFieldValues", list(fields))
    if answers is None:
        return [None] * len(fields)
    return [field_value(answer) for answer in answers]
