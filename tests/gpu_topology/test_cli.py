"""The commands as a user runs them: exit status, stdout, stderr, with and without the stand-in driver."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from gpu_topology import snapshot
from tests.fake_nvml.machine import load_machine, to_topology

ROOT = Path(__file__).parents[2]

REPORT_KEYS = {"schema", "driver_version", "gpus", "links", "groups", "selection", "environment", "warnings"}
GPU_KEYS = {
    *("index", "uuid", "name", "pci_bus_id", "memory_total", "memory_used", "compute_capability", "numa_node"),
    *("mig_mode", "utilization", "processes"),
}
UUID = [gpu.uuid or "" for gpu in to_topology("a100_a5000_t400").gpus]
NO_DRIVER: dict[str, Any] = {"gpus": [], "faults": [{"call": "nvmlInitWithFlags", "error": "DRIVER_NOT_LOADED"}]}

# What the machine running the tests may have set must not decide them.
AMBIENT = ("CUDA_", "NCCL_", "OMP_", "GOMP_", "GLOO_", "PYTORCH_", "MALLOC_", "COLUMNS", "NO_COLOR", "FORCE_COLOR")


def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`python -m gpu_topology ARGUMENTS`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(AMBIENT)}
    command = [sys.executable, "-m", "gpu_topology", *arguments]
    return subprocess.run(command, env={**clean, **(env or {})}, cwd=ROOT, capture_output=True, text=True, timeout=60)


def succeed(*arguments: str, env: dict[str, str] | None = None) -> str:
    """Its stdout; the command must end with 0."""
    done = run(*arguments, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def fail(*arguments: str, env: dict[str, str] | None = None) -> str:
    """Its one line on stderr; the command must end with 2 and print nothing else."""
    done = run(*arguments, env=env)
    assert (done.returncode, done.stdout) == (2, ""), done
    assert re.fullmatch(r"error: [^\n]+\n", done.stderr), done.stderr
    return done.stderr.strip()


@pytest.fixture
def workstation(fake_driver) -> dict[str, str]:
    return fake_driver("a100_a5000_t400")


def test_report_json_has_the_documented_keys(workstation):
    report = json.loads(succeed("report", "--json", env=workstation))
    assert set(report) >= REPORT_KEYS
    assert report["schema"] == "gpu-topology/1"
    assert all(set(gpu) >= GPU_KEYS for gpu in report["gpus"])
    assert report["gpus"][3]["compute_capability"] == [8, 0]
    assert report["gpus"][3]["memory_total"] == 40960 * 2**20
    assert len(report["links"]) == 10
    assert {"a", "b", "level", "nvlinks", "p2p"} <= set(report["links"][0])
    assert report["links"][0]["level"] == "PHB"
    assert set(report["selection"]) == {"indices", "uuids", "group", "policy", "excluded", "reason"}
    assert report["selection"]["indices"] == [0, 2, 4]
    assert [excluded["index"] for excluded in report["selection"]["excluded"]] == [1, 3]
    assert [group["indices"] for group in report["groups"]] == [[0, 2, 4], [3], [1]]
    settings = {setting["name"]: setting for setting in report["environment"]}
    assert settings["CUDA_VISIBLE_DEVICES"]["value"] == "0,2,4"
    assert all(setting["reason"] for setting in report["environment"])


@pytest.mark.parametrize("machine", [NO_DRIVER, "no_devices"])
def test_report_without_a_gpu_is_whole_and_says_why(fake_driver, machine):
    report = json.loads(succeed("report", "--json", env=fake_driver(machine)))
    assert set(report) >= REPORT_KEYS
    assert (report["gpus"], report["links"], report["groups"]) == ([], [], [])
    assert report["selection"]["indices"] == []
    assert report["warnings"][0] == report["selection"]["reason"]
    assert {setting["name"] for setting in report["environment"]} >= {"OMP_NUM_THREADS"}
    page = succeed("report", env=fake_driver(machine))
    assert "No NVIDIA GPU can be used here" in page
    assert "gloo" in page
    assert report["warnings"][0][:40] in page


def test_no_driver_library_at_all():
    """This machine's own answer; on one with a GPU there is a driver, and nothing to see here."""
    report = json.loads(succeed("report", "--json"))
    if report["gpus"]:
        pytest.skip("this machine has a GPU")
    assert report["warnings"]


def test_report_is_the_default_command(workstation):
    assert "RTX A5000" in succeed(env=workstation)
    assert json.loads(succeed("--json", env=workstation))["selection"]["indices"] == [0, 2, 4]


