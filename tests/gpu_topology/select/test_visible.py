"""CUDA_VISIBLE_DEVICES as CUDA itself reads it, with a warning where that is not what was meant."""

from __future__ import annotations

import pytest

from gpu_topology.select.select import SelectionRequest, select
from gpu_topology.select.visible import find_name, parse_visible
from gpu_topology.topology import Gpu, MigDevice, Topology

GPUS = [Gpu(index, f"GPU-{index}a5e{index}", "NVIDIA A30", f"0000:{index}1:00.0") for index in range(3)]

# What is written: (the GPUs that CUDA shows, what is said of it)
READ = {
    "0,1": ([0, 1], None),
    " 0 , 1 ": ([0, 1], None),
    "+1,02": ([1, 2], None),
    "0 1": ([0], "CUDA reads '0 1' in CUDA_VISIBLE_DEVICES as 0"),
    "1;2": ([1], "CUDA reads '1;2' in CUDA_VISIBLE_DEVICES as 1"),
    "0x1": ([0], "CUDA reads '0x1' in CUDA_VISIBLE_DEVICES as 0"),
    "1.5,0": ([1, 0], "as 1: name GPUs by index or UUID, with commas between them"),
    "0000:21:00.0": ([0], "CUDA reads '0000:21:00.0' in CUDA_VISIBLE_DEVICES as 0: "),
    "2 1,0;1": ([2, 0], "as 2: name GPUs by index or UUID, with commas between them; CUDA reads '0;1'"),
    "0 1,7": ([0], "as 0: name GPUs by index or UUID, with commas between them; CUDA_VISIBLE_DEVICES names 7"),
    "\uff11": ([], "names \uff11, which is no GPU here"),  # a full-width digit
    "\u0661,0": ([], "names \u0661, which is no GPU here: CUDA stops there and hides what follows (0)"),
    "\u00b2": ([], "which is no GPU here"),
    "\u00a01": ([], "which is no GPU here"),  # a space that C does not skip
    "9" * 5000: ([], "which is no GPU here"),
    "1gpu,GPU-0a": ([1], "as 1"),
    "GPU-0a,1": ([0], "names 1, which is no GPU here"),
}


@pytest.mark.parametrize("value", READ)
def test_what_cuda_makes_of_it(value):
    indices, words = READ[value]
    visible = parse_visible(value, GPUS)
    assert [device.index for device in visible.named] == indices
    assert visible.problem is None if words is None else words in (visible.problem or "")
    chosen = select(Topology(tuple(GPUS)), SelectionRequest(visible=value, allow_busy=True, gpus=()))
    assert words is None or words in "\n".join([*chosen.warnings, chosen.reason])


SLICES = tuple(MigDevice(f"MIG-{n}", "3g.20gb", 2**34, gpu_instance=n, compute_instance=0) for n in (1, 2))
CUT = [GPUS[0], Gpu(1, "GPU-fa4e-01", "NVIDIA A100", mig_mode=True, mig_devices=SLICES)]
OLD = [
    Gpu(
        0, "GPU-fa4e-01", "A100", mig_mode=True,
        mig_devices=tuple(MigDevice(f"MIG-GPU-fa4e-01/{n}/0", gpu_instance=n, compute_instance=0) for n in (1, 11)),
    )
]  # fmt: skip


@pytest.mark.parametrize(("gpus", "name", "uuid"), [
    (CUT, "MIG-GPU-fa4e-01/2/0", "MIG-2"),
    (CUT, "mig-gpu-FA4E-01/1/0", "MIG-1"),
    (CUT, "MIG-GPU-fa4e-01/3/0", None),
    (CUT, "MIG-GPU-fa4e-01/1/1", None),
    (CUT, "MIG-GPU-0a5e0/1/0", None),
    (CUT, "MIG-GPU-fa4e-01/1", None),
    (CUT, "MIG-GPU-fa4e-01/\u0661/0", None),
    (OLD, "MIG-GPU-fa4e-01/1/0", "MIG-GPU-fa4e-01/1/0"),
    (OLD, "MIG-GPU-fa4e-01/11/0", "MIG-GPU-fa4e-01/11/0"),
])  # fmt: skip
def test_a_slice_by_its_gpu_and_instances(gpus, name, uuid):
    found = find_name(name, gpus)
    assert (found and found.uuid) == uuid
    assert [device.uuid for device in parse_visible(name, gpus).named] == ([uuid] if uuid else [])


@pytest.mark.parametrize("name", ["\uff11", "\u00b2", "1" * 5000, "0x1", "1.0", "-1", "", "GPU-"])
def test_what_names_no_gpu(name):
    assert find_name(name, GPUS) is None


def test_a_slice_in_cudas_order_is_found_by_the_bytes_of_its_uuid():
    """libcuda reports 16 bytes for a GPU and for a slice alike, which libcuda.py writes as "GPU-..."."""
    order = ("GPU-1", "GPU-0a5e0")
    assert [device.uuid for device in parse_visible("1,0", CUT, order).named] == ["GPU-0a5e0", "MIG-1"]


@pytest.mark.parametrize(("cores", "warned"), [((8960, 8704), True), ((8704, 8704), False), ((None, None), False)])
def test_cards_of_one_name_with_different_cores_are_not_counted_in_pci_order(cores, warned):
    """An RTX 3080 has 8704 cores with 10 GB and 8960 with 12 GB (NVIDIA's GeForce specifications)."""
    gpus = tuple(Gpu(index, f"GPU-{index}", "NVIDIA GeForce RTX 3080", cores=one) for index, one in enumerate(cores))
    chosen = select(Topology(gpus), SelectionRequest(visible="0"))
    assert any("CUDA itself counts the fastest GPU first" in warning for warning in chosen.warnings) == warned
