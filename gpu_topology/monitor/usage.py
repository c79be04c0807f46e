"""Samples to a summary: how busy and how full each GPU was. Pure; what it says about the run is in assessment.py."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from gpu_topology.monitor.sampler import GpuSample, Sample

SCHEMA = "gpu-monitor/1"

LOW = 50
"""Percent of utilisation below which a GPU counts as waiting."""


@dataclass(frozen=True, slots=True)
class GpuUsage:
    """One GPU over the whole time; None where the driver never reported it. `..._share` is a fraction of the samples.

    seconds_below_50  the share of samples below 50% utilisation, times the time watched
    lost_after        seconds until the GPU was lost
    """

    index: int
    uuid: str | None
    name: str | None
    utilization_mean: float | None
    utilization_peak: int | None
    below_50_share: float | None
    seconds_below_50: float | None
    memory_total: int | None
    memory_mean: float | None
    memory_peak: int | None
    power_mean: float | None
    temperature_peak: int | None
    pcie_sent_mean: float | None
    pcie_received_mean: float | None
    nvlink_sent_mean: float | None
    nvlink_received_mean: float | None
    throttle_shares: tuple[tuple[str, float], ...]
    lost_after: float | None


@dataclass(frozen=True, slots=True)
class Usage:
    """The usage of all GPUs over the time watched, `seconds`."""

    seconds: float
    samples: int
    gpus: tuple[GpuUsage, ...]


class UsageMeter:
    """Takes samples one by one and keeps running sums: hours of monitoring need no more memory than a minute."""

    def __init__(self) -> None:
        self._gpus: dict[int, _Running] = {}
        self._samples = 0
        self._first = self._last = 0.0

    def add(self, sample: Sample) -> None:
        """Add one sample."""
        if not self._samples:
            self._first = sample.seconds
        self._samples += 1
        self._last = sample.seconds
        for gpu in sample.gpus:
            self._gpus.setdefault(gpu.index, _Running(gpu)).add(gpu, sample.seconds - self._first)

    def usage(self) -> Usage:
        """The summary so far."""
        seconds = self._last - self._first
        gpus = tuple(running.usage(seconds) for running in self._gpus.values())
        return Usage(seconds, self._samples, gpus)


class _Mean:
    """Mean and peak of the values that are known."""

    def __init__(self) -> None:
        self.count, self.total = 0, 0.0
        self.peak: float | None = None

    def add(self, value: float | None) -> None:
        """Add a value; None is skipped."""
        if value is not None:
            self.count += 1
            self.total += value
            self.peak = value if self.peak is None else max(self.peak, value)

    @property
    def mean(self) -> float | None:
        """The mean; None without a value."""
        return self.total / self.count if self.count else None


_MEASURED = (
    "utilization",
    "memory_used",
    "power_watts",
    "temperature_c",
    "pcie_sent",
    "pcie_received",
    "nvlink_sent",
    "nvlink_received",
)


class _Running:
    """The sums of one GPU's samples so far."""

    def __init__(self, gpu: GpuSample) -> None:
        self._gpu = gpu
        self._values = {name: _Mean() for name in _MEASURED}
        self._low = _Mean()
        self._throttled: dict[str, int] = {}
        self._told = 0
        self._lost_after: float | None = None

    def add(self, gpu: GpuSample, seconds: float) -> None:
        """Add one sample, taken `seconds` after the start."""
        if gpu.error is not None:
            self._lost_after = seconds if self._lost_after is None else self._lost_after
            return
        self._gpu = gpu
        for name, mean in self._values.items():
            mean.add(getattr(gpu, name))
        self._low.add(None if gpu.utilization is None else float(gpu.utilization < LOW))
        self._told += gpu.throttle is not None
        for word in gpu.throttle or ():
            self._throttled[word] = self._throttled.get(word, 0) + 1

    def usage(self, seconds: float) -> GpuUsage:
        """The summary of all samples; `seconds`: the time watched."""
        values, low = self._values, self._low.mean
        return GpuUsage(
            index=self._gpu.index,
            uuid=self._gpu.uuid,
            name=self._gpu.name,
            utilization_mean=values["utilization"].mean,
            utilization_peak=_whole(values["utilization"].peak),
            below_50_share=low,
            seconds_below_50=None if low is None else low * seconds,
            memory_total=self._gpu.memory_total,
            memory_mean=values["memory_used"].mean,
            memory_peak=_whole(values["memory_used"].peak),
            power_mean=values["power_watts"].mean,
            temperature_peak=_whole(values["temperature_c"].peak),
            pcie_sent_mean=values["pcie_sent"].mean,
            pcie_received_mean=values["pcie_received"].mean,
            nvlink_sent_mean=values["nvlink_sent"].mean,
            nvlink_received_mean=values["nvlink_received"].mean,
            throttle_shares=tuple((word, count / self._told) for word, count in self._throttled.items()),
            lost_after=self._lost_after,
        )


def _whole(value: float | None) -> int | None:
    """A whole number; None stays None."""
    return None if value is None else int(value)


def usage_json(usage: Usage) -> dict[str, object]:
    """The summary for `--json`: bytes, bytes per second, percent, seconds, watts; shares are fractions of 1."""
    rows = [{**asdict(gpu), "throttle_shares": dict(gpu.throttle_shares)} for gpu in usage.gpus]
    return {
        "schema": SCHEMA,
        "seconds": round(usage.seconds, 3),
        "samples": usage.samples,
        "gpus": [rounded(row) for row in rows],
    }


def rounded(row: dict[str, object]) -> dict[str, object]:
    """The row with memory and rates rounded to whole bytes, other floats to three decimals."""
    return {name: _short(name, value) for name, value in row.items()}


def _short(name: str, value: object) -> object:
    """A number rounded for the file."""
    if not isinstance(value, float):
        return value
    return round(value) if name.startswith(("pcie", "nvlink", "memory")) else round(value, 3)