def test_snapshot_and_from_give_the_same_report(workstation, tmp_path):
    saved = tmp_path / "machine.json"
    assert succeed("snapshot", "-o", str(saved), env=workstation) == ""
    assert snapshot.load(saved) == to_topology("a100_a5000_t400")
    assert json.loads(succeed("snapshot", env=workstation)) == json.loads(saved.read_text())
    assert json.loads(succeed("snapshot", "--from", str(saved))) == json.loads(saved.read_text())
    live = json.loads(succeed("report", "--json", env=workstation))
    replayed = json.loads(succeed("report", "--json", "--from", str(saved)))
    for report in (live, replayed):
        report["host"].pop("memory_available"), report["host"].pop("shm_free")  # these move by themselves
    assert replayed == live
    report_file = tmp_path / "report.json"
    report_file.write_text(json.dumps(live))
    assert succeed("select", "--from", str(report_file)) == succeed("select", env=workstation)


SELECTIONS = {
    # arguments: stdout
    (): f"{UUID[0]},{UUID[2]},{UUID[4]}",  # unlike GPUs: CUDA's own count would differ from the driver's
    ("--as", "index"): "0,2,4",
    ("--count", "2", "--as", "index"): "2,4",
    ("--policy", "mixed", "--as", "index"): "0,1,2,3,4",
    ("--policy=fastest", "--as", "index"): "0,2,4",
    ("--gpus", "3,0", "--as", "index"): "3,0",
    ("--exclude", "2", "--as", "index"): "0,4",
    ("--min-memory", "30G", "--as", "index"): "3",
    ("--min-memory", "24564MiB", "--as", "index"): "0,2,4",
    ("--min-memory", "24", "--as", "index"): "0,2,4",
    ("--min-memory", "24GiB", "--as", "index"): "3",
}


@pytest.mark.parametrize("arguments", SELECTIONS)
def test_select_prints_the_value_and_nothing_else(workstation, arguments):
    assert succeed("select", *arguments, env=workstation) == SELECTIONS[arguments] + "\n"


def test_select_prints_indices_where_cuda_counts_as_the_driver_does(workstation, fake_driver):
    assert succeed("select", env=fake_driver("h100_8x_nvswitch")) == "0,1,2,3,4,5,6,7\n"
    assert succeed("select", env={**workstation, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}) == "0,2,4\n"


def test_select_stays_within_the_mask_and_warns_on_stderr(workstation):
    done = run("select", "--as", "index", env={**workstation, "CUDA_VISIBLE_DEVICES": "4,3,0"})
    assert done.stdout == "4,0\n"
    assert done.stderr.startswith("warning: CUDA_VISIBLE_DEVICES has indices on a machine with different GPUs")


def test_select_names_uuids_beside_a_gpu_that_cuda_may_not_count(tmp_path):
    path = tmp_path / "machine.json"

    def printed(**broken):
        gpus = [{"index": index, "name": "NVIDIA A30", "uuid": f"GPU-{index}"} for index in range(3)]
        gpus[0] |= broken
        path.write_text(json.dumps({"schema": "gpu-topology/1", "gpus": gpus}))
        return succeed("select", "--from", str(path)).strip()

    assert printed() == "0,1,2"
    assert printed(error="GPU is lost") == "GPU-1,GPU-2"
    assert printed(mig_mode=True) == "GPU-1,GPU-2"
    assert printed(cores=3584) == "GPU-0,GPU-1,GPU-2", "one name, different cores: CUDA counts the fastest first"


def test_select_never_mixes_uuids_and_indices(tmp_path):
    gpus = [{"index": index, "name": "NVIDIA A30", "uuid": f"GPU-{index}"} for index in range(3)]
    gpus[0]["error"], gpus[1]["uuid"] = "GPU is lost", None
    (tmp_path / "machine.json").write_text(json.dumps({"schema": "gpu-topology/1", "gpus": gpus}))
    done = run("select", "--from", str(tmp_path / "machine.json"))
    assert (done.returncode, done.stdout) == (0, "1,2\n")
    assert "warning: GPU 1 has no UUID that could be read, so these are indices: set CUDA_DEVICE_ORDER" in done.stderr


def test_draw_writes_a_picture_to_a_file_or_to_stdout(workstation, tmp_path):
    drawn = succeed("draw", env=workstation)
    assert ElementTree.fromstring(drawn)[0].text == "3 x RTX A5000, 1 x T400 4GB, 1 x A100-PCIE-40GB"
    done = run("draw", "-o", str(tmp_path / "machine.svg"), env=workstation)
    assert (done.returncode, done.stdout) == (0, "")
    assert (tmp_path / "machine.svg").read_text() == drawn
    saved = tmp_path / "machine.json"
    succeed("snapshot", "-o", str(saved), env=workstation)
    assert succeed("draw", "--from", str(saved)) == drawn
    assert succeed("draw", "--from", str(saved), "--gpus", "1") != drawn


