"""Which devices another attempt gets after GPUs were lost, as a table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpu_topology.select.select import SelectionRequest, select
from gpu_topology.select.spares import replace_lost
from gpu_topology.topology import Topology
from tests.fake_nvml.machine import load_machine, to_topology


def eight(**changes: dict[str, Any]) -> Topology:
    """Eight H100; `gpuN={...}` changes one of them."""
    machine = load_machine("h100_8x_nvswitch")
    for name, change in changes.items():
        machine["gpus"][int(name.removeprefix("gpu"))] |= change
    return to_topology(machine)


def lost(topology: Topology, *indices: int) -> Topology:
    """The same machine once these GPUs have fallen off the bus: the driver answers nothing about them."""
    gpus = [type(gpu)(index=gpu.index, error="GPU is lost") if gpu.index in indices else gpu for gpu in topology.gpus]
    return replace(topology, gpus=tuple(gpus))


BEFORE = eight()
UUID = [gpu.uuid or "" for gpu in BEFORE.gpus]
BUSY = {"processes": [{"pid": 77, "used_mib": 2048}]}

CASES: dict[str, tuple[dict[str, Any], Topology, dict[int, str], list[int], dict[int, str]]] = {
    # what: (request, the machine now, suspects, devices of the next attempt, {left out: part of the reason})
    "nothing happened": ({"count": 2}, BEFORE, {}, [0, 1], {}),
    "a spare takes the place of the lost one": ({"count": 2}, lost(BEFORE, 0), {}, [2, 1], {0: "GPU is lost"}),
    "two spares": ({"count": 3}, lost(BEFORE, 0, 2), {}, [3, 1, 4], {0: "lost", 2: "lost"}),
    "a spare that others use is none": ({"count": 2}, lost(eight(gpu2=BUSY), 1), {}, [0, 3], {1: "GPU is lost"}),
    "an excluded spare is none": ({"count": 2, "exclude": ("2", "3")}, lost(BEFORE, 1), {}, [0, 4], {1: "lost"}),
    "within the mask alone": ({"count": 2, "visible": "5,6,7"}, lost(BEFORE, 5), {}, [7, 6], {5: "lost"}),
    "fewer where there is no spare": ({}, lost(BEFORE, 3), {}, [0, 1, 2, 4, 5, 6, 7], {3: "GPU is lost"}),
    "named GPUs have no spares": ({"gpus": ("4", "5")}, lost(BEFORE, 4), {}, [5], {4: "GPU is lost"}),
    "memory errors since": ({"count": 2}, eight(gpu1={"ecc_uncorrected": 3}), {}, [0, 2], {1: "3 uncorrectable"}),
    "a rank's word": ({"count": 2}, BEFORE, {1: "uncorrectable ECC error"}, [0, 2], {1: "uncorrectable ECC error"}),
    "a rank's word about all there is": ({"gpus": ("4",)}, BEFORE, {4: "unknown error"}, [4], {}),
    "nothing is left": ({"gpus": ("4",)}, lost(BEFORE, 4), {}, [], {4: "GPU is lost"}),
    "gone from the list": (
        {"count": 2},
        replace(BEFORE, gpus=tuple(replace(gpu, index=gpu.index - 1) for gpu in BEFORE.gpus[1:]), links=()),
        {},
        [2, 1],
        {0: "no longer lists it"},
    ),
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_devices_of_another_attempt(case: str) -> None:
    asked, now, suspects, expected, left_out = CASES[case]
    request = SelectionRequest(**asked)
    found = replace_lost(
        BEFORE, now, select(BEFORE, request), request, {UUID[index]: why for index, why in suspects.items()}
    )
    assert [UUID.index(uuid) for uuid in found.uuids] == expected
    assert set(found.spares) == set(found.uuids) - set(select(BEFORE, request).uuids)
    assert [UUID.index(uuid) for uuid in found.left_out] == list(left_out)
    for index, part in left_out.items():
        assert part in found.left_out[UUID[index]]


def test_a_spare_is_of_the_same_model() -> None:
    before = to_topology(load_machine("a100_a5000_t400"))
    request = SelectionRequest(count=2)
    chosen = select(before, request)
    assert chosen.indices == (0, 2) or chosen.indices == (0, 4) or chosen.indices == (2, 4)
    found = replace_lost(before, lost(before, chosen.indices[0]), chosen, request, {})
    names = [next(gpu.name for gpu in before.gpus if gpu.uuid == uuid) for uuid in found.uuids]
    assert names == ["NVIDIA RTX A5000"] * 2
    request = SelectionRequest(policy="mixed")
    chosen = select(before, request)
    found = replace_lost(before, lost(before, 3), chosen, request, {})
    assert found.uuids == tuple(uuid for uuid in chosen.uuids if uuid != before.gpus[3].uuid)
