"""MIG: slices of one profile form a group, one rank for each GPU, more only where slices are named."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_topology.select.select import SelectionError, SelectionRequest, eligible, groups, select
from gpu_topology.topology import GpuProcess, Topology
from tests.fake_nvml.machine import to_topology

A100: dict[str, Any] = {"name": "NVIDIA A100 80GB", "memory_mib": 81920, "cc": [8, 0], "memory_used_mib": 40000}


def gpu(number: int, *slices: tuple[str, int, int], taken: tuple[int, ...] = (), **changes: Any) -> dict[str, Any]:
    """An A100 in MIG mode; a slice is (profile, MiB, instance) with the UUID "MIG-<instance>-<number>"."""
    mig = [
        {"uuid": f"MIG-{instance}-{number}", "profile": profile, "memory_mib": mib, "instance": instance}
        for profile, mib, instance in slices
    ]
    busy = [{"pid": 5, "used_mib": 1024, "instance": instance} for instance in taken]
    return {**A100, "mig_mode": True, "mig": mig, "processes": busy, **changes}


HALVES = (("3g.40gb", 40192, 1), ("3g.40gb", 40192, 2))
UNEVEN = (("3g.40gb", 40192, 1), ("2g.20gb", 19968, 3))
SEVENTHS = tuple(("1g.10gb", 9728, 7 + n) for n in range(7))


def machine(*gpus: dict[str, Any]) -> Topology:
    return to_topology({"gpus": list(gpus)})


def chosen(topology: Topology, **request: Any) -> tuple[str, ...]:
    return select(topology, SelectionRequest(**request)).uuids


def test_one_slice_of_each_gpu_is_taken():
    selection = select(machine(gpu(0, *HALVES), gpu(1, *HALVES)), SelectionRequest())
    assert (selection.indices, selection.uuids) == ((0, 1), ("MIG-1-0", "MIG-1-1"))
    assert selection.group == "NVIDIA A100 80GB MIG 3g.40gb x 2"
    alone = select(machine(gpu(0, *SEVENTHS)), SelectionRequest())
    assert (alone.indices, alone.uuids) == ((0,), ("MIG-7-0",)), "seven slices of one GPU are one rank"
    with pytest.raises(SelectionError, match=r"2 GPUs were requested, 1 can be used .* only by name \(--gpus MIG-"):
        chosen(machine(gpu(0, *SEVENTHS)), count=2)


def test_slices_in_use_are_passed_over():
    assert chosen(machine(gpu(0, *HALVES, taken=(1,)), gpu(1, *HALVES))) == ("MIG-2-0", "MIG-1-1")
    full = select(machine(gpu(0, *HALVES, taken=(1, 2)), gpu(1, *HALVES)), SelectionRequest())
    assert full.uuids == ("MIG-1-1",)
    assert full.excluded[0].reason == (
        "none of its 2 MIG slices can be used: busy: in use by process 5 with 1.0 GiB (--allow-busy uses it anyway)"
    )
    assert len(chosen(machine(gpu(0, *HALVES, taken=(1, 2)), gpu(1, *HALVES)), allow_busy=True)) == 2


def test_a_process_whose_slice_is_unknown_may_be_on_any():
    unknown = [{"pid": 5, "used_mib": 1024}]
    assert chosen(machine(gpu(0, *HALVES, processes=unknown), gpu(1, *HALVES))) == ("MIG-1-1",)


def test_memory_of_a_slice_that_no_listed_process_holds_is_in_use():
    """A container does not see the processes of others; the slice's memory shows them."""
    held = gpu(0, *HALVES)
    held["mig"][0]["used_mib"] = 9000
    assert chosen(machine(held, gpu(1, *HALVES))) == ("MIG-2-0", "MIG-1-1")
    held["mig"][0]["used_mib"] = 60  # what the driver itself takes
    assert chosen(machine(held, gpu(1, *HALVES))) == ("MIG-1-0", "MIG-1-1")
    held["mig"][0]["used_mib"] = 9000
    held["processes"] = [{"pid": 7, "used_mib": 8990, "instance": 1}]
    assert chosen(machine(held, gpu(1, *HALVES)), own_pids=frozenset({7})) == ("MIG-1-0", "MIG-1-1")


def test_an_ordinary_user_sees_the_processes_of_each_slice(read_machines):
    """NVML lists the processes of a whole GPU in MIG mode only for administrators, those of one slice for everybody."""
    one = gpu(0, *HALVES, processes=None)
    one["mig"][0] |= {"processes": [{"pid": 5, "used_mib": 1024, "instance": 1}]}
    one["mig"][1] |= {"processes": []}
    closed = gpu(1, *HALVES, processes=None)
    (topology,) = read_machines([{"gpus": [one, closed]}])
    assert [gpu.processes for gpu in topology.gpus] == [(GpuProcess(5, 2**30, 1),), None]
    assert chosen(topology) == ("MIG-2-0", "MIG-1-1")


def test_a_gpu_takes_part_in_the_group_of_each_of_its_profiles():
    topology = machine(gpu(0, *UNEVEN), gpu(1, ("2g.20gb", 19968, 4)), gpu(2, ("3g.40gb", 40192, 1)))
    found = groups(topology, eligible(topology, SelectionRequest()))
    assert [(group.name.rpartition(" ")[2], group.indices) for group in found] == [
        ("3g.40gb", (0, 2)),
        ("2g.20gb", (0, 1)),
    ]
    assert [group.memory_total for group in found] == [40192 * 2**20, 19968 * 2**20]
    assert chosen(topology) == ("MIG-1-0", "MIG-1-2")
    assert chosen(machine(gpu(0, *UNEVEN, taken=(1,)), gpu(1, ("2g.20gb", 19968, 4)))) == ("MIG-3-0", "MIG-4-1")


