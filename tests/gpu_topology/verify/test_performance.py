"""What verify measured beside what it should be."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpu_topology.topology import Topology
from gpu_topology.verify.performance import model_gb_s, slow_gpus, slow_links
from tests.fake_nvml.machine import to_topology

HGX = to_topology("h100_8x_nvswitch")
PAIR = to_topology("rtx3090_2x_nvlink")


def over_pcie(width: int) -> Topology:
    gpu = {"name": "NVIDIA L40S", "memory_mib": 46068, "cc": [8, 9], "pcie": [4, 16], "pcie_now": [1, width]}
    return to_topology({"gpus": [gpu, gpu], "matrix": [["X", "PIX"], ["PIX", "X"]]})


def test_a_gpu_that_is_slower_than_its_equals_is_named() -> None:
    speeds = [(index, 600.0) for index in range(8)]
    assert list(slow_gpus(speeds, HGX)) == []
    (line,) = slow_gpus([(index, 492.0 if index == 3 else speed) for index, speed in speeds], HGX)
    assert line.startswith("GPU 3 is 18% slower than its equals (492 against 600 TFLOP/s)")
    assert list(slow_gpus([(0, 600.0), (1, 560.0)], HGX)) == [], "7% is within what equal chips differ by"


def test_different_models_are_no_equals() -> None:
    mixed = replace(PAIR, gpus=(PAIR.gpus[0], replace(PAIR.gpus[1], name="NVIDIA GeForce RTX 4090")))
    assert list(slow_gpus([(0, 70.0), (1, 160.0)], mixed)) == []
    unknown = replace(PAIR, gpus=tuple(replace(gpu, name=None) for gpu in PAIR.gpus))
    assert list(slow_gpus([(0, 70.0), (1, 160.0)], unknown)) == [], "unknown is never equal"


def test_the_model_follows_nvlinks_and_slots() -> None:
    assert model_gb_s(HGX, range(8)) == pytest.approx(450.0)
    assert model_gb_s(over_pcie(16), (0, 1)) == pytest.approx(24.0)
    assert model_gb_s(over_pcie(4), (0, 1)) == pytest.approx(6.0)
    assert model_gb_s(HGX, (0,)) is None
    assert model_gb_s(Topology(HGX.gpus), range(8)) is None, "no link is known"


def test_mig_slices_have_no_model() -> None:
    """Two slices of one GPU have its index twice, and no link of a whole GPU joins slices."""
    sliced = replace(HGX, gpus=tuple(replace(gpu, mig_mode=True) for gpu in HGX.gpus))
    assert model_gb_s(sliced, (0, 0, 1)) is None
    assert model_gb_s(sliced, (0, 1)) is None


def test_an_all_reduce_far_below_its_model_is_named() -> None:
    assert list(slow_links(230.0, HGX, range(8))) == []
    (line,) = slow_links(12.0, HGX, range(8))
    assert line.startswith("the all-reduce reaches 12 GB/s, 3% of the 450 GB/s of its slowest link")
    assert list(slow_links(18.0, over_pcie(16), (0, 1))) == []
    assert len(list(slow_links(5.0, over_pcie(16), (0, 1)))) == 1
    assert list(slow_links(5.0, over_pcie(4), (0, 1))) == []
    assert list(slow_links(None, HGX, range(8))) == []
