"""Live readings through the real nvidia-ml-py, and without any driver."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from gpu_topology.monitor import read_gpus
from tests.fake_nvml.machine import load_machine

ROOT = Path(__file__).parents[3]

_READ = """
import dataclasses, json, sys
from gpu_topology.monitor import read_gpus
first = read_gpus(sys.argv[1:])
assert read_gpus(sys.argv[1:]) == first
print(json.dumps([dataclasses.asdict(reading) for reading in first]))
"""


def read(env: dict[str, str], *names: str) -> list[dict[str, object]]:
    """read_gpus(names), twice, in a process of its own."""
    command = [sys.executable, "-c", _READ, *names]
    done = subprocess.run(command, env={**os.environ, **env}, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_readings_by_uuid_and_by_index(fake_driver):
    uuids = [gpu["uuid"] for gpu in load_machine("a100_a5000_t400")["gpus"]]
    env = fake_driver("a100_a5000_t400")
    assert read(env, uuids[3], uuids[1], "0", "GPU-of-nobody", "17") == [
        {
            "uuid": uuids[3],
            "utilization": 0,
            "memory_used": 2**20,
            "memory_total": 40960 * 2**20,
            "power_watts": 36.5,
            "temperature_c": 31,
        },
        {
            "uuid": uuids[1],
            "utilization": 3,
            "memory_used": 310 * 2**20,
            "memory_total": 4096 * 2**20,
            "power_watts": None,
            "temperature_c": None,
        },
        {
            "uuid": "0",
            "utilization": 0,
            "memory_used": 2**20,
            "memory_total": 24564 * 2**20,
            "power_watts": None,
            "temperature_c": None,
        },
    ]


def test_the_older_temperature_call_stands_in(fake_driver):
    fault = {"call": "nvmlDeviceGetTemperatureV", "error": "FUNCTION_NOT_FOUND"}
    assert read(fake_driver({**load_machine("a100_a5000_t400"), "faults": [fault]}), "3")[0]["temperature_c"] == 31


def test_a_lost_gpu_has_no_reading_and_the_others_do(fake_driver):
    fault = {"call": "*", "gpu": 0, "error": "GPU_IS_LOST"}
    readings = read(fake_driver({**load_machine("rtx3090_2x_nvlink"), "faults": [fault]}), "0", "1")
    assert [reading["uuid"] for reading in readings] == ["1"]


def test_without_a_driver_there_are_no_readings(fake_driver):
    fault = {"call": "nvmlInitWithFlags", "error": "DRIVER_NOT_LOADED"}
    assert read(fake_driver({"gpus": [], "faults": [fault]}), "0") == []


def test_nothing_asked_nothing_read():
    assert read_gpus([]) == []


def monitor(env: dict[str, str], *arguments: str, seconds: float = 0.5) -> subprocess.CompletedProcess[str]:
    """`python -m gpu_topology monitor ARGUMENTS` with ten samples a second."""
    command = [sys.executable, "-m", "gpu_topology", "monitor", "--interval", "0.1", "--seconds", str(seconds)]
    clean = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "FORCE_COLOR", "NO_COLOR")}
    return subprocess.run(
        [*command, *arguments], env={**clean, **env}, cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def summary(env: dict[str, str], *arguments: str) -> dict[str, Any]:
    """What `--json` prints."""
    done = monitor(env, "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def busy(**facts: Any) -> dict[str, Any]:
    """Two GPUs with an NVLink bridge, of which the first has these facts."""
    machine = load_machine("rtx3090_2x_nvlink")
    machine["gpus"][0] |= facts
    return machine


def test_samples_are_whole_lines_of_json(fake_driver, tmp_path):
    out = tmp_path / "samples.jsonl"
    out.write_text('{"torn":')
    env = fake_driver(busy(processes=[{"pid": os.getpid(), "used_mib": 100}], throttle=["power-cap"], power_watts=250))
    assert monitor(env, "--out", str(out)).returncode == 0
    torn, *lines = out.read_text().splitlines()
    assert torn == '{"torn":'
    samples = [json.loads(line) for line in lines]
    assert 5 <= len(samples) <= 7
    assert set(samples[0]) == {"time", "seconds", "gpus"}
    assert all(datetime.fromisoformat(sample["time"]).tzinfo for sample in samples)
    assert [sample["seconds"] for sample in samples] == sorted(sample["seconds"] for sample in samples)
    assert samples[0]["gpus"][0] == {
        "index": 0,
        "uuid": load_machine("rtx3090_2x_nvlink")["gpus"][0]["uuid"],
        "name": "NVIDIA GeForce RTX 3090",
        "utilization": 0,
        "memory_used": 2**20,
        "memory_total": 24576 * 2**20,
        "power_watts": 250.0,
        "temperature_c": None,
        "throttle": ["power-cap"],
        **dict.fromkeys(("pcie_sent", "pcie_received", "nvlink_sent", "nvlink_received")),
        "processes": [
            {"pid": os.getpid(), "name": Path("/proc/self/comm").read_text().strip(), "used_memory": 100 * 2**20}
        ],
    }
    before = out.read_text()
    assert monitor(env, "--out", str(out), "--gpus", "1", seconds=0.1).returncode == 0
    added = out.read_text().removeprefix(before).splitlines()
    assert [gpu["index"] for gpu in json.loads(added[0])["gpus"]] == [1]


def test_samples_on_stdout_leave_the_talk_to_stderr(fake_driver):
    done = monitor(fake_driver("rtx3090_2x_nvlink"), "--out", "-")
    assert all(json.loads(line)["gpus"] for line in done.stdout.splitlines())
    assert "no GPU did any work" in " ".join(done.stderr.split())


RATES = {
    # facts of the GPU: (PCIe, NVLink) in bytes per second
    "counters of 64 bits": ({"pcie_rate": [9e8, 3e8], "pcie_start": 2**40}, ([9e8, 3e8], [None, None])),
    # at 6 GB/s a counter of 32 bits goes round in 0.7 s
    "counters of 32 bits": ({"pcie_rate": [6e9, 5e9]}, ([6e9, 5e9], [None, None])),
    "no counters": ({"pcie_kb_s": [700, 90]}, ([7e5, 9e4], [None, None])),
    "NVLinks together": ({"nvlink_rate": [4e7, 3e7]}, ([None, None], [4e7 * 1024, 3e7 * 1024])),
    "NVLinks one by one": ({"nvlink_rate": [4e7, 3e7], "nvlink_each": True}, ([None, None], [4e7 * 1024, 3e7 * 1024])),
}


@pytest.mark.parametrize("name", RATES)
def test_throughput_comes_from_what_the_driver_has(fake_driver, name):
    facts, (pcie, nvlink) = RATES[name]
    facts = {key: [int(rate) for rate in value] if isinstance(value, list) else value for key, value in facts.items()}
    gpu, other = summary(fake_driver(busy(**facts)))["gpus"]
    assert [gpu["pcie_sent_mean"], gpu["pcie_received_mean"]] == [near(rate) for rate in pcie]
    assert [gpu["nvlink_sent_mean"], gpu["nvlink_received_mean"]] == [near(rate) for rate in nvlink]
    assert (other["pcie_sent_mean"], other["nvlink_sent_mean"]) == (None, None)


def near(rate: float | None) -> Any:
    return None if rate is None else pytest.approx(rate, rel=0.15)


def test_the_summary_has_means_peaks_and_a_verdict(fake_driver):
    env = fake_driver(busy(utilization=[90, 20, 100, 10, 80], memory_used_mib=24000, temperature_c=71, power_watts=300))
    found = summary(env)
    assert found["schema"] == "gpu-monitor/1"
    assert found["seconds"] == pytest.approx(0.5, abs=0.2)
    gpu = found["gpus"][0]
    values = [90, 20, 100, 10] + [80] * (found["samples"] - 4)
    assert gpu["utilization_mean"] == pytest.approx(sum(values) / len(values), abs=0.1)
    assert gpu["utilization_peak"] == 100
    assert gpu["below_50_share"] == pytest.approx(2 / len(values), abs=0.001)
    assert gpu["seconds_below_50"] == pytest.approx(2 / len(values) * found["seconds"], abs=0.01)
    assert (gpu["memory_mean"], gpu["memory_peak"]) == (24000 * 2**20, 24000 * 2**20)
    assert (gpu["power_mean"], gpu["temperature_peak"], gpu["lost_after"]) == (300.0, 71, None)
    chief, *rest = found["verdict"]
    assert re.match(r"the GPUs in use waited \d\d% of the time \(below 50% utilisation; mean \d\d%\)", chief)
    assert rest == [
        "GPU 1 stayed idle (never 10% utilisation)",
        "GPU 0: memory peaked at 98%, close to running out",
    ]


def test_a_gpu_lost_on_the_way_says_so_and_the_others_go_on(fake_driver, tmp_path):
    fault = {"call": "nvmlDeviceGetUtilizationRates", "gpu": 0, "error": "GPU_IS_LOST", "after": 2}
    out = tmp_path / "samples.jsonl"
    env = fake_driver({**busy(utilization=[90]), "faults": [fault]})
    found = summary(env, "--out", str(out))
    assert found["gpus"][0]["lost_after"] == pytest.approx(0.2, abs=0.15)
    assert found["gpus"][0]["utilization_mean"] == 90
    assert found["gpus"][1]["lost_after"] is None
    assert any(re.match(r"GPU 0 was lost after \d s", sentence) for sentence in found["verdict"])
    last = json.loads(out.read_text().splitlines()[-1])["gpus"]
    assert last[0]["error"].startswith("GPU is lost")
    assert last[0]["memory_used"] is None
    assert last[1]["memory_used"] == 2**20


MISTAKES = {
    ("--interval", "0"): "argument --interval: '0' is not a number of seconds above 0",
    ("--interval", "-1"): "argument --interval: '-1' is not a number of seconds above 0",
    ("--interval", "nan"): "argument --interval: 'nan' is not a number of seconds above 0",
    ("--interval", "often"): "argument --interval: 'often' is not a number of seconds above 0",
    ("--interval", "1e10"): "argument --interval: '1e10' is not a number of seconds up to 86400 (a day)",
    ("--seconds", "inf"): "argument --seconds: 'inf' is not a number of seconds of at least 0",
    ("--seconds", "-0.1"): "argument --seconds: '-0.1' is not a number of seconds of at least 0",
    ("--gpus", "2"): "unknown GPU '2': this machine has 0 to 1",
    ("--out", "/no/such/folder/samples.jsonl"): "cannot write /no/such/folder/samples.jsonl: No such file or directory",
    ("--out", "/dev/full"): "cannot write /dev/full: No space left on device",
    ("--json", "--out", "-"): "--json and --out - both want stdout",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_mistakes_are_one_line(fake_driver, arguments):
    done = monitor(fake_driver("rtx3090_2x_nvlink"), *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: [^\n]+\n", done.stderr), done.stderr
    assert MISTAKES[arguments] in done.stderr


def test_without_a_driver_there_is_nothing_to_monitor(fake_driver):
    fault = {"call": "nvmlInitWithFlags", "error": "DRIVER_NOT_LOADED"}
    for machine in ({"gpus": [], "faults": [fault]}, "no_devices"):
        done = monitor(fake_driver(machine))
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(r"error: [^\n]+\n", done.stderr), done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_the_summary(fake_driver, tmp_path, number):
    out = tmp_path / "samples.jsonl"
    os.mkfifo(out)
    command = [sys.executable, "-m", "gpu_topology", "monitor", "--json", "--interval", "30", "--out", str(out)]
    process = subprocess.Popen(
        command, env={**os.environ, **fake_driver("rtx3090_2x_nvlink")}, cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with process, out.open() as lines:
        assert json.loads(lines.readline())["gpus"]  # the first sample is there, the next is far off
        process.send_signal(number)
        stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(stdout)["samples"] == 1


def test_the_terminal_is_left_as_it_was(fake_driver):
    """The cursor comes back at the end and after an error, and NO_COLOR is honoured."""
    env = {**os.environ, **fake_driver(busy(utilization=90)), "TERM": "xterm-256color", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "gpu_topology", "monitor", "--seconds", "0.3", "--interval", "0.1"]
    for extra, status in (((), 0), (("--out", "/dev/full"), 2)):
        ours, theirs = pty.openpty()
        process = subprocess.Popen([*command, *extra], env=env, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        drawn = b""
        with contextlib.suppress(OSError):  # Linux's way to say that the other side has closed
            while data := os.read(ours, 1 << 16):
                drawn += data
        os.close(ours)
        assert process.wait(timeout=60) == status
        assert drawn.count(b"\x1b[?25l") == drawn.count(b"\x1b[?25h") == 1
        assert not re.search(rb"\x1b\[[0-9;]*3[0-7]m", drawn)
        assert (b"kept busy" in drawn) is (status == 0)


def test_the_trainers_readings_need_nothing_of_the_monitor():
    script = "import sys, gpu_topology.monitor; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert not {"rich", "json", "gpu_topology.select.select", "gpu_topology.monitor.loop"} & set(done.stdout.split())