def test_draw_without_a_gpu_says_so(fake_driver):
    drawn = succeed("draw", env=fake_driver(NO_DRIVER))
    assert "No NVIDIA GPU can be used here" in drawn
    assert "kernel module is not loaded" in drawn


def test_select_with_nothing_to_select_is_an_error(fake_driver, workstation):
    assert "kernel module is not loaded" in fail("select", env=fake_driver(NO_DRIVER))
    assert "is empty, which hides every GPU" in fail("select", env={**workstation, "CUDA_VISIBLE_DEVICES": ""})


def test_busy_gpus_are_left_out_unless_allowed(fake_driver):
    machine = load_machine("rtx3090_2x_nvlink")
    machine["gpus"][0]["processes"] = [{"pid": 99, "used_mib": 9000}]
    env = fake_driver(machine)
    assert succeed("select", env=env) == "1\n"
    assert succeed("select", "--allow-busy", env=env) == "0,1\n"


ERRORS = {
    ("select", "--gpus", ""): "names no GPU: expected indices or UUIDs",
    ("monitor", "--gpus", ","): "names no GPU: expected indices or UUIDs",
    ("select", "--gpus", "9"): "unknown GPU '9'",
    ("select", "--count", "4"): "4 GPUs were requested, 3 can be used",
    ("select", "--count", "0"): "count is 0",
    ("select", "--count", "two"): "argument --count/--nproc: invalid int value: 'two'",
    ("select", "--policy", "best"): "argument --policy: invalid choice: 'best'",
    ("select", "--min-memory", "lots"): "'lots' is not a size such as 24G or 800M",
    ("select", "--cuont", "2"): "unrecognized arguments: --cuont 2",
    ("env", "--shell", "tcsh"): "argument --shell: invalid choice: 'tcsh'",
    ("env", "--ranks", "0"): "'0' is not a number of at least 1",
    ("report", "--from", "/no/such/file.json"): "cannot read /no/such/file.json: No such file or directory",
    ("snapshot", "-o", "/no/such/folder/file.json"): "cannot write /no/such/folder/file.json",
    (
        "draw",
        "-o",
        "/no/such/folder/picture.svg",
    ): "cannot write /no/such/folder/picture.svg: No such file or directory",
    ("draw", "-o", "/dev/full"): "cannot write /dev/full: No space left on device",
    ("draw", "-o", "Machine.PNG"): "Machine.PNG: the picture is an SVG, so its name must end in .svg",
    ("draw", "--gpus", "7"): "unknown GPU '7'",
    ("draw-me",): "invalid choice: 'draw-me'",
}


@pytest.mark.parametrize("arguments", ERRORS)
def test_mistakes_are_one_line(workstation, arguments):
    assert ERRORS[arguments] in fail(*arguments, env=workstation)


@pytest.mark.parametrize("command", ["report", "snapshot", "select", "env", "draw"])
def test_a_snapshot_of_another_schema_is_refused(command, tmp_path):
    path = tmp_path / "later.json"
    path.write_text('{"schema": "gpu-topology/9", "gpus": []}')
    assert fail(command, "--from", str(path)).startswith(f"error: {path}: schema is 'gpu-topology/9'")


