"""The peak arithmetic of a GPU, to rank different GPUs. A training run's speed is measured instead.

One figure for each GPU: dense 16-bit operations with sums in fp32 (what autocast uses), in units of 1e12 per second;
fp32 where a card has no faster 16-bit unit. It comes from the first source that knows it: the table of models, cores
and clock as the driver reports them, a typical card of that compute capability.
"""

from __future__ import annotations

import re
from functools import cache

from gpu_topology.topology import Gpu, MigDevice

# Peaks by model, from NVIDIA's data sheets and architecture white papers (Pascal, Volta, Turing, GA100, GA102, Ada,
# Hopper, Blackwell and RTX Blackwell), checked against the arithmetic cores x boost clock x operations (`_PER_CLOCK`).
# Data sheets often give the figure with sparsity, or with fp16 sums, which GeForce cards compute twice as fast.
# A key covers every name that begins with its words, without "NVIDIA", "Tesla" and "GeForce"; the longest key wins, so
# that "RTX 4000 Ada" is not an RTX 40 card and an A10 is not an A100.
PEAK_TFLOPS = {
    # Blackwell
    "GB300": 2500.0, "GB200": 2500.0, "B300": 2250.0, "B200": 2250.0, "B100": 1750.0, "GB10": 125.0,
    "RTX PRO 6000 Blackwell": 503.8, "RTX PRO 6000 Blackwell Max-Q": 438.9, "RTX PRO 5000 Blackwell": 258.0,
    "RTX PRO 4500 Blackwell": 219.7, "RTX PRO 4000 Blackwell": 147.0,
    "RTX 5090": 209.5, "RTX 5080": 112.6, "RTX 5070 Ti": 87.9, "RTX 5070": 61.7, "RTX 5060 Ti": 47.4, "RTX 5060": 38.4,
    # Hopper
    "GH200": 989.4, "H200": 989.4, "H200 NVL": 836.0, "H100": 989.4, "H100 PCIe": 756.0, "H100 80GB HBM2e": 756.0,
    "H100 NVL": 835.0, "H800": 989.4, "H800 PCIe": 756.0, "H20": 148.0,
    # Ada
    "L40S": 362.0, "L40": 181.0, "L20": 119.5, "L4": 121.0, "L2": 96.5,
    "RTX 6000 Ada": 364.2, "RTX 5880 Ada": 277.0, "RTX 5000 Ada": 261.1, "RTX 4500 Ada": 158.5, "RTX 4000 Ada": 106.9,
    "RTX 4000 SFF Ada": 76.7, "RTX 2000 Ada": 48.0,
    "RTX 4090": 165.2, "RTX 4090 D": 147.1, "RTX 4080 SUPER": 104.4, "RTX 4080": 97.5, "RTX 4070 Ti SUPER": 88.2,
    "RTX 4070 Ti": 80.2, "RTX 4070 SUPER": 71.0, "RTX 4070": 58.3, "RTX 4060 Ti": 44.1, "RTX 4060": 30.2,
    # Ampere
    "A100": 312.0, "A100X": 312.0, "A800": 312.0, "A30": 165.0, "A30X": 165.0, "A40": 149.7, "A10": 125.0,
    "A10G": 125.0, "A10M": 125.0, "A16": 17.9, "A2": 18.0,
    "RTX A6000": 154.8, "RTX A5500": 136.5, "RTX A5000": 111.1, "RTX A4500": 94.6, "RTX A4000": 76.7, "RTX A2000": 31.9,
    "RTX A1000": 26.9, "RTX A400": 10.8,
    "RTX 3090 Ti": 80.0, "RTX 3090": 71.2, "RTX 3080 Ti": 68.2, "RTX 3080": 59.5, "RTX 3070 Ti": 43.5, "RTX 3070": 40.6,
    "RTX 3060 Ti": 32.4, "RTX 3060": 25.5, "RTX 3050": 18.2,
    # Turing; the last five have no tensor cores but 16-bit units of twice the fp32 rate
    "T4": 65.1, "T4G": 65.1, "Quadro RTX 8000": 130.5, "Quadro RTX 6000": 130.5, "Quadro RTX 5000": 89.2,
    "Quadro RTX 4000": 57.0, "TITAN RTX": 130.5, "RTX 2080 Ti": 53.8, "RTX 2080 SUPER": 44.6, "RTX 2080": 40.3,
    "RTX 2070 SUPER": 36.3, "RTX 2070": 29.9, "RTX 2060 SUPER": 28.7, "RTX 2060": 25.8,
    "GTX 1660": 10.0, "GTX 1650": 6.0, "T1000": 5.0, "T600": 3.4, "T400": 2.2, "DGX Display": 5.0,
    # Volta
    "V100": 125.0, "V100 PCIE": 112.0, "V100S": 130.0, "V100 FHHL": 105.7, "TITAN V": 110.0, "Quadro GV100": 118.5,
    # Pascal: P100 and GP100 have quick 16-bit units, the others compute in fp32
    "P100": 21.2, "P100 PCIE": 18.7, "Quadro GP100": 20.7, "P40": 11.8, "P4": 5.5,
    "TITAN Xp": 12.1, "TITAN X Pascal": 11.0, "GTX 1080 Ti": 11.3, "GTX 1080": 8.9, "GTX 1070 Ti": 8.2, "GTX 1070": 6.5,
    "GTX 1060": 4.4, "GTX 1050 Ti": 2.1, "GTX 1050": 1.9, "GT 1030": 1.1, "Quadro P6000": 12.6, "Quadro P5000": 8.9,
    "Quadro P4000": 5.3, "Quadro P2200": 3.8, "Quadro P2000": 3.0, "Quadro P1000": 1.9, "Quadro P620": 1.4,
    "Quadro P600": 1.2, "Quadro P400": 0.6,
    # Maxwell and Kepler; a K80, M60 or K10 is two GPUs, each of which has this
    "M60": 4.8, "M40": 6.8, "M4": 2.2, "GTX TITAN X": 6.7, "GTX 980 Ti": 6.1, "GTX 980": 5.0, "GTX 970": 3.9,
    "K80": 4.4, "K40m": 5.0, "K40c": 5.0, "K20m": 3.5, "K20Xm": 3.9,
}  # fmt: skip

