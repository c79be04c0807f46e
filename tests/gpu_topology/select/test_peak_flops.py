"""The peak of a GPU: by its name, by cores and clock, by compute capability; what matters is the order."""

from __future__ import annotations

from itertools import pairwise

import pytest

from gpu_topology.select.peak_flops import PEAK_TFLOPS, model_peak, peak_tflops
from gpu_topology.topology import Gpu, MigDevice

NAMES = {
    # the driver's name for a GPU: the figure of NVIDIA's data sheet (dense, 16 bits, sums in fp32)
    "NVIDIA H100 80GB HBM3": 989.4,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H100 NVL": 835.0,
    "NVIDIA H200 NVL": 836.0,
    "NVIDIA GB200": 2500.0,
    "NVIDIA GH200 480GB": 989.4,
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100 80GB PCIe": 312.0,
    "NVIDIA A10": 125.0,
    "NVIDIA A2": 18.0,
    "NVIDIA L4": 121.0,
    "NVIDIA L40": 181.0,
    "NVIDIA L40S": 362.0,
    "NVIDIA RTX 4000 Ada Generation": 106.9,
    "NVIDIA RTX 4000 SFF Ada Generation": 76.7,
    "Quadro RTX 4000": 57.0,
    "NVIDIA RTX A4000": 76.7,
    "NVIDIA GeForce RTX 4090": 165.2,
    "NVIDIA GeForce RTX 4090 D": 147.1,
    "NVIDIA GeForce RTX 4070": 58.3,
    "NVIDIA GeForce RTX 4070 Ti SUPER": 88.2,
    "NVIDIA GeForce RTX 3080 Ti": 68.2,
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": 503.8,
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition": 438.9,
    "Tesla V100-SXM2-16GB": 125.0,
    "Tesla V100-PCIE-32GB": 112.0,
    "Tesla V100S-PCIE-32GB": 130.0,
    "NVIDIA TITAN V": 110.0,
    "NVIDIA TITAN X (Pascal)": 11.0,
    "NVIDIA GeForce GTX TITAN X": 6.7,
    "Tesla K80": 4.4,
    "Tesla T4": 65.1,
    "NVIDIA T400 4GB": 2.2,
    "NVIDIA DGX Display": 5.0,
    "NVIDIA GeForce RTX 4090 Laptop GPU": None,
    "NVIDIA GeForce RTX 2080 with Max-Q Design": None,
    "NVIDIA Graphics Device": None,
    "": None,
    None: None,
}


@pytest.mark.parametrize("name", NAMES)
def test_the_name_finds_its_own_model(name):
    assert model_peak(name) == NAMES[name]


# cores, boost clock: as the data sheets and white papers give them.
SHEETS = {
    "NVIDIA A100-SXM4-40GB": ((8, 0), 6912, 1410),
    "NVIDIA A30": ((8, 0), 3584, 1440),
    "NVIDIA RTX A6000": ((8, 6), 10752, 1800),
    "NVIDIA GeForce RTX 3090": ((8, 6), 10496, 1695),
    "NVIDIA GeForce RTX 3060": ((8, 6), 3584, 1777),
    "NVIDIA RTX 6000 Ada Generation": ((8, 9), 18176, 2505),
    "NVIDIA GeForce RTX 4090": ((8, 9), 16384, 2520),
    "NVIDIA H100 80GB HBM3": ((9, 0), 16896, 1830),
    "NVIDIA B200": ((10, 0), 18944, 1860),
    "NVIDIA GeForce RTX 5090": ((12, 0), 21760, 2407),
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": ((12, 0), 24064, 2617),
    "Tesla V100-SXM2-16GB": ((7, 0), 5120, 1530),
    "Tesla T4": ((7, 5), 2560, 1590),
    "Tesla P100-SXM2-16GB": ((6, 0), 3584, 1480),
    "NVIDIA GeForce GTX 1080 Ti": ((6, 1), 3584, 1582),
    "Tesla K80": ((3, 7), 2496, 875),
}


@pytest.mark.parametrize("name", SHEETS)
def test_cores_and_clock_agree_with_the_table(name):
    capability, cores, clock = SHEETS[name]
    brand = "NVIDIA GeForce unheard of" if "GeForce" in name else "NVIDIA unheard of"
    unheard = Gpu(0, name=brand, compute_capability=capability, cores=cores, clock_mhz=clock)
    assert peak_tflops(unheard) == pytest.approx(model_peak(name), rel=0.03)


def test_the_model_counts_before_clocks_that_a_card_never_reaches():
    gpu = Gpu(0, name="NVIDIA GeForce RTX 3090", compute_capability=(8, 6), cores=10496, clock_mhz=2100)
    assert peak_tflops(gpu) == 71.2


def test_an_unheard_of_card_is_taken_for_a_typical_one_of_its_capability():
    def typical(*capability: int) -> float:
        return peak_tflops(Gpu(0, name="NVIDIA Graphics Device", compute_capability=capability)) or 0.0

    servers = [typical(6, 0), typical(7, 0), typical(8, 0), typical(9, 0), typical(10, 0)]
    assert servers == sorted(servers)
    assert typical(3, 5) == typical(5, 2) < typical(6, 1)
    assert typical(13, 0) == typical(12, 1) > 0, "newer than the table: as its newest"
    assert peak_tflops(Gpu(0)) is None


ORDER = (
    # each beats the next by everybody's experience
    "NVIDIA B200", "NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA L40S", "NVIDIA A100-SXM4-80GB",
    "NVIDIA GeForce RTX 5090", "NVIDIA GeForce RTX 4090", "NVIDIA RTX A6000", "Tesla V100-SXM2-32GB",
    "NVIDIA RTX A5000", "NVIDIA GeForce RTX 3090", "Tesla T4", "NVIDIA GeForce RTX 3060", "Tesla P100-PCIE-16GB",
    "NVIDIA GeForce GTX 1080 Ti", "Tesla K80", "NVIDIA T400",
)  # fmt: skip


def test_real_cards_are_in_their_order():
    peaks = [model_peak(name) or 0.0 for name in ORDER]
    assert all(faster > slower for faster, slower in pairwise(peaks))
    assert all(peak > 0 for peak in PEAK_TFLOPS.values())


@pytest.mark.parametrize(
    ("name", "profile", "share"),
    [
        ("NVIDIA A100-SXM4-40GB", "3g.20gb", 3 / 7),
        ("NVIDIA A100-SXM4-40GB", "1c.3g.20gb", 1 / 7),
        ("NVIDIA H100 80GB HBM3", "7g.80gb", 1.0),
        ("NVIDIA H100 80GB HBM3", "1g.10gb+me", 1 / 7),
        ("NVIDIA A30", "2g.12gb", 2 / 4),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "1g.24gb", 1 / 4),
        ("NVIDIA A100-SXM4-40GB", None, 1.0),
    ],
)
def test_a_slice_has_its_share(name, profile, share):
    gpu = Gpu(0, name=name)
    assert peak_tflops(gpu, MigDevice("MIG-1", profile)) == pytest.approx((model_peak(name) or 0.0) * share)
