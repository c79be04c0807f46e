"""Xids in the kernel's log."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gpu_topology.environment.notes import notes
from gpu_topology.host.host import Host
from gpu_topology.host.kernel_log import read_xids
from gpu_topology.select.select import SelectionRequest, select
from tests.fake_nvml.machine import to_topology

LOG = """6,1,10,-;usb 1-1: new device
4,2,20,-;NVRM: Xid (PCI:0000:45:00): 79, pid=1234, GPU has fallen off the bus.
4,3,30,-;NVRM: Xid (PCI:0000:45:00): 13, pid=99, Graphics Exception
4,4,40,-;NVRM: Xid (PCI:0000:41:00): 63, pid='<unknown>', name=<unknown>, Row Remapper
4,5,50,-;NVRM: Xid (PCI:0000:45:00): 79, pid=1234, GPU has fallen off the bus.
"""


def test_xids_that_no_program_causes_are_read_once(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kmsg").write_text(LOG)
    assert read_xids(tmp_path) == (), "no NVIDIA module"
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    assert read_xids(tmp_path) == (("0000:45:00", 79), ("0000:41:00", 63))
    (tmp_path / "dev/kmsg").unlink()
    assert read_xids(tmp_path) == ()


def test_the_plan_tells_those_of_its_gpus(host: Host) -> None:
    topology = to_topology("rtx3090_2x_nvlink")
    bus = (topology.gpus[1].pci_bus_id or "").rpartition(".")[0]
    seen = replace(host, xids=((bus, 63), (bus, 92), ("0000:ff:00", 79)))
    said = [line for line in notes(topology, select(topology, SelectionRequest()), seen) if "Xid" in line]
    assert len(said) == 1 and said[0].startswith("GPU 1 has had Xid 63, 92 since boot")
