"""Real machines with an expert's decision: groups, best two, best four, peer access, under every order of the GPUs."""

from __future__ import annotations

import json
import random
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from gpu_topology import snapshot
from gpu_topology.environment import settings as nccl
from gpu_topology.environment.notes import notes as make_notes
from gpu_topology.host.host import Host
from gpu_topology.select.bandwidth import Fabric
from gpu_topology.select.select import Selection, SelectionError, SelectionRequest, eligible, groups, select
from gpu_topology.topology import Topology
from tests.fake_nvml.machine import load_machine, permuted, to_topology

MACHINES = {path.stem: json.loads(path.read_text()) for path in sorted((Path(__file__).parent / "machines").glob("*"))}
OTHERS_PROCESS = {"processes": [{"pid": 4242, "used_mib": 4000}]}


def orders(size: int) -> list[tuple[int, ...]]:
    """Every order of a few GPUs, forty of many."""
    if size <= 4:
        return list(permutations(range(size)))
    draw = random.Random(0)
    return [tuple(range(size)), *(tuple(draw.sample(range(size), size)) for _ in range(40))]


def groups_of(topology: Topology, order: tuple[int, ...]) -> list[list[int]]:
    found = groups(topology, eligible(topology, SelectionRequest()))
    return [sorted(order[index] for index in group.indices) for group in found]


def best(topology: Topology, count: int, order: tuple[int, ...]) -> list[int]:
    return sorted(order[index] for index in select(topology, SelectionRequest(count=count)).indices)


@pytest.mark.parametrize("name", MACHINES)
def test_the_experts_decision_in_every_order(name: str, host: Host) -> None:
    machine, expected = MACHINES[name], MACHINES[name]["expected"]
    for order in orders(len(machine["gpus"])):
        topology = to_topology(permuted(machine, order))
        assert groups_of(topology, order) == expected["groups"], order
        whole = select(topology, SelectionRequest())
        assert sorted(order[index] for index in whole.indices) == expected["groups"][0]
        check_variables(topology, whole, host)
        notes = " ".join(make_notes(topology, whole, host))
        assert ("redundant" in notes) == (expected["p2p_disable"] == "redundant")
        for count in (2, 4):
            if not expected[f"best_{count}"]:
                assert len(whole.indices) < count
                with pytest.raises(SelectionError, match=f"{count} GPUs were requested"):
                    select(topology, SelectionRequest(count=count))
                continue
            chosen = select(topology, SelectionRequest(count=count))
            original = sorted(order[index] for index in chosen.indices)
            assert original in [sorted(one) for one in expected[f"best_{count}"]], (order, count)
            assert check_variables(topology, chosen, host) == (expected["p2p_disable"] == "1")


def check_variables(topology: Topology, chosen: Selection, host: Host) -> bool:
    """No NCCL variable without need: at most that which turns peer access off. Whether it is set."""
    settings = nccl.environment(topology, chosen, host, ranks=len(chosen.indices), environ={})
    names = {setting.name: setting.value for setting in settings if setting.name.startswith("NCCL_")}
    broken = any(link.p2p not in (None, "ok") and link.nvlinks for link in topology.links_within(chosen.indices))
    assert names == ({"NCCL_P2P_DISABLE": "1"} if broken else {})
    return broken


BUSY = [(name, case) for name, machine in MACHINES.items() for case in machine["expected"].get("busy", ())]


@pytest.mark.parametrize(("name", "case"), BUSY, ids=[f"{name}-{case['taken']}" for name, case in BUSY])
def test_the_experts_decision_with_some_gpus_busy(name: str, case: dict[str, Any]) -> None:
    machine = load_machine(MACHINES[name])
    for index in case["taken"]:
        machine["gpus"][index] |= OTHERS_PROCESS
    for order in orders(len(machine["gpus"])):
        topology = to_topology(permuted(machine, order))
        assert not {index for group in groups_of(topology, order) for index in group} & set(case["taken"])
        if "groups" in case:
            assert groups_of(topology, order) == case["groups"], order
        for count in (2, 4):
            if f"best_{count}" in case:
                assert best(topology, count, order) in [sorted(one) for one in case[f"best_{count}"]], (order, count)


@pytest.mark.parametrize("name", MACHINES)
def test_the_least_that_a_snapshot_tells_is_enough(name: str, host: Host) -> None:
    """The same groups and equally good subsets from the documented keys alone: no clocks, cores, PCIe path or MIG."""
    machine = MACHINES[name]
    if any(gpu.get("mig_mode") for gpu in machine["gpus"]):
        pytest.skip("the documented keys tell nothing of MIG slices")
    full = to_topology(machine)
    least = snapshot.from_dict(_documented_keys(full))
    expected = machine["expected"]
    assert groups_of(least, tuple(range(len(least.gpus)))) == expected["groups"]
    for count in (2, 4):
        if expected[f"best_{count}"]:
            fabric = Fabric(full, range(len(full.gpus)))
            chosen, rival = select(least, SelectionRequest(count=count)).indices, expected[f"best_{count}"][0]
            assert fabric.bottleneck(chosen) == fabric.bottleneck(rival)
            assert fabric.total(chosen) == fabric.total(rival)


def _documented_keys(topology: Topology) -> dict[str, object]:
    gpu_keys = ("index", "uuid", "name", "pci_bus_id", "memory_total", "memory_used", "compute_capability")
    gpu_keys += ("numa_node", "mig_mode", "utilization", "processes")
    data = json.loads(json.dumps(snapshot.to_dict(topology)))
    return {
        "schema": data["schema"],
        "driver_version": data["driver_version"],
        "gpus": [{key: gpu[key] for key in gpu_keys} for gpu in data["gpus"]],
        "links": [{key: link[key] for key in ("a", "b", "level", "nvlinks", "p2p")} for link in data["links"]],
    }


def test_the_nearer_of_equal_nvlink_pairs_is_taken() -> None:
    # On a DGX-1 six NV2 pairs share a socket; of those, two share a PCIe switch too.
    topology = to_topology(MACHINES["dgx1v_8xv100"])
    assert select(topology, SelectionRequest(count=2)).indices == (2, 3)
    assert select(topology, SelectionRequest(count=4)).indices == (0, 1, 2, 3)


def test_every_machine_says_why() -> None:
    assert all(machine["expected"]["reason"] for machine in MACHINES.values())
