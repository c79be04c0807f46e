"""The doctor: each fact to its line, and the whole report of a sound and of an unsound machine, through launch.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from ddp_core.errors import OptionError
from ddp_launch.cli.options import parse
from ddp_launch.cluster.cluster import find_cluster
from ddp_launch.doctor import doctor, gpus, trials
from ddp_launch.doctor import machine as doctor_machine
from ddp_launch.doctor.check import Check
from ddp_launch.doctor.gpus import Probe
from gpu_topology.driver.library import DriverMismatchError, NoDriverError
from gpu_topology.host.host import read_host
from gpu_topology.topology import Gpu, Link, LinkLevel, Topology

ROOT = Path(__file__).parents[3]
H100 = Gpu(0, uuid="GPU-0", name="NVIDIA H100", memory_total=80 * 2**30, memory_used=0, compute_capability=(9, 0))
ONE = Topology(gpus=(H100,), driver_version="550.54", cuda_version="12.4")
GOOD = Probe(version="2.15.0", cuda="12.1", architectures=("sm_80", "sm_90"), devices=1)


def statuses(checks: object) -> list[tuple[str, str]]:
    return [(check.name, check.status) for check in checks]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("probe", "topology", "status", "words"),
    [
        (GOOD, ONE, "ok", "torch can use 1 GPU"),
        (replace(GOOD, cuda=None), ONE, "failed", "CPU build"),
        (replace(GOOD, cuda="13.2"), ONE, "failed", "torch needs CUDA 13.2, the driver 550.54 goes up to 12.4"),
        (replace(GOOD, cuda="12.9"), ONE, "ok", "1 GPU"),
        (replace(GOOD, devices=0, cuda_error="initialization error"), ONE, "failed", "initialization error"),
        (replace(GOOD, architectures=("sm_70", "sm_80")), ONE, "failed", "no code for NVIDIA H100"),
        (replace(GOOD, architectures=("sm_80", "compute_80")), ONE, "ok", "1 GPU"),
    ],
)
def test_torch_against_the_driver(probe, topology, status, words):
    *_, last = gpus.torch_and_driver(probe, topology)
    assert (last.name, last.status) == ("torch and GPUs", status)
    assert words in last.detail
    assert (last.remedy is None) == (status == "ok")


def test_a_card_that_a_run_does_not_use_fails_nothing():
    old = Gpu(1, uuid="GPU-1", name="Quadro K620", memory_total=2**31, memory_used=0, compute_capability=(5, 0))
    both = replace(ONE, gpus=(H100, old))
    *_, last = gpus.torch_and_driver(GOOD, both, planned=(0,))
    assert last.status == "ok"
    *_, last = gpus.torch_and_driver(GOOD, both)
    assert last.status == "failed" and "no code for Quadro K620" in last.detail
    assert "whl/cu126" in (last.remedy or "")


def test_a_gpu_that_does_not_tell_its_memory_fails():
    silent = replace(ONE, gpus=(H100, replace(H100, index=1, memory_total=None)))
    assert statuses(gpus.devices(silent))[-1] == ("GPU 1", "failed")
    *_, last = gpus.devices(replace(ONE, gpus=(H100, replace(H100, index=1, name=None))))
    assert (last.name, last.status, last.detail) == ("GPU 1", "failed", "its name cannot be read")
    alone = replace(ONE, gpus=(replace(H100, memory_total=None),))
    *_, last = gpus.devices(alone)
    assert (last.status, last.detail) == ("ok", "NVIDIA H100, of unknown memory")


def test_torch_that_does_not_run_is_the_whole_answer():
    assert statuses(gpus.torch_and_driver(Probe(error="no module"), ONE)) == [("torch", "failed")]


def test_a_machine_without_a_card_is_in_order_and_a_card_without_a_driver_is_not(tmp_path):
    none, mismatch = NoDriverError("no driver", "install it"), DriverMismatchError("of different versions", "reboot")
    assert statuses(gpus.devices(Topology(), none, tmp_path)) == [("GPUs", "warning")]
    assert statuses(gpus.devices(Topology(), mismatch, tmp_path)) == [("GPUs", "failed")]
    card = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    card.mkdir(parents=True)
    (card / "vendor").write_text("0x10de\n")
    (card / "class").write_text("0x030200\n")
    assert statuses(gpus.devices(Topology(), none, tmp_path)) == [("GPUs", "failed")]
    (card / "class").write_text("0x0c0330\n")  # the USB controller of a graphics card
    assert statuses(gpus.devices(Topology(), none, tmp_path)) == [("GPUs", "warning")]


def test_a_lost_gpu_fails_and_the_others_do_not():
    lost = Topology(gpus=(H100, Gpu(1, error="GPU is lost")), warnings=("GPU 1: GPU is lost",))
    assert statuses(gpus.devices(lost)) == [("driver", "ok"), ("GPU 0", "ok"), ("GPU 1", "failed")]


def test_links_say_how_many_pairs_reach_each_other():
    two = replace(ONE, gpus=(H100, replace(H100, index=1)), links=(Link(0, 1, LinkLevel.PHB, 0, "not-supported"),))
    found = list(gpus.links(two, read_host()))
    assert "peer access between 0 of 1 pairs" in found[0].detail
    assert any("redundant" in check.detail for check in found[1:])


def test_a_small_shared_memory_names_the_container_option(tmp_path):
    from ddp_train.config.parse import parse

    host = replace(read_host(), shm_total=64 * 2**20, shm_free=0)
    shm, *_ = doctor_machine.resources(host, parse(["--out-dir", str(tmp_path)], prog="test"))
    assert (shm.name, shm.status) == ("/dev/shm", "warning")
    assert "--shm-size" in (shm.remedy or "")


def test_requirements_are_those_of_the_file():
    found = doctor_machine.requirements()
    assert found["torch"] == "2.11" and found["nvidia-ml-py"] == "12.560"
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    assert len(found) == len([line for line in lines if line])


def test_the_worst_line_decides_the_exit_status():
    fine, odd, bad = Check("a", "ok", ""), Check("b", "warning", ""), Check("c", "failed", "")
    assert [doctor.exit_status(checks) for checks in ([fine], [fine, odd], [fine, bad, odd])] == [0, 0, 1]
    assert doctor.to_json([odd, fine], "")["status"] == "warning"


def diagnose(folder: Path, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "launch.py"), "--doctor", *options]
    return subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | env,
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_this_machine_trains_and_says_so(tmp_path, fake_driver):
    """With --cpu the GPUs that a torch without CUDA cannot use are no fault."""
    (folder := tmp_path / "here").mkdir()
    done = diagnose(folder, "--json", "--cpu", "--nproc", "1", **fake_driver("rtx3090_2x_nvlink"))
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout)
    assert answer["schema"] == "ddp-launch-doctor/1" and answer["status"] in ("ok", "warning")
    by_name = {check["name"]: check for check in answer["checks"]}
    assert "2 epochs on digits, 1 rank:" in by_name["training"]["detail"]
    assert "has no CIFAR-10" in by_name["data"]["detail"]
    assert by_name["GPU 1"]["status"] == by_name["torch"]["status"] == "ok"
    assert "torch and GPUs" not in by_name
    assert answer["report"].startswith("```\nddp-launch ")
    assert str(tmp_path) not in answer["report"]
    assert not list(folder.iterdir()), "the trial leaves nothing behind"


def test_an_unsound_machine_fails_with_what_to_do(tmp_path, fake_driver):
    (tmp_path / "data/cifar-10-batches-py").mkdir(parents=True)
    (tmp_path / "data/cifar-10-batches-py/data_batch_1").write_bytes(b"torn")
    machine = fake_driver("rtx3090_2x_nvlink")
    done = diagnose(tmp_path, "--data-dir", "data", **machine, COLUMNS="100", NO_COLOR="1")
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    failed = " ".join(line.split()[1] for line in lines if line.startswith("failed"))
    assert "torch" in failed and "data" in failed and "training" in failed
    assert "→" in done.stdout and "For a bug report:" in done.stdout


def test_the_trial_needs_no_other_node(monkeypatch):
    """Even in a job of several nodes: this machine is what is examined."""
    tried = []
    monkeypatch.setattr(trials, "_run", lambda command, limit_s: tried.append(command) or (1, "", "error: no"))
    trials.training(parse(["--doctor", "--cpu"]), torch_works=True)
    options = parse(tried[0][2:])
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "n[1-2]"}
    pod = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "pod-0", "MASTER_PORT": "23456", "PET_NNODES": "2"}
    assert all(find_cluster(options, environ).one_node for environ in (job, pod))
    with pytest.raises(OptionError):
        find_cluster(replace(options, nnodes=None), job)


def test_an_installed_package_and_a_folder_with_modules_of_the_users(tmp_path, monkeypatch):
    """A wheel has no launch.py, and the trials import nothing from the current folder."""
    tried = []
    with monkeypatch.context() as patched:
        patched.setattr(trials, "_run", lambda command, limit_s: tried.append(command) or (1, "", "error: no"))
        trials.training(parse(["--doctor", "--cpu"]), torch_works=True)
    assert Path(tried[0][1]).is_relative_to(ROOT / "ddp_launch")
    (tmp_path / "random.py").write_text("raise RuntimeError('a module of the user')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert trials.probe_torch().error is None


def test_folders_that_cannot_be_looked_up(monkeypatch):
    from ddp_train.config import parse as trainer

    config = trainer.parse(["--out-dir", "o" * 300, "--data-dir", "d" * 300], prog="test")
    *_, disk = doctor_machine.resources(read_host(), config)
    assert (disk.name, trials.data(config).status) == ("disk", "failed")
    monkeypatch.setattr(tempfile, "tempdir", "/dev/null/missing")
    check = trials.training(parse(["--doctor"]), torch_works=True)
    assert check.status == "failed" and "no temporary folder can be made" in check.detail


def test_images_of_the_users_own_are_no_broken_cifar_10(tmp_path):
    from ddp_train.config import parse as trainer

    for name in ("train/cats/1.png", "train/dogs/1.png", "test/cats/1.png", "test/dogs/1.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"an image")
    check = trials.data(trainer.parse(["--data-dir", str(tmp_path)], prog="test"))
    assert (check.status, check.detail) == ("ok", f"{tmp_path}: images of 2 classes: 2 in train, 2 in test")


def test_packages_whose_version_is_not_known(tmp_path, monkeypatch):
    """A folder that an interrupted pip left, and a copy of the project without its requirements."""
    (tmp_path / "rich-99.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert ("packages", "failed") in statuses(doctor_machine.installation())
    monkeypatch.setattr(doctor_machine, "REQUIREMENTS", tmp_path / "requirements.txt")
    assert "torch" in doctor_machine.requirements()


def test_the_doctor_takes_no_program(tmp_path):
    done = diagnose(tmp_path, "train.py")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --doctor checks this machine") and done.stderr.count("\n") == 1
