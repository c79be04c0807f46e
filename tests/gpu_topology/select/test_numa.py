"""Whether ranks are bound to NUMA nodes: only where torchrun's --numa-binding works and leaves no CPU idle."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from gpu_topology.host.cpus import NumaNode
from gpu_topology.host.host import Host
from gpu_topology.select.numa import bound_threads, choose_binding, numa_binding, obstacle
from gpu_topology.select.select import Selection, SelectionRequest, select
from gpu_topology.topology import Gpu, MigDevice, Topology


def machine(*nodes: int | None, **more: Any) -> Topology:
    """Like GPUs, one on each of these NUMA nodes."""
    shared = {"name": "NVIDIA A40", "memory_total": 2**35, "compute_capability": (8, 6), "processes": (), **more}
    return Topology(
        gpus=tuple(Gpu(index, f"GPU-{index}", numa_node=node, **shared) for index, node in enumerate(nodes))
    )


def on_host(host: Host, *nodes: NumaNode, **changes: Any) -> Host:
    changes = {"numactl": True, "numa_policy": True, **changes}
    return dataclasses.replace(host, usable_nodes=nodes, usable_cores=sum(node.cores for node in nodes), **changes)


def choose(topology: Topology, host: Host, count: int | None = None) -> tuple[Topology, Selection, Host]:
    return topology, select(topology, SelectionRequest(count=count)), host


TWO = (NumaNode(0, 0, 16), NumaNode(1, 1, 16))
# Four nodes a socket, as an EPYC with NPS4: every second one has GPUs.
EIGHT = tuple(NumaNode(index, index // 4, 8) for index in range(8))

MODES = {
    # what: (nodes of the GPUs, the host's nodes, changes, mode, threads, words of the reason)
    "a GPU on each node": ((0, 1), TWO, {}, "node", 16, "NUMA node that its GPU"),
    "uneven": ((0, 0, 0, 1), TWO, {}, "node", 5, "NUMA node that its GPU"),
    "a GPU on each socket": ((1, 3, 5, 7), EIGHT, {}, "socket", 16, "socket that its GPU"),
    "all on one socket": ((0, 1), EIGHT, {}, None, None, "CPUs of node 2, 3, 4, 5, 6, 7 idle"),
    "all on one node": ((0, 0), TWO, {}, None, None, "CPUs of node 1 idle"),
    "one socket of two nodes": ((0, 0), (TWO[0], NumaNode(1, 0, 16)), {}, None, None, "CPUs of node 1 idle"),
    "an unknown socket": ((0, 1), (*TWO, NumaNode(2, None, 16)), {}, None, None, "CPUs of node 2 idle"),
    "no numactl": ((0, 1), TWO, {"numactl": False}, None, None, "needs the program numactl"),
    "numactl is refused": ((0, 1), TWO, {"numa_policy": False}, None, None, "--cap-add=SYS_NICE"),
    "not to be found out": ((0, 1), TWO, {"numa_policy": None}, None, None, "it is not known whether"),
    "an unknown node": ((0, None), TWO, {}, None, None, "does not report the node of GPU 1"),
    "a node out of reach": ((0, 1, 2), TWO, {}, None, None, "may not use the CPUs of the node of GPU 2"),
}


@pytest.mark.parametrize("what", MODES)
def test_mode(what: str, host: Host) -> None:
    gpus, nodes, changes, mode, threads, words = MODES[what]
    facts = choose(machine(*gpus), on_host(host, *nodes, **changes))
    binding = choose_binding(*facts)
    assert binding is not None
    assert (binding.mode, numa_binding(*facts), bound_threads(*facts)) == (mode, mode, threads)
    assert words in binding.reason
    assert "\n" not in binding.reason


def test_gpus_for_one_process_are_not_asked_by_torchrun(host: Host) -> None:
    facts = choose(machine(0, 1, compute_mode="exclusive-process"), on_host(host, *TWO))
    assert numa_binding(*facts) is None
    assert "GPU 0, 1 admits a single process" in (obstacle(*facts) or "")


def test_nothing_is_said_where_there_is_nothing_to_choose(host: Host) -> None:
    one_node = on_host(host, NumaNode(0, 0, 16))
    assert choose_binding(*choose(machine(0, 0), one_node)) is None
    assert choose_binding(*choose(Topology(), on_host(host, *TWO))) is None
    assert choose_binding(*choose(machine(0, 1), dataclasses.replace(host, numactl=True))) is None


def test_mig_slices_are_not_bound(host: Host) -> None:
    gpus = tuple(
        dataclasses.replace(gpu, mig_mode=True, mig_devices=(MigDevice(f"MIG-{gpu.index}", "3g.20gb", 2**34),))
        for gpu in machine(0, 1).gpus
    )
    facts = choose(Topology(gpus=gpus), on_host(host, *TWO))
    assert facts[1].uuids == ("MIG-0", "MIG-1")
    assert choose_binding(*facts) is None
    assert "MIG" in (obstacle(*facts) or "")


def test_what_hinders_a_mode_that_was_asked_for(host: Host) -> None:
    # An explicit mode may leave CPUs idle, and may be asked for on one node.
    assert obstacle(*choose(machine(0, 0), on_host(host, *TWO))) is None
    assert obstacle(*choose(machine(0), on_host(host, NumaNode(0, 0, 16)))) is None
    assert "numactl" in (obstacle(*choose(machine(0), on_host(host, *TWO, numactl=False))) or "")
    assert "no GPU" in (obstacle(*choose(Topology(), on_host(host, *TWO))) or "")
