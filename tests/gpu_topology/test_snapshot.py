"""A topology through JSON and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpu_topology import snapshot
from gpu_topology.topology import Gpu, GpuProcess, Link, LinkLevel, PeerAccess, Topology, TopologyError
from tests.fake_nvml.machine import to_topology

MACHINES = ["a100_a5000_t400", "h100_8x_nvswitch", "rtx3090_2x_nvlink", "no_devices"]
MIG = {"uuid": "MIG-1", "profile": "7g.80gb", "memory_mib": 80000, "instance": 0}


@pytest.mark.parametrize(
    "topology",
    [
        *map(to_topology, MACHINES),
        Topology(warnings=("no driver", "to use a GPU: install it")),
        Topology((Gpu(0, error="GPU is lost"),)),
        Topology(
            gpus=(
                Gpu(0, cpu_affinity="0-19,40-59", pcie_generation_now=1, pcie_width_now=8, ecc=True, ecc_uncorrected=2),
                Gpu(1, throttle=("thermal", "power-cap"), memory_faults=(), graphics_processes=(GpuProcess(9),)),
            ),
            links=(Link(0, 1, LinkLevel.PHB, 0, "ok", peer=PeerAccess(("ok", None), ("ok", "not-supported"))),),
        ),
        to_topology(
            {"gpus": [{"name": "A", "mig_mode": True, "mig": [MIG], "processes": [{"pid": 1, "used_mib": 2}]}]}
        ),
        to_topology({"gpus": [{"processes": None}], "p2p": "unknown"}),
    ],
)
def test_round_trip_is_lossless(topology, tmp_path):
    path = tmp_path / "machine.json"
    snapshot.save(topology, path)
    assert snapshot.load(path) == topology
    assert json.loads(path.read_text())["schema"] == "gpu-topology/1"


def test_keys_of_a_later_minor_version_are_ignored():
    data = snapshot.to_dict(to_topology("rtx3090_2x_nvlink"))
    data["gpus"][0]["flux_capacitor"] = 1.21
    data["weather"] = "fine"
    assert snapshot.from_dict(data) == to_topology("rtx3090_2x_nvlink")


BAD = {
    "{": "is not JSON",
    "[]": 'expected a JSON object with "schema"',
    "{}": "schema is None, this version reads 'gpu-topology/1'",
    '{"schema": "gpu-topology/2"}': "schema is 'gpu-topology/2'",
    '{"schema": "gpu-topology/1", "gpus": 3}': "not a valid gpu-topology/1 topology",
    '{"schema": "gpu-topology/1", "gpus": [{}]}': "not a valid",
    '{"schema": "gpu-topology/1", "gpus": ["A100"]}': "not a valid",
    '{"schema": "gpu-topology/1", "gpus": [{"index": "0"}]}': "index is '0', not int",
    '{"schema": "gpu-topology/1", "gpus": [{"index": 0, "memory_total": "24G"}]}': "memory_total is '24G', not int",
    '{"schema": "gpu-topology/1", "gpus": [{"index": true}]}': "index is True, not int",
    '{"schema": "gpu-topology/1", "gpus": [{"index": 0, "name": 4090}]}': "name is 4090, not str",
    '{"schema": "gpu-topology/1", "gpus": [{"index": 0, "compute_capability": 8.6}]}': "is 8.6, not a list of 2",
    '{"schema": "gpu-topology/1", "gpus": [{"index": 0, "processes": [4]}]}': "not a valid",
    '{"schema": "gpu-topology/1", "gpus": [{"index": 0}, {"index": 0}]}': "GPU 0 occurs twice",
    '{"schema": "gpu-topology/1", "links": [{"a": 0, "b": 1, "level": "NEAR"}]}': "'NEAR' is not a valid LinkLevel",
    '{"schema": "gpu-topology/1", "links": [{"a": 0, "b": null}]}': "b is None, not int",
    '{"schema": "gpu-topology/1", "warnings": "all"}': "warnings is 'all'",
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_file_is_one_line_that_names_it(text, tmp_path):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(TopologyError) as caught:
        snapshot.load(path)
    message = str(caught.value)
    assert BAD[text] in message
    assert str(path) in message
    assert "\n" not in message


def test_a_file_that_cannot_be_read_or_written_is_named(tmp_path):
    with pytest.raises(TopologyError, match=r"cannot read .*missing.json: No such file"):
        snapshot.load(tmp_path / "missing.json")
    with pytest.raises(TopologyError, match=r"cannot read .*: Is a directory"):
        snapshot.load(tmp_path)
    with pytest.raises(TopologyError, match=r"cannot write .*: No such file"):
        snapshot.save(Topology(), tmp_path / "no" / "such" / "folder.json")
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TopologyError, match=r"binary.json is not JSON"):
        snapshot.load(Path(binary))
