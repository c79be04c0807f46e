"""Samples to a summary, its verdict, and what the screen shows: without a driver, a process or a clock."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console

from gpu_topology.monitor.assessment import verdict
from gpu_topology.monitor.live import sample_line, sample_text, usage_table
from gpu_topology.monitor.sampler import GpuSample, ProcessSample, Sample
from gpu_topology.monitor.usage import Usage, UsageMeter

GIB = 2**30


def gpu(index: int, utilization: int | None, **facts: Any) -> GpuSample:
    """A GPU of 80 GiB at one moment."""
    return GpuSample(index, f"GPU-{index}", "NVIDIA H100 80GB HBM3", utilization, memory_total=80 * GIB, **facts)


def summarised(*series: list[int | None], **facts: Any) -> Usage:
    """One series of utilisations for each GPU, a sample a second."""
    meter = UsageMeter()
    for second, values in enumerate(zip(*series, strict=True)):
        gpus = tuple(gpu(index, value, **facts) for index, value in enumerate(values))
        meter.add(Sample(datetime.now(UTC), 100.0 + second, gpus))
    return meter.usage()


def test_means_peaks_and_the_time_below_half():
    usage = summarised([100, 40, 60, 20, 80])
    assert (usage.seconds, usage.samples) == (4.0, 5)
    one = usage.gpus[0]
    assert (one.utilization_mean, one.utilization_peak) == (60.0, 100)
    assert (one.below_50_share, one.seconds_below_50) == (0.4, pytest.approx(1.6))


def test_what_is_unknown_is_no_zero():
    one = summarised([None, 50, None]).gpus[0]
    assert (one.utilization_mean, one.below_50_share) == (50.0, 0.0)
    assert (one.memory_mean, one.memory_peak, one.power_mean) == (None, None, None)


BUSY = "the GPUs in use were kept busy: mean utilisation {}%, below 50% for 0% of the time"
WAITED = (
    "the GPUs in use waited 67% of the time (below 50% utilisation; mean 52%): see to the input pipeline, the batch "
    "size, and ranks that wait for each other"
)
VERDICTS = {
    # utilisations of each GPU: the sentences
    ((95, 97, 99), (94, 96, 98)): [
        "the GPUs in use were kept busy: mean utilisation 96%, below 50% for 0% of the time"
    ],
    ((100, 20, 30), (100, 25, 35)): [WAITED],
    ((95, 95, 95), (0, 0, 3)): [
        BUSY.format(95),
        "GPU 1 stayed idle (never 10% utilisation)",
    ],
    ((95, 95, 95), (55, 60, 65)): [
        BUSY.format(78),
        "uneven load: GPU 1 had a mean utilisation of 60%, GPU 0 of 95%",
    ],
    ((0, 1, 2), (3, 4, 5)): ["no GPU did any work in these 2 s: utilisation stayed below 10%"],
    ((None, None, None),): ["the driver reports no utilisation of these GPUs, so whether they waited is unknown"],
}


@pytest.mark.parametrize("series", VERDICTS)
def test_the_verdict_says_what_the_numbers_say(series):
    assert list(verdict(summarised(*map(list, series)))) == VERDICTS[series]


def test_the_verdict_names_full_memory_and_clocks_held_back():
    usage = summarised([90, 90], memory_used=79 * GIB, throttle=("thermal",))
    assert list(verdict(usage))[1:] == [
        "GPU 0: memory peaked at 99%, close to running out",
        "GPU 0: clocks held back by thermal in 100% of the samples",
    ]


def crowd(size: int) -> Sample:
    """Many GPUs with processes, one of them lost, one of which nothing is known."""
    facts: dict[str, Any] = {
        "memory_used": 70 * GIB,
        "power_watts": 699.6,
        "temperature_c": 81,
        "throttle": ("power-cap", "hw-thermal"),
        "pcie_sent": 63.9e9,
        "pcie_received": 1234.0,
        "nvlink_sent": 449.9e9,
        "nvlink_received": 99e6,
        "processes": (ProcessSample(4194304, "python", 70 * GIB), ProcessSample(1, None, None)),
    }
    gpus = [gpu(index, 97, **facts) for index in range(size)]
    gpus[0] = GpuSample(0, None, None)
    gpus[-1] = GpuSample(size - 1, None, "NVIDIA H100 80GB HBM3", error="GPU is lost: it has fallen off the bus")
    return Sample(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), 1.5, tuple(gpus))


@pytest.mark.parametrize("width", [80, 160])
@pytest.mark.parametrize("size", [2, 16])
def test_the_live_table_fits_the_screen_and_names_what_is_wrong(width, size):
    lines = sample_text(crowd(size), width, 24).plain.splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= 24
    assert "GPU is lost" in lines[size]
    assert lines[1].split()[:3] == ["0", "?", "?"]
    if size == 16:
        assert "97%" in lines[2]
        assert "64G/1.2k" in lines[2]
        assert "450G/99M" in lines[2]
        assert ("power-cap" in lines[2]) is (width == 160)
        assert lines[-1] == "  ..."


@pytest.mark.parametrize("height", [1, 5, 6, 7])
def test_a_low_screen_shows_the_gpus_and_no_more_processes_than_fit(height):
    lines = sample_text(crowd(3), 100, height).plain.splitlines()
    assert len(lines) == 4 + max(0, height - 6)


def test_a_line_for_a_log():
    words = sample_line(crowd(3))
    assert words.startswith("03:04:05  GPU 0 ? ? GiB  GPU 1 97% 70.0 GiB 700 W 81 C  GPU 2 GPU is lost")


def test_the_summary_fits_eighty_columns():
    meter = UsageMeter()
    meter.add(crowd(16))
    console = Console(file=io.StringIO(), width=80)
    console.print(usage_table(meter.usage()))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert "450G/99M" in text
