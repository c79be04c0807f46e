"""Machines of public bug reports with an expert's decision, read through the stand-in driver, in several orders.

reported_machines.json: a machine as in tests/fake_nvml/machine.py, with `each` (what its GPUs have in common) and its
matrices as lines; `chosen` are the sets that are right (for `count` GPUs), `words` and `absent` what the selection must
say of them and must not.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from gpu_topology.environment.notes import notes
from gpu_topology.host.host import Host
from gpu_topology.host.torch_build import BUILDS, TorchBuild
from gpu_topology.select.select import SelectionError, SelectionRequest, select
from gpu_topology.topology import Topology
from tests.fake_nvml.machine import load_machine, permuted
from tests.gpu_topology.conftest import ReadMachines

MACHINES = json.loads((Path(__file__).parent / "reported_machines.json").read_text())
TORCH = TorchBuild("2.14.1+cu130", "13.0", BUILDS["13.0"])
SHUFFLED = 1


def expanded(machine: dict[str, Any]) -> dict[str, Any]:
    gpus = [machine["each"] | gpu for gpu in machine["gpus"]]
    matrices = {key: [line.split() for line in machine[key]] for key in ("matrix", "pcie_matrix") if key in machine}
    return load_machine(machine | matrices | {"gpus": gpus})


def test_the_experts_decision_and_words_in_every_order(read_machines: ReadMachines, host: Host) -> None:
    draw = random.Random(0)
    cases: list[tuple[dict[str, Any], list[int]]] = []
    for machine in MACHINES:
        size = len(machine["gpus"])
        orders = [list(range(size)), *(draw.sample(range(size), size) for _ in range(SHUFFLED if size > 1 else 0))]
        cases += [(machine, order) for order in orders]
    readings = read_machines([permuted(expanded(machine), tuple(order)) for machine, order in cases])
    wrong = [
        f"{machine['name']} {order}: {problem}"
        for (machine, order), topology in zip(cases, readings, strict=True)
        for problem in problems(machine, order, topology, host)
    ]
    assert wrong == [], "\n".join(wrong)


def problems(machine: dict[str, Any], order: list[int], topology: Topology, host: Host) -> list[str]:
    """What differs from the expert's decision and words; words that name GPUs count in the reported order alone."""
    try:
        selection = select(topology, SelectionRequest(count=machine.get("count"), torch=TORCH))
    except SelectionError as error:
        return [str(error)]
    found = []
    if sorted(order[index] for index in selection.indices) not in machine["chosen"]:
        found.append(f"chose {[order[index] for index in selection.indices]}")
    said = (
        selection.reason,
        *(excluded.reason for excluded in selection.excluded),
        *selection.warnings,
        *topology.warnings,
        *notes(topology, selection, host),
    )
    text = "\n".join(said)
    if order == sorted(order):
        found += [f"does not say {words!r}: {text}" for words in machine.get("words", ()) if words not in text]
    return found + [f"says {words!r}: {text}" for words in machine.get("absent", ()) if words in text]
