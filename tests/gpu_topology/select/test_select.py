"""Who may be used, which GPUs belong together and which group wins, as tables. Real machines: test_machines.py."""

from __future__ import annotations

import json
from itertools import islice, permutations
from pathlib import Path
from typing import Any

import pytest

from gpu_topology.select.select import SelectionError, SelectionRequest, select
from gpu_topology.topology import Topology
from tests.fake_nvml.machine import load_machine, permuted, to_topology


def workstation(**changes: dict[int, dict[str, Any]]) -> Topology:
    """Three A5000 (0, 2, 4), a T400 with a display (1), an A100 (3); `gpus={index: changes}`."""
    machine = load_machine("a100_a5000_t400")
    for index, change in changes.get("gpus", {}).items():
        machine["gpus"][index] |= change
    return to_topology(machine)


REAL = Path(__file__).parents[1] / "machines"
UUID = [gpu.uuid or "" for gpu in workstation().gpus]


@pytest.mark.parametrize("order", list(islice(permutations(range(5)), 0, 120, 7)))
def test_the_three_a5000_are_selected_in_every_order(order):
    machine = permuted(load_machine("a100_a5000_t400"), order)
    chosen = select(to_topology(machine), SelectionRequest())
    assert [order[index] for index in chosen.indices] == [i for i in order if i in (0, 2, 4)]
    assert chosen.group == "NVIDIA RTX A5000 x 3"
    reasons = {order[excluded.index]: excluded.reason for excluded in chosen.excluded}
    assert reasons[1] == (
        "a display card, in another group (NVIDIA T400 4GB x 1) than the chosen one (NVIDIA RTX A5000 x 3)"
    )
    assert reasons[3] == "in another group (NVIDIA A100-PCIE-40GB x 1) than the chosen one (NVIDIA RTX A5000 x 3)"


BUSY_PROCESS = {"processes": [{"pid": 77, "used_mib": 2048}]}