def test_env_is_evaluated_by_a_shell(workstation):
    script = f'eval "$({sys.executable} -m gpu_topology env)"; env'
    env = {**os.environ, **workstation}
    env = {name: value for name, value in env.items() if not name.startswith(AMBIENT)}
    done = subprocess.run(["sh", "-c", script], env=env, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    variables = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    assert variables["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert variables["CUDA_VISIBLE_DEVICES"] == "0,2,4"
    assert int(variables["OMP_NUM_THREADS"]) >= 1


def test_env_in_every_shell_keeps_the_users_values(workstation):
    env = {**workstation, "OMP_NUM_THREADS": "5", "NCCL_DEBUG": "WARN"}
    lines = succeed("env", env=env).splitlines()
    assert lines[0].startswith("export CUDA_DEVICE_ORDER=PCI_BUS_ID  # ")
    assert [line.split("  # ")[0] for line in lines[2:]] == [
        "# kept: export OMP_NUM_THREADS=5",
        "# kept: export NCCL_DEBUG=WARN",
    ]
    assert "set -gx CUDA_VISIBLE_DEVICES 0,2,4  # " in succeed("env", "--shell", "fish", env=env)
    assert succeed("env", "--shell", "docker", env=env).split() == [
        *("-e", "CUDA_DEVICE_ORDER=PCI_BUS_ID", "-e", "CUDA_VISIBLE_DEVICES=0,2,4"),
        *("-e", "OMP_NUM_THREADS=5", "-e", "NCCL_DEBUG=WARN"),
    ]
    settings = json.loads(succeed("env", "--shell", "json", env=env))
    assert [(s["name"], s["value"], s["kept"]) for s in settings[2:]] == [
        ("OMP_NUM_THREADS", "5", True),
        ("NCCL_DEBUG", "WARN", True),
    ]


def test_a_line_break_in_a_users_value_is_never_run(workstation):
    env = {**workstation, "NCCL_DEBUG": "INFO\nexit 7", "CUDA_VISIBLE_DEVICES": "0,1\nexit 8"}
    lines = succeed("env", env=env).splitlines()
    assert all(line.startswith(("export ", "# kept: ")) for line in lines), lines


def test_env_for_a_number_of_ranks_on_the_cpu(fake_driver):
    one, many = (succeed("env", "--ranks", ranks, env=fake_driver(NO_DRIVER)) for ranks in ("1", "1000"))
    assert "export OMP_NUM_THREADS=1  # " in many
    assert "MALLOC_" not in one, "it is for any program"
    assert "CUDA" not in one
    assert "NCCL" not in one


def test_a_lost_gpu_does_not_end_the_report(fake_driver):
    fault = {"call": "*", "gpu": 0, "error": "GPU_IS_LOST"}
    env = fake_driver({**load_machine("rtx3090_2x_nvlink"), "faults": [fault]})
    assert "GPU is lost" in succeed("report", env=env)
    report = json.loads(succeed("report", "--json", env=env))
    assert report["gpus"][0]["error"].startswith("GPU is lost")
    assert report["selection"]["indices"] == [1]
    assert report["selection"]["excluded"][0]["reason"].startswith("GPU is lost")


@pytest.mark.parametrize("command", ["report --json", "report", "draw", "monitor --seconds 0.2 --interval 0.1"])
def test_a_reader_that_leaves_early_is_no_error(workstation, command):
    pipeline = f"{sys.executable} -m gpu_topology {command} | true"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", pipeline],
        env={**os.environ, **workstation},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("command", ["report", "select", "monitor --seconds 0.1"])
def test_a_closed_stdout_is_no_error(workstation, command):
    script = f"{sys.executable} -m gpu_topology {command} >&-"
    done = subprocess.run(
        ["sh", "-c", script], env={**os.environ, **workstation}, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("command", "status", "out"),
    [("select --as index", 0, "0,2,4\n"), ("select --gpus 9", 2, ""), ("snapshot --from /none", 2, "")],
)
def test_a_closed_stderr_leaves_stdout_and_the_status_as_they_are(workstation, command, status, out):
    script = f"{sys.executable} -m gpu_topology {command} 2>&-"
    done = subprocess.run(
        ["sh", "-c", script], env={**os.environ, **workstation}, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (status, out)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("command", ["report", "select", "draw", "monitor --seconds 0.1"])
def test_a_full_disk_is_one_line(workstation, command):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "gpu_topology", *command.split()],
            env={**os.environ, **workstation},
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert done.returncode == 2
    assert re.fullmatch(r"error: [^\n]+\n", done.stderr), done.stderr


def test_ctrl_c_is_130_and_silent(tmp_path):
    slow = tmp_path / "slow.json"
    os.mkfifo(slow)
    command = [sys.executable, "-m", "gpu_topology", "report", "--from", str(slow)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process, slow.open("w"):  # open as soon as the other side reads: now it waits for the text
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "")


OWN_MODULES = {"gpu_topology.drawing.picture", "gpu_topology.monitor.command", "gpu_topology.verify.check"}

_IMPORTS = """
import sys
from gpu_topology.cli import main
status = main(sys.argv[1:])
print(",".join(sorted(sys.modules)), file=sys.stderr)
sys.exit(status)
"""


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["report"], {"torch", "numpy", "psutil"}),
        (["select"], {"torch", "rich", *OWN_MODULES, "gpu_topology.report.report"}),
        (["env"], {"torch", "rich", *OWN_MODULES, "gpu_topology.report.report"}),
    ],
)
def test_no_command_imports_what_it_does_not_need(workstation, arguments, absent):
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTS, *arguments],
        env={**os.environ, **workstation},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    modules = set(done.stderr.splitlines()[-1].split(","))
    assert "gpu_topology.driver.child_process" in modules, "the driver was read"
    assert not modules & absent


def test_no_color_is_honoured(workstation):
    colour = re.compile(r"\x1b\[[0-9;]*3[0-7]m")
    assert colour.search(succeed("report", env={**workstation, "FORCE_COLOR": "1", "TERM": "xterm"}))
    assert not colour.search(
        succeed("report", env={**workstation, "FORCE_COLOR": "1", "NO_COLOR": "1", "TERM": "xterm"})
    )
    plain = succeed("report", env=workstation)
    assert "\x1b" not in plain
    assert not [line for line in plain.splitlines() if line != line.rstrip()]