# The same operations per CUDA core and clock by compute capability (A100: 312e12 / (6912 cores x 1.41e9 Hz) = 32).
# From Turing on, GeForce cards run at half of this with sums in fp32 (RTX 3090: 71.2e12 / (10496 x 1.695e9 Hz) = 4).
_PER_CLOCK = {(6, 0): 4, (7, 0): 16, (7, 2): 16, (7, 5): 16, (8, 0): 32, (8, 7): 16, (9, 0): 32}
_PER_CLOCK_BY_GENERATION = {8: 8, 10: 64, 11: 64, 12: 8}
_PER_CLOCK_FP32 = 2

# A typical card for a model that is not in the table: a server card where the capability is one of server cards.
_TYPICAL_TFLOPS = {
    (6, 0): 18.7, (6, 1): 8.9, (7, 0): 112.0, (7, 2): 11.0, (7, 5): 57.0, (8, 0): 312.0, (8, 6): 71.0, (8, 7): 42.0,
    (8, 9): 121.0, (9, 0): 756.0, (10, 0): 2250.0, (10, 3): 2250.0, (11, 0): 257.0, (12, 0): 112.0, (12, 1): 125.0,
}  # fmt: skip
_TYPICAL_OLDER_TFLOPS = 4.4

_BRANDS = {"nvidia", "tesla", "geforce", "grid"}

# The compute slices of a GPU in MIG mode (MIG user guide): 7, or 4 on the smaller chips.
_SLICES = 7
_FOUR_SLICES = ("A30", "RTX PRO")


def peak_tflops(gpu: Gpu, mig: MigDevice | None = None) -> float | None:
    """Peak dense 16-bit operations per second, in 1e12, of a GPU or one of its MIG slices; None when unknown."""
    whole = model_peak(gpu.name) or _from_cores(gpu) or _typical(gpu.compute_capability)
    return whole if whole is None or mig is None else whole * _fraction(gpu, mig)


@cache
def model_peak(name: str | None) -> float | None:
    """The table's figure for a GPU by the driver's name; None when it is not in the table.

    A laptop's GPU differs from its namesake in chip or clock, and is not in the table.
    """
    words = _words(name or "")
    if {"laptop", "mobile", "design"} & set(words):  # "... with Max-Q Design"
        return None
    named = [(key, peak) for key, peak in _keys() if words[: len(key)] == key]
    return max(named, key=lambda one: len(one[0]), default=((), None))[1]


def _words(name: str) -> tuple[str, ...]:
    """The words of a name, in lower case, without the brand."""
    return tuple(word for word in re.findall(r"[a-z0-9]+", name.lower()) if word not in _BRANDS)


@cache
def _keys() -> tuple[tuple[tuple[str, ...], float], ...]:
    """The table's names as words, with their peaks."""
    return tuple((_words(model), peak) for model, peak in PEAK_TFLOPS.items())


def _from_cores(gpu: Gpu) -> float | None:
    """The peak by cores, clock and compute capability; None where one is unknown."""
    if gpu.cores is None or gpu.clock_mhz is None or gpu.compute_capability is None:
        return None
    generation = gpu.compute_capability[0]
    per_clock: float = _PER_CLOCK.get(
        gpu.compute_capability, _PER_CLOCK_BY_GENERATION.get(generation, _PER_CLOCK_FP32 if generation < 8 else 8)
    )
    if gpu.compute_capability >= (7, 5) and "GeForce" in (gpu.name or ""):
        per_clock /= 2
    return gpu.cores * gpu.clock_mhz * per_clock / 1e6


def _typical(capability: tuple[int, int] | None) -> float | None:
    """The peak of a typical card of a compute capability."""
    if capability is None:
        return None
    older = [known for known in _TYPICAL_TFLOPS if known <= capability]
    return _TYPICAL_TFLOPS[max(older)] if older else _TYPICAL_OLDER_TFLOPS


def _fraction(gpu: Gpu, mig: MigDevice) -> float:
    """A slice's share of the GPU's arithmetic: "3g.20gb" has 3/7, "1c.3g.20gb" 1/7; 1 when unknown."""
    match = re.match(r"(\d+)[cg]\.", mig.profile or "")
    if match is None:
        return 1.0
    name = " ".join(_words(gpu.name or ""))
    slices = 4 if name.startswith(tuple(word.lower() for word in _FOUR_SLICES)) else _SLICES
    return min(1.0, int(match[1]) / slices)
