"""Distances of network adapters from GPUs, over a made-up sysfs."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddp_launch.doctor import gpus
from gpu_topology.host.nics import nic_distances
from gpu_topology.topology import Gpu, Topology

NIC = "pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:00.0/0000:03:00.0"  # root port, switch up, switch down, device
PLACES = {
    # GPU: (its folder, its node)
    "PIX": ("pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:01.0/0000:04:00.0", 0),
    "PXB": ("pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:02.0/0000:05:00.0/0000:06:00.0/0000:07:00.0", 0),
    "PHB": ("pci0000:00/0000:00:02.0/0000:08:00.0", 0),
    "NODE": ("pci0000:40/0000:40:01.0/0000:41:00.0", 0),
    "SYS": ("pci0000:80/0000:80:01.0/0000:81:00.0", 1),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    def device(folder: str, node: int) -> Path:
        path = tmp_path / "sys/devices" / folder
        path.mkdir(parents=True, exist_ok=True)
        (path / "numa_node").write_text(f"{node}\n")
        return path

    for folder, node in PLACES.values():
        link = tmp_path / "sys/bus/pci/devices" / folder.rpartition("/")[2]
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(device(folder, node))
    adapter = tmp_path / "sys/class/infiniband/mlx5_0"
    adapter.mkdir(parents=True)
    (adapter / "device").symlink_to(device(NIC, 0))
    return tmp_path


def test_levels_are_those_of_nvidia_smi(root: Path) -> None:
    buses = [folder.rpartition("/")[2] for folder, _ in PLACES.values()]
    assert nic_distances(buses, root) == {"mlx5_0": tuple(PLACES)}
    assert nic_distances(["0000:99:00.0"], root) == {"mlx5_0": (None,)}
    assert nic_distances(buses, root / "nowhere") == {}


def test_the_doctor_names_gpus_without_an_adapter_on_their_node(root: Path) -> None:
    buses = [folder.rpartition("/")[2] for folder, _ in PLACES.values()]
    topology = Topology(tuple(Gpu(index, pci_bus_id=bus) for index, bus in enumerate(buses)))
    first, warning = gpus.adapters(topology, root)
    assert first.detail == "mlx5_0: GPU 0 PIX, GPU 1 PXB, GPU 2 PHB, GPU 3 NODE, GPU 4 SYS"
    assert (warning.status, warning.detail.startswith("GPU 4 reaches")) == ("warning", True)
    assert list(gpus.adapters(topology, root / "nowhere")) == []
