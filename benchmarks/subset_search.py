"""How long the search for the best-connected subset of GPUs takes.

    python -m benchmarks.subset_search [--out NAME]

Every size from 2 to 16 GPUs out of 16, on matrices that leave the search no shortcut: random NVLink and PCIe levels, as
many speeds as pairs, one speed for all with random sockets and paths, sparse rings. The figure is the slowest of some
seeds, each the best of five tries, in milliseconds of processor time: the search never waits, other programs may run.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import combinations

from benchmarks.harness import Figures, Measurement
from gpu_topology.select.bandwidth import Fabric
from gpu_topology.select.select import SelectionRequest, select
from gpu_topology.topology import Gpu, Link, LinkLevel, Topology

GPUS = 16
SEEDS = 12
COUNTS = (2, 4, 6, 8, 10, 12, 14, 16)
PCIE = tuple(level for level in LinkLevel if level is not LinkLevel.NV)


def _mixed(draw: random.Random, a: int, b: int) -> tuple[int, LinkLevel]:
    return draw.choice([0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6]), draw.choice(PCIE)


def _all_different(draw: random.Random, a: int, b: int) -> tuple[int, LinkLevel]:
    return draw.randrange(1, 100_000), LinkLevel.SYS


def _all_alike(draw: random.Random, a: int, b: int) -> tuple[int, LinkLevel]:
    return 6, draw.choice(PCIE)


def _sparse(draw: random.Random, a: int, b: int) -> tuple[int, LinkLevel]:
    return (draw.randrange(1, 4) if draw.random() < 0.2 else 0), LinkLevel.SYS


MATRICES: dict[str, Callable[[random.Random, int, int], tuple[int, LinkLevel]]] = {
    "NV1..NV6 or PCIe": _mixed,
    "all speeds differ": _all_different,
    "all speeds alike": _all_alike,
    "one NVLink in five": _sparse,
}


def random_machine(seed: int, pair: Callable[[random.Random, int, int], tuple[int, LinkLevel]]) -> Topology:
    """16 identical GPUs on two sockets, each pair drawn by `pair` (NVLinks, PCIe path)."""
    draw = random.Random(seed)
    gpus = tuple(
        Gpu(i, f"GPU-{i}", "NVIDIA A100-SXM4-40GB", compute_capability=(8, 0), numa_node=draw.randrange(2))
        for i in range(GPUS)
    )
    links = []
    for a, b in combinations(range(GPUS), 2):
        count, path = pair(draw, a, b)
        links.append(Link(a, b, LinkLevel.NV if count else path, count, "ok", path))
    return Topology(gpus, tuple(links))


def _search(machine: Topology, count: int) -> tuple[int, ...]:
    return Fabric(machine, range(GPUS)).best(count)


def milliseconds(action: Callable[[], object]) -> float:
    """Processor time, the best of five tries."""
    tries = []
    for _ in range(5):
        start = time.process_time()
        action()
        tries.append(time.process_time() - start)
    return 1000 * min(tries)


def measure(_: argparse.Namespace) -> Figures:
    """A row for each kind of matrix."""
    rows = []
    for name, pair in MATRICES.items():
        machines = [random_machine(seed, pair) for seed in range(SEEDS)]
        worst = [max(milliseconds(partial(_search, machine, count)) for machine in machines) for count in COUNTS]
        request = SelectionRequest(count=8)
        whole = max(milliseconds(partial(select, machine, request)) for machine in machines)
        rows.append([name, *(f"{value:.1f}" for value in (*worst, whole))])
    columns = [f"ms, slowest of {SEEDS} seeds", *(f"{count} of {GPUS}" for count in COUNTS), "whole selection of 8"]
    return {"table": {"columns": columns, "rows": rows}}


main = Measurement("subset_search", __doc__, measure)

if __name__ == "__main__":
    sys.exit(main())