CHOICES: dict[str, tuple[dict[int, dict[str, Any]], dict[str, Any], tuple[int, ...], dict[int, str]]] = {
    # what: (changed GPUs, request, chosen, {excluded: part of its reason})
    "a compute process": ({2: BUSY_PROCESS}, {}, (0, 4), {2: "busy: in use by process 77 with 2.0 GiB"}),
    "memory in use": ({2: {"memory_used_mib": 6000}}, {}, (0, 4), {2: "busy: 24% of its memory is in use"}),
    "a desktop's memory": ({2: {"memory_used_mib": 700}}, {}, (0, 2, 4), {}),
    "a desktop's memory on a small card": (
        {1: {"memory_used_mib": 480}},
        {"exclude": ("0", "2", "3", "4")},
        (1,),
        {0: "excluded by request"},
    ),
    "busy but allowed": ({2: BUSY_PROCESS}, {"allow_busy": True}, (0, 2, 4), {}),
    "all alike busy": (dict.fromkeys((0, 2, 4), BUSY_PROCESS), {}, (3,), {1: "another group", 4: "busy"}),
    "unknown processes": ({2: {"processes": None}}, {}, (0, 2, 4), {}),
    "compute prohibited": ({0: {"compute_mode": 2}}, {}, (2, 4), {0: "compute mode is Prohibited"}),
    "exclude an index": ({}, {"exclude": ("0",)}, (2, 4), {0: "excluded by request"}),
    "exclude a UUID": ({}, {"exclude": (UUID[2],)}, (0, 4), {2: "excluded by request"}),
    "min memory": ({}, {"min_memory": 30 * 2**30}, (3,), {0: "has 24.0 GiB, 30.0 GiB required"}),
    "asked by index": ({}, {"gpus": ("3", "0")}, (3, 0), {2: "not among the requested GPUs"}),
    "asked by UUID prefix": ({}, {"gpus": ("GPU-00000004", "00000002")}, (4, 2), {0: "not among"}),
    "asked though busy": ({2: BUSY_PROCESS}, {"gpus": ("2",)}, (2,), {}),
    "the best two": ({}, {"count": 2}, (2, 4), {0: "not among the best-connected 2 of 3"}),
    "one": ({}, {"count": 1}, (0,), {2: "not among the best-connected 1 of 3"}),
    "mixed": ({}, {"policy": "mixed"}, (0, 1, 2, 3, 4), {}),
    "mixed two": ({}, {"policy": "mixed", "exclude": ("1",), "count": 2}, (2, 4), {3: "best-connected 2 of 4"}),
    # A T400 has an eighteenth of an A5000's speed, however near it is; the A100 waits for the A5000 anyway.
    "mixed, the fastest two": (
        {},
        {"policy": "mixed", "exclude": ("2", "4"), "count": 2},
        (0, 3),
        {1: "not among the fastest 2 of 3"},
    ),
    "mixed, the fastest one": ({}, {"policy": "mixed", "count": 1}, (3,), {0: "not among the fastest 1 of 5"}),
    "the fastest two of those asked for": (
        {},
        {"gpus": ("1", "0", "3"), "count": 2},
        (0, 3),
        {1: "the fastest 2 of 3"},
    ),
    "visible indices": (
        {},
        {"visible": "3,4,0"},
        (4, 0),
        {2: "outside CUDA_VISIBLE_DEVICES=3,4,0", 3: "another group"},
    ),
    "visible UUIDs": ({}, {"visible": f"{UUID[4]},{UUID[2]}"}, (4, 2), {0: "outside"}),
    "visible prefixes": ({}, {"visible": "GPU-00000003"}, (3,), {0: "outside"}),
    "visible stops at the unknown": ({}, {"visible": "0,9,2"}, (0,), {2: "outside"}),
    "visible stops at -1": ({}, {"visible": "2,-1,0"}, (2,), {0: "outside"}),
    "visible like strtoul": ({}, {"visible": "2nd,0"}, (2, 0), {}),
    "lone GPU without memory figures": ({i: {"memory_mib": None} for i in range(5)}, {}, (0, 2, 4), {}),
    "different memory is another group": (
        {2: {"memory_mib": 20480}},
        {},
        (0, 4),
        {2: "in another group (NVIDIA RTX A5000 20 GiB x 1) than the chosen one (NVIDIA RTX A5000 24 GiB x 2)"},
    ),
    "ECC takes a sixteenth of the memory": ({2: {"memory_mib": 23028}}, {}, (0, 2, 4), {}),
    "different compute capability is another group": ({2: {"cc": [8, 9]}}, {}, (0, 4), {2: "another group"}),
    "MIG mode is another group": ({3: {"mig_mode": True}}, {}, (0, 2, 4), {3: "MIG is on and it has no usable slice"}),
}


@pytest.mark.parametrize("what", CHOICES)
def test_choices(what):
    changes, request, chosen, reasons = CHOICES[what]
    topology = workstation(gpus=changes)
    selection = select(topology, SelectionRequest(**request))
    assert selection.indices == chosen
    assert selection.uuids == tuple(topology.gpu(index).uuid for index in chosen)
    found = {excluded.index: excluded.reason for excluded in selection.excluded}
    assert set(found) == set(range(5)) - set(chosen), "each GPU that is not chosen has its reason"
    for index, part in reasons.items():
        assert part in found[index]


ERRORS = {
    # request: part of the message
    (("gpus", ("9",)),): "unknown GPU '9': this machine has 0 to 4",
    (("gpus", ("GPU-0000000",)),): "unknown GPU 'GPU-0000000'",  # not unique
    (("gpus", ("0", "GPU-00000000")),): "GPU 0 is named twice",
    (("gpus", ("0",)), ("exclude", ("0",))): "GPU 0 cannot be used: excluded by request",
    (("gpus", ("0",)), ("visible", "1,2")): "GPU 0 cannot be used: outside CUDA_VISIBLE_DEVICES=1,2",
    (("exclude", ("7",)),): "unknown GPU '7'",
    (("count", 4),): "3 can be used in the largest group (NVIDIA RTX A5000 x 3); --policy mixed adds",
    (("count", 6), ("policy", "mixed")): "6 GPUs were requested, 5 can be used",
    (("count", 0),): "count is 0",
    (("policy", "biggest"),): "unknown policy 'biggest': choose one of largest, fastest, mixed",
}


