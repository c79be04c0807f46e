"""A machine from a file gives the report that it gives live, and a file that is none gives one line."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from tests.fake_nvml.machine import load_machine
from tests.gpu_topology.test_cli import fail, run, succeed
from tests.gpu_topology.test_faults import MACHINE, machine

ILL: dict[str, Any] = machine({"call": "*", "gpu": 0, "error": "GPU_IS_LOST", "after": 20})
ILL["gpus"][1] |= {"ecc_uncorrected": 3, "pcie_now": [1, 8], "throttle": ["hw-slowdown", "hw-thermal"]}

FABRIC = load_machine("h100_8x_nvswitch")
FABRIC["gpus"][5] |= {"fabric_status": 999}

MACHINES: dict[str, Any] = {
    "everything known, MIG": MACHINE,
    "ill and lost": ILL,
    "a failed fabric": FABRIC,
    "mixed": "a100_a5000_t400",
    "unknown peer access": {**load_machine("rtx3090_2x_nvlink"), "p2p": "unknown"},
    "no devices": "no_devices",
}


@pytest.mark.parametrize("name", MACHINES)
def test_a_saved_machine_and_a_saved_report_give_the_live_report(fake_driver, tmp_path, name):
    env = fake_driver(MACHINES[name])
    succeed("snapshot", "-o", str(tmp_path / "machine.json"), env=env)
    (tmp_path / "report.json").write_text(succeed("report", "--json", env=env))
    live = json.loads((tmp_path / "report.json").read_text())
    for file in ("machine.json", "report.json"):
        # Without the driver: nothing may come from it.
        replayed = json.loads(succeed("report", "--json", "--from", str(tmp_path / file)))
        for report in (live, replayed):
            report["host"].pop("memory_available", None), report["host"].pop("shm_free", None)  # these move
        assert replayed == live, file
    if name == "ill and lost":
        words = ("lost", "3 uncorrected", "8 of 16 lanes", "heat")
        assert [word for word in words if not any(word in line for line in live["warnings"])] == []


FILES = {
    '{"schema": "gpu-topology/9", "gpus": []}': "schema is 'gpu-topology/9', this version reads 'gpu-topology/1'",
    '{"schema": "gpu-topology/1", "gpus": [{"ind': "is not JSON",
    "[1]": "expected a JSON object",
}


@pytest.mark.parametrize("command", ["report", "select", "env", "snapshot"])
def test_a_file_that_is_no_machine_is_one_line(tmp_path, command):
    path = tmp_path / "machine.json"
    for text, message in FILES.items():
        path.write_text(text)
        line = fail(command, "--from", str(path))
        assert message in line
        assert str(path) in line
    assert "Is a directory" in fail(command, "--from", str(tmp_path))
    assert "No such file" in fail(command, "--from", str(tmp_path / "none.json"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read_is_one_line(tmp_path):
    path = tmp_path / "machine.json"
    path.write_text("{}")
    path.chmod(0)
    assert "Permission denied" in fail("report", "--from", str(path))


def test_a_snapshot_that_cannot_be_written_leaves_nothing(tmp_path):
    source = tmp_path / "machine.json"
    source.write_text('{"schema": "gpu-topology/1"}')
    assert "cannot write" in fail("snapshot", "--from", str(source), "-o", str(tmp_path / "none" / "machine.json"))
    assert "cannot write" in fail("snapshot", "--from", str(source), "-o", str(tmp_path))
    assert list(tmp_path.iterdir()) == [source]
    assert run("snapshot", "--from", str(source), "-o", str(source)).returncode == 0
    assert json.loads(source.read_text())["gpus"] == []
