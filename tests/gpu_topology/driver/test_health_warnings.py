"""What in a reading is worth a warning, and what is not."""

from __future__ import annotations

import pytest

from gpu_topology.driver.gpu import cpu_list
from gpu_topology.driver.health_warnings import concerns
from gpu_topology.topology import Gpu

ILL = {
    Gpu(0, error="GPU is lost"): "GPU 0: GPU is lost",
    Gpu(0, ecc_uncorrected=1): "GPU 0: 1 uncorrected memory error since",
    Gpu(0, ecc_uncorrected=7): "GPU 0: 7 uncorrected memory errors since",
    Gpu(0, memory_faults=("row-remap-failed",)): "could not be replaced",
    Gpu(0, memory_faults=("row-remap-pending",)): "replaced at the next reset",
    Gpu(0, memory_faults=("page-retirement-pending",)): "retired at the next reboot",
    Gpu(0, pcie_width=16, pcie_width_now=8): "its PCIe link runs on 8 of 16 lanes: the slot or riser may have no more",
    Gpu(0, pcie_width=16, pcie_width_now=8, pcie_slot_width=8): "8 of 16 lanes: its slot has no more",
    Gpu(0, pcie_width=16, pcie_width_now=4, pcie_slot_width=16): "4 of 16 lanes: its slot has 16: reseat the card",
    Gpu(0, recovery="reset"): "the driver asks for a reset",
    Gpu(0, recovery="reboot"): "the driver asks for a reboot",
    Gpu(0, recovery="drain-p2p"): "the driver asks to end all peer access",
    Gpu(0, pcie_replays=1250): "1250 PCIe replays",
    Gpu(0, nvlink_errors=(3,)): "its NVLink 3 had to repeat",
    Gpu(0, nvlink_errors=(3, 7)): "its NVLinks 3, 7 had to repeat",
    Gpu(0, throttle=("thermal",)): "held back by heat",
    Gpu(0, throttle=("hw-slowdown", "hw-thermal")): "because of heat",
    Gpu(0, throttle=("hw-slowdown", "hw-power-brake")): "power brake",
    Gpu(0, throttle=("hw-slowdown",)): "nvidia-smi -q -d PERFORMANCE",
}


@pytest.mark.parametrize("gpu", ILL, ids=lambda gpu: ILL[gpu])
def test_an_ill_gpu_gets_one_line(gpu):
    (line,) = concerns([gpu])
    assert line.startswith("GPU 0: ")
    assert ILL[gpu] in line
    assert "\n" not in line


def test_a_well_gpu_and_an_unknown_one_get_none():
    well = Gpu(
        0,
        pcie_generation=5,
        pcie_generation_now=1,  # idle
        pcie_width=16,
        pcie_width_now=16,
        ecc=True,
        ecc_uncorrected=0,
        memory_faults=(),
        throttle=("power-cap", "sync-boost"),  # under load, or by choice
        fabric_state="completed",
        recovery="none",
        pcie_replays=3,
        nvlink_errors=(),
    )
    assert concerns([well, Gpu(1), Gpu(2, pcie_width=16, pcie_width_now=0)]) == ()


def test_gpus_with_the_same_trouble_share_a_line_and_the_gravest_comes_first():
    hot = [Gpu(index, throttle=("thermal",)) for index in range(3)]
    lines = concerns([*hot, Gpu(3, error="GPU is lost")])
    assert [line.split(":")[0] for line in lines] == ["GPU 3", "GPU 0, 1, 2"]


@pytest.mark.parametrize(
    ("cpus", "text"),
    [
        ((), None),
        ((0,), "0"),
        ((5,), "5"),
        (range(4), "0-3"),
        ((0, 2, 4), "0,2,4"),
        ((*range(20), *range(40, 60)), "0-19,40-59"),
        ((63, 64, 128), "63-64,128"),
    ],
)
def test_a_list_of_cpus_as_the_kernel_writes_it(cpus, text):
    assert cpu_list(sum(1 << cpu for cpu in cpus)) == text
