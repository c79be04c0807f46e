"""Whether the GPUs reach the speed that they should: each compared with its equals, the all-reduce with its model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from gpu_topology.select.bandwidth import Fabric, ring_gb_s
from gpu_topology.topology import LinkLevel, Topology

# Equal GPUs differ by a few percent: chips, temperature, clocks.
_SLOWER = 0.10

# Below this share of the nominal rate an all-reduce counts as slow, over NVLink (True) or PCIe (False). Over NVLink
# verify's largest message takes less than a millisecond, too short for the full rate.
_LEAST_OF_MODEL = {True: 1 / 4, False: 1 / 2}


def slow_gpus(compute: Sequence[tuple[int, float]], topology: Topology) -> Iterator[str]:
    """GPUs that compute more slowly than the others of their model. `compute`: (NVML index, 10^12 operations/s)."""
    for index, speed in compute:
        name = topology.gpu(index).name
        equals = [other for one, other in compute if one != index and topology.gpu(one).name == name]
        if name is None or not equals:
            continue
        less = 1 - speed / median(equals)
        if less >= _SLOWER:
            speeds = f"{speed:.3g} against {median(equals):.3g} TFLOP/s"
            yield (
                f"GPU {index} is {less:.0%} slower than its equals ({speeds}), and all wait for it:"
                f" `nvidia-smi -q -i {index} -d PERFORMANCE` may show why; --exclude {index} leaves it out"
            )


def model_gb_s(topology: Topology, indices: Sequence[int]) -> float | None:
    """The rate of the slowest link in the best ring, which is the busbw of a perfect all-reduce; None where no link is
    known, and for MIG slices."""
    whole = not any(topology.gpu(index).mig_mode for index in indices)
    known = whole and len(indices) > 1 and any(link.level is not None for link in topology.links_within(tuple(indices)))
    return ring_gb_s(topology, indices) if known else None


def slow_links(busbw: float | None, topology: Topology, indices: Sequence[int]) -> Iterator[str]:
    """An all-reduce that falls far short of its model."""
    model = model_gb_s(topology, indices)
    if busbw is None or model is None:
        return
    fabric = Fabric(topology, indices)
    floor = fabric.bottleneck(indices)
    nvlink = any(link.level is LinkLevel.NV and fabric.speed[pair] <= floor for pair, link in fabric.links.items())
    if busbw < _LEAST_OF_MODEL[nvlink] * model:
        yield (
            f"the all-reduce reaches {busbw:.3g} GB/s, {busbw / model:.0%} of the {model:.3g} GB/s of its slowest link:"
            " NCCL_DEBUG=INFO with verify shows the transport that NCCL chose"
        )