def test_whole_gpus_and_slices_never_group_together():
    whole = {**A100, "memory_used_mib": 1, "mig_mode": False}
    topology = machine(whole, gpu(1, ("7g.80gb", 81920, 0)), whole)
    selection = select(topology, SelectionRequest())
    assert selection.indices == (0, 2)
    assert selection.excluded[0].reason.startswith("in another group (NVIDIA A100 80GB MIG 7g.80gb x 1)")


def test_a_parent_without_slices_is_left_out():
    selection = select(machine(gpu(0), gpu(1, *HALVES)), SelectionRequest())
    assert selection.indices == (1,)
    assert selection.excluded[0].reason == "MIG is on and it has no usable slice (compute instance)"
    with pytest.raises(SelectionError, match="GPU 0 cannot be used: MIG is on"):
        chosen(machine(gpu(0), gpu(1, *HALVES)), gpus=("0",))


def test_named_slices_are_a_rank_each_on_one_gpu_too():
    topology = machine(gpu(0, *HALVES), gpu(1, *HALVES))
    selection = select(topology, SelectionRequest(gpus=("MIG-2-0", "MIG-1-0", "MIG-1-1")))
    assert (selection.indices, selection.uuids) == ((0, 0, 1), ("MIG-2-0", "MIG-1-0", "MIG-1-1"))
    assert selection.group == "NVIDIA A100 80GB MIG 3g.40gb x 3"
    assert "several ranks share GPU 0" in selection.warnings[0]
    assert chosen(topology, gpus=("MIG-2-0", "MIG-1-0", "MIG-1-1"), count=2) == ("MIG-2-0", "MIG-1-1"), "a GPU each"
    every = ("MIG-1-0", "MIG-2-0", "MIG-1-1", "MIG-2-1")
    assert chosen(topology, gpus=every, count=3) == ("MIG-1-0", "MIG-2-0", "MIG-1-1")
    assert chosen(topology, gpus=("MIG-2-1",)) == ("MIG-2-1",)
    assert chosen(topology, gpus=("1",)) == ("MIG-1-1",), "the name of a GPU is that of its best slice"
    assert chosen(machine(gpu(0, *HALVES, taken=(1,))), gpus=("0",)) == ("MIG-2-0",), "of two alike a free one"
    for names in (("MIG-2-0", "MIG-2-0"), ("0", "MIG-2-0")):
        with pytest.raises(SelectionError, match="GPU 0 is named twice"):
            chosen(topology, gpus=names)


def test_masks_and_exclusions_by_slice():
    topology = machine(gpu(0, *HALVES), gpu(1, *HALVES))
    assert chosen(topology, visible="MIG-2-0,MIG-2-1") == ("MIG-2-0", "MIG-2-1")
    assert chosen(topology, visible="MIG-2-1,MIG-1-1") == ("MIG-1-1",), (
        "two slices of one GPU are no wish for two ranks"
    )
    assert chosen(topology, visible="1") == ("MIG-1-1",)
    assert chosen(topology, exclude=("MIG-1-0",)) == ("MIG-2-0", "MIG-1-1")
    assert chosen(topology, exclude=("1",)) == ("MIG-1-0",)
    assert chosen(machine(gpu(0, *UNEVEN)), min_memory=30 * 2**30) == ("MIG-1-0",)
    small = select(machine(gpu(0, *UNEVEN)), SelectionRequest(min_memory=50 * 2**30))
    assert "has 39.2 GiB, 50.0 GiB required; has 19.5 GiB" in small.reason


def test_mixed_takes_the_largest_slice_of_each_gpu():
    topology = machine(gpu(0, *UNEVEN), {**A100, "mig_mode": False, "memory_used_mib": 1})
    selection = select(topology, SelectionRequest(policy="mixed"))
    assert selection.uuids[0] == "MIG-1-0"
    assert selection.indices == (0, 1)
    assert selection.group == "NVIDIA A100 80GB x 1 + NVIDIA A100 80GB MIG 3g.40gb x 1"


def test_a_slice_has_its_share_of_the_peak():
    topology = machine(gpu(0, *UNEVEN))
    peaks = {
        group.name.rpartition(" ")[2]: group.throughput
        for group in groups(topology, eligible(topology, SelectionRequest()))
    }
    assert peaks == {"3g.40gb": pytest.approx(312 * 3 / 7), "2g.20gb": pytest.approx(312 * 2 / 7)}


def test_slices_talk_through_host_memory():
    gpus = [gpu(n, *HALVES) for n in range(3)]
    matrix = [["X", "NV12", "SYS"], ["NV12", "X", "PHB"], ["SYS", "PHB", "X"]]
    pcie = [["X", "SYS", "SYS"], ["SYS", "X", "PHB"], ["SYS", "PHB", "X"]]
    topology = to_topology({"gpus": gpus, "matrix": matrix, "pcie_matrix": pcie})
    selection = select(topology, SelectionRequest(count=2))
    assert selection.indices == (1, 2), "NVLink is of no use to them"
    assert selection.reason.endswith("PHB without peer access, through host memory)")
