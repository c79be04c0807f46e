"""An inherited integer mask in CUDA's own order, over stand-ins for both driver libraries."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpu_topology.driver.libcuda import cuda_order
from gpu_topology.select.select import SelectionRequest, select
from tests.fake_nvml.machine import load_machine, to_topology

ROOT = Path(__file__).parents[3]
# Three A5000 (PCI 0, 2, 4), a T400 (1), an A100 (3); CUDA counts the A100 first and the T400 last.
SPEEDS = (50, 1, 50, 90, 50)
IN_CUDA_ORDER = (3, 0, 2, 4, 1)


@pytest.fixture
def cuda(fake_cuda_library: Path) -> Callable[..., dict[str, str]]:
    """`cuda(NAME=value)` -> an environment in which libcuda finds the workstation."""

    def environment(**more: str) -> dict[str, str]:
        gpus = load_machine("a100_a5000_t400")["gpus"]
        rows = (f"{gpu['uuid']},{gpu['bus_id'][4:]},{speed}" for gpu, speed in zip(gpus, SPEEDS, strict=True))
        base = {name: value for name, value in os.environ.items() if not name.startswith("CUDA_")}
        return {**base, "LD_LIBRARY_PATH": str(fake_cuda_library), "FAKE_CUDA_GPUS": ";".join(rows), **more}

    return environment


def uuids(order: tuple[int, ...]) -> tuple[str, ...]:
    gpus = load_machine("a100_a5000_t400")["gpus"]
    return tuple(gpus[index]["uuid"] for index in order)


def test_libcuda_counts_the_fastest_first_unless_told_otherwise(cuda):
    assert cuda_order(cuda()) == uuids(IN_CUDA_ORDER)
    assert cuda_order(cuda(CUDA_VISIBLE_DEVICES="1")) == uuids(IN_CUDA_ORDER), "the order is that of every GPU"
    assert cuda_order(cuda(CUDA_DEVICE_ORDER="PCI_BUS_ID")) == uuids((0, 1, 2, 3, 4))


def test_without_uuids_the_bus_ids_are_told(cuda):
    gpus = load_machine("a100_a5000_t400")["gpus"]
    assert cuda_order(cuda(FAKE_CUDA_FAULT="uuid")) == tuple(gpus[i]["bus_id"][4:] for i in IN_CUDA_ORDER)


def test_what_cannot_be_asked_is_none(cuda, tmp_path):
    assert cuda_order(cuda(FAKE_CUDA_FAULT="init")) is None
    assert cuda_order(cuda(FAKE_CUDA_FAULT="hang"), time_limit_s=0.5) is None
    assert cuda_order(cuda(LD_LIBRARY_PATH=str(tmp_path))) is None
    (tmp_path / "libcuda.so.1").write_text("not a library")
    assert cuda_order(cuda(LD_LIBRARY_PATH=str(tmp_path))) is None


CASES: dict[str, tuple[str, tuple[int, ...]]] = {
    # a mask in CUDA's order: the GPUs chosen of it
    "the A100": ("0", (3,)),
    "two A5000 and the T400": ("4,1,3", (0, 4)),
    "in the order of the mask": ("3,2", (4, 2)),
    "stops at the unknown": ("2,9,1", (2,)),
}


@pytest.mark.parametrize("what", CASES)
@pytest.mark.parametrize("fault", ["", "uuid"])
def test_a_mask_means_the_gpus_that_cuda_means(what, fault, cuda):
    mask, chosen = CASES[what]
    order = cuda_order(cuda(FAKE_CUDA_FAULT=fault))
    selection = select(to_topology("a100_a5000_t400"), SelectionRequest(visible=mask, cuda_order=order))
    assert selection.indices == chosen
    assert not any("PCI order" in warning for warning in selection.warnings)
    if what == "the A100":
        assert selection.excluded[0].reason == (
            "outside CUDA_VISIBLE_DEVICES=0 (in CUDA's own order, which is GPU 3 here)"
        )


def test_bus_ids_agree_whatever_zeros_lead_the_domain():
    topology = to_topology("a100_a5000_t400")
    ids = [gpu.pci_bus_id or "" for gpu in topology.gpus]
    for order in (ids, [f"0000{one}" for one in ids], [one.upper() for one in ids]):
        request = SelectionRequest(visible="0", cuda_order=tuple(reversed(order)))
        assert select(topology, request).indices == (4,)


def run(command: list[str], environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], env=environ, cwd=ROOT, capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def both(
    cuda: Callable[..., dict[str, str]], fake_driver: Callable[[Any], dict[str, str]]
) -> Callable[..., dict[str, str]]:
    """An environment with both stand-ins."""

    def environment(**more: str) -> dict[str, str]:
        environ, driver = cuda(**more), fake_driver("a100_a5000_t400")
        return {**environ, **driver, "LD_LIBRARY_PATH": f"{environ['LD_LIBRARY_PATH']}:{driver['LD_LIBRARY_PATH']}"}

    return environment


def test_select_and_the_launcher_translate_an_inherited_mask(both):
    expected = ",".join(uuids((0, 2)))
    done = run(["-m", "gpu_topology", "select"], both(CUDA_VISIBLE_DEVICES="1,2"))
    assert (done.stdout.strip(), done.stderr) == (expected, "")
    plan = run(["launch.py", "--auto", "--dry-run", "--json"], both(CUDA_VISIBLE_DEVICES="1,2"))
    assert '"indices": [0, 2]' in " ".join(plan.stdout.split()).replace("[ 0, 2 ]", "[0, 2]"), plan.stderr
    in_pci_order = run(
        ["-m", "gpu_topology", "select"], both(CUDA_VISIBLE_DEVICES="0,2", CUDA_DEVICE_ORDER="PCI_BUS_ID")
    )
    assert in_pci_order.stdout.strip() == "0,2"


def test_without_libcuda_an_unlike_machine_is_warned_about(both):
    done = run(["-m", "gpu_topology", "select"], both(CUDA_VISIBLE_DEVICES="0,2", FAKE_CUDA_FAULT="init"))
    assert "here they are read in PCI order" in done.stderr
    assert done.stdout.strip() == ",".join(uuids((0, 2)))