@pytest.mark.parametrize("request_items", ERRORS)
def test_requests_that_cannot_be_met(request_items):
    with pytest.raises(SelectionError) as caught:
        select(workstation(), SelectionRequest(**dict(request_items)))
    assert ERRORS[request_items] in str(caught.value)
    assert "\n" not in str(caught.value)


EMPTY = {
    # CUDA_VISIBLE_DEVICES: the reason
    "": "CUDA_VISIBLE_DEVICES is empty, which hides every GPU",
    "-1": "CUDA_VISIBLE_DEVICES=-1 hides every GPU",
    "9": "CUDA_VISIBLE_DEVICES names 9, which is no GPU here: CUDA stops there",
    "GPU-f,0": "CUDA_VISIBLE_DEVICES names GPU-f, which is no GPU here: CUDA stops there and hides what follows (0)",
    "0,0": "CUDA_VISIBLE_DEVICES names 0 twice: CUDA then shows no GPU at all",
    "NoDevFiles": "CUDA_VISIBLE_DEVICES names NoDevFiles, which is no GPU here: CUDA stops there",
}


@pytest.mark.parametrize("visible", EMPTY)
def test_a_mask_that_hides_all_gives_an_empty_selection_with_its_reason(visible):
    selection = select(workstation(), SelectionRequest(visible=visible))
    assert (selection.indices, selection.uuids, selection.reason) == ((), (), EMPTY[visible])
    assert len(selection.excluded) == 5


def test_without_gpus_the_reason_is_the_drivers():
    topology = Topology(warnings=("no NVIDIA driver on this machine", "to use a GPU: install it"))
    assert select(topology, SelectionRequest(count=2)).reason == "no NVIDIA driver on this machine"
    with pytest.raises(SelectionError, match=r"unknown GPU '0': this machine has none \(no NVIDIA driver"):
        select(topology, SelectionRequest(gpus=("0",)))


def test_when_all_are_busy_each_is_named():
    selection = select(workstation(gpus=dict.fromkeys(range(5), BUSY_PROCESS)), SelectionRequest())
    assert selection.indices == ()
    assert all(f"GPU {index} busy: in use by process 77" in selection.reason for index in range(5))


def warnings(topology: Topology, **request: Any) -> str:
    return "\n".join(select(topology, SelectionRequest(**request)).warnings)


def test_an_integer_mask_on_unlike_gpus_is_questioned_unless_the_order_is_set():
    assert "fastest GPU first" in warnings(workstation(), visible="0,2")
    assert warnings(workstation(), visible="0,2", device_order="PCI_BUS_ID") == ""
    assert warnings(workstation(), visible=f"{UUID[0]},{UUID[2]}") == ""
    assert warnings(to_topology("rtx3090_2x_nvlink"), visible="0,1") == ""


def test_fastest_takes_the_group_with_the_higher_estimate_and_largest_says_so():
    topology = to_topology(REAL / "h100_and_4xt4.json")
    assert select(topology, SelectionRequest()).indices == (0, 1, 3, 4)
    assert warnings(topology) == (
        "the smaller group NVIDIA H100 PCIe x 1 has a higher estimated peak throughput: --policy fastest selects it"
    )
    fastest = select(topology, SelectionRequest(policy="fastest"))
    assert (fastest.indices, fastest.policy) == ((2,), "fastest")
    assert fastest.reason == "the fastest group of identical GPUs: NVIDIA H100 PCIe x 1"
    assert warnings(workstation()) == "", "three A5000 outdo one A100"
    assert select(workstation(), SelectionRequest(policy="fastest")).indices == (0, 2, 4)


