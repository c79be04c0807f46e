"""The search for the best-connected subset of many GPUs.

Every size from 2 to 16 GPUs out of 16: random NVLink and PCIe levels, as many speeds as pairs, one speed for all with
random sockets and paths, sparse rings. The figure is the slowest of some seeds, each the best of five tries; other
programs may run meanwhile, since the search never waits.

Processor time of the search in 16 GPUs, for matrices that leave it no shortcut.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial
from itertools import combinations

from benchmarks.harness import Arguments, Figures, measurement
from gpu_topology.select.bandwidth import Fabric
from gpu_topology.select.select import SelectionRequest, select
from gpu_topology.topology import Gpu, Link, LinkLevel, Topology

GPUS, SEEDS = 16, 12
COUNTS = range(2, GPUS + 1, 2)
PCIE = tuple(level for level in LinkLevel if level is not LinkLevel.NV)
Pair = Callable[[random.Random], tuple[int, LinkLevel]]
MATRICES: dict[str, Pair] = {
    "NV1..NV6 or PCIe": lambda draw: (draw.choice([0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6]), draw.choice(PCIE)),
    "all speeds differ": lambda draw: (draw.randrange(1, 100_000), LinkLevel.SYS),
    "all speeds alike": lambda draw: (6, draw.choice(PCIE)),
    "one NVLink in five": lambda draw: (draw.randrange(1, 4) if draw.random() < 0.2 else 0, LinkLevel.SYS),
}
"""Kind of matrix -> a function that draws the number of NVLinks and the PCIe path of a pair of GPUs."""


def random_machine(seed: int, pair: Pair) -> Topology:
    """16 identical GPUs on two sockets."""
    draw = random.Random(seed)
    name, capability = "NVIDIA A100-SXM4-40GB", (8, 0)
    nodes = [draw.randrange(2) for _ in range(GPUS)]
    gpus = tuple(
        Gpu(i, f"GPU-{i}", name, compute_capability=capability, numa_node=node) for i, node in enumerate(nodes)
    )
    links = []
    for a, b in combinations(range(GPUS), 2):
        count, path = pair(draw)
        links.append(Link(a, b, LinkLevel.NV if count else path, count, "ok", path))
    return Topology(gpus, tuple(links))


def _search(machine: Topology, count: int) -> tuple[int, ...]:
    """The `count` best-connected GPUs."""
    return Fabric(machine, range(GPUS)).best(count)


def milliseconds(action: Callable[[], object]) -> float:
    """Processor time of an action in milliseconds, the best of five tries."""
    tries = []
    for _ in range(5):
        start = time.process_time()
        action()
        tries.append(time.process_time() - start)
    return 1000 * min(tries)


@measurement()
def main(_: Arguments) -> Figures:
    """The slowest search for each size of subset and each kind of matrix."""
    rows = []
    for name, pair in MATRICES.items():
        machines = [random_machine(seed, pair) for seed in range(SEEDS)]
        slowest = [max(milliseconds(partial(_search, machine, count)) for machine in machines) for count in COUNTS]
        request = SelectionRequest(count=8)
        slowest.append(max(milliseconds(partial(select, machine, request)) for machine in machines))
        rows.append([name, *(f"{value:.1f}" for value in slowest)])
    columns = [f"ms, slowest of {SEEDS} seeds", *(f"{count} of {GPUS}" for count in COUNTS), "whole selection of 8"]
    return {"table": {"columns": columns, "rows": rows}}