def test_fastest_for_a_number_of_gpus_compares_that_many():
    assert select(workstation(), SelectionRequest(policy="fastest", count=1)).indices == (3,)
    assert select(workstation(), SelectionRequest(policy="fastest", count=2)).indices == (2, 4)
    t4s = to_topology(REAL / "h100_and_4xt4.json")
    assert len(select(t4s, SelectionRequest(policy="fastest", count=3)).indices) == 3, "one H100 is not three GPUs"


def test_display_cards_do_not_win_by_their_number():
    machine = json.loads((REAL / "a100_and_2xt400.json").read_text())
    chosen = select(to_topology(machine), SelectionRequest())
    assert chosen.indices == (1,)
    assert chosen.reason == ("the largest group of identical GPUs other than display cards: NVIDIA A100-PCIE-40GB x 1")
    assert [excluded.reason for excluded in chosen.excluded] == [
        "a display card, in another group (NVIDIA T400 x 2) than the chosen one (NVIDIA A100-PCIE-40GB x 1)"
    ] * 2
    with pytest.raises(SelectionError, match="2 GPUs were requested, 1 can be used"):
        select(to_topology(machine), SelectionRequest(count=2))
    assert select(to_topology(machine), SelectionRequest(policy="mixed")).indices == (0, 1, 2)
    machine["gpus"][1]["processes"] = BUSY_PROCESS["processes"]
    assert select(to_topology(machine), SelectionRequest()).indices == (0, 2), "they are all that is left"


def test_small_cards_are_no_display_cards_beside_their_equals():
    names = ("NVIDIA GeForce GTX 1080", "NVIDIA GeForce GTX 1080", "NVIDIA GeForce RTX 3060 Ti")
    gpus = [{"name": name, "memory_mib": 8192, "cc": [6, 1]} for name in names]
    assert select(to_topology({"gpus": gpus}), SelectionRequest()).indices == (0, 1)


def test_unlike_gpus_are_warned_about():
    assert "all run at the speed of the slowest (NVIDIA T400 4GB)" in warnings(workstation(), policy="mixed")
    assert "GPU 2 was requested by name although it is busy" in warnings(
        workstation(gpus={2: BUSY_PROCESS}), gpus=("2",)
    )


def test_the_reason_names_what_decided():
    assert select(workstation(), SelectionRequest()).reason == (
        "the largest group of identical GPUs: NVIDIA RTX A5000 x 3 (slowest link of its best ring: SYS)"
    )
    tied = select(to_topology(REAL / "synthetic_mixed_3090_a6000.json"), SelectionRequest())
    assert "of groups of this size, the one with the most memory): NVIDIA RTX A6000 x 2" in tied.reason
    pair = select(to_topology(REAL / "a30_4x_two_bridges.json"), SelectionRequest(count=2))
    assert pair.reason.startswith("the best-connected 2 of the only group of identical GPUs: NVIDIA A30 x 4")
    assert pair.reason.endswith("(slowest link of its best ring: NV4)")
    assert select(workstation(), SelectionRequest(gpus=("3",))).reason == "the GPUs requested by name"


def test_equal_groups_go_to_the_better_linked():
    # Two pairs alike but for their name; the later one is bridged.
    names = ["A", "A", "B", "B"]
    matrix = [["X", "PHB", "SYS", "SYS"], ["PHB", "X", "SYS", "SYS"], ["SYS", "SYS", "X", "NV4"]]
    machine = {
        "gpus": [{"name": name, "memory_mib": 24576, "cc": [8, 6]} for name in names],
        "matrix": [*matrix, ["SYS", "SYS", "NV4", "X"]],
    }
    chosen = select(to_topology(machine), SelectionRequest())
    assert chosen.indices == (2, 3)
    assert "of groups of this size, the better connected one" in chosen.reason
