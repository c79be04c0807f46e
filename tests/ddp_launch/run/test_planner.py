"""Restarts that look at the GPUs again, and --wait: the real launcher on a driver whose machine changes meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import FakeDriver, Trainer
from tests.fake_nvml.machine import load_machine, to_lines

PROGRAM = """
import os, shutil
attempt, rank = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), os.environ["RANK"]
size, mask, kept = (os.environ.get(name) for name in ("WORLD_SIZE", "CUDA_VISIBLE_DEVICES", "KEPT"))
os.write(1, f"{attempt} {rank} of {size} on {mask} {kept}\\n".encode())
if attempt == 0 and rank == "1":
    shutil.copy("then.txt", os.environ["FAKE_NVML_MACHINE"])
    raise RuntimeError(os.environ["SAYS"])
"""
LOST = {"faults": [{"call": "*", "error": "GPU_IS_LOST", "gpu": 1}]}


@pytest.fixture
def change(launcher: Any, fake_driver: FakeDriver) -> Any:
    """`change(now, then, *options, says=...)`: a run whose rank 1 fails when the machine `now` becomes `then`."""
    launcher.script(PROGRAM)

    def run(now: dict[str, Any], then: dict[str, Any], *options: str, says: str = "CUDA error") -> Any:
        (launcher.folder / "then.txt").write_text(to_lines(then))
        return launcher.run(*options, "--max-restarts", "2", "program.py", SAYS=says, KEPT="yes", **fake_driver(now))

    return run


def attempts(logs: str) -> set[str]:
    return {line for line in logs.splitlines() if line[:1].isdigit()}


def eight(**more: Any) -> dict[str, Any]:
    return load_machine("h100_8x_nvswitch") | more


def uuids(*indices: int) -> str:
    return ",".join(eight()["gpus"][index]["uuid"] for index in indices)


def test_a_spare_takes_the_place_of_a_lost_gpu(change: Any, launcher: Any) -> None:
    done = change(eight(), eight(**LOST), "--nproc", "2", "--tee", "all", "--json-events", "events.jsonl")
    assert done.returncode == 0, done.stderr
    shown = done.stdout.replace("[rank 1] ", "")
    masks = {"0": "0,1", "1": uuids(0, 2)}
    assert attempts(shown) == {f"{a} {rank} of 2 on {mask} yes" for a, mask in masks.items() for rank in "01"}
    [line] = [line for line in done.stderr.splitlines() if line.startswith("restart ")]
    assert line.startswith("restart 1 of 2: rank 1 on ")
    assert "failed: RuntimeError: CUDA error; attempt 2 starts with 2 ranks on GPU 0, 2 (GPU 1 is left out: " in line
    assert line.endswith("; GPU 2 instead)")
    events = [json.loads(line) for line in (launcher.folder / "events.jsonl").read_text().splitlines()]
    [restart] = [event for event in events if event["event"] == "restart"]
    assert (restart["ranks"], restart["devices"]) == (2, "GPU 0, 2") and "GPU 1 is left out" in restart["change"]


def test_fewer_ranks_where_there_is_no_spare(change: Any) -> None:
    pair = load_machine("rtx3090_2x_nvlink")
    done = change(pair, pair | LOST, "--tee", "all")
    assert done.returncode == 0, done.stderr
    assert "attempt 2 starts with 1 rank on GPU 0 (GPU 1 is left out: " in done.stderr
    assert any(line.startswith("1 0 of 1 on ") for line in done.stdout.splitlines())


def test_a_rank_that_reports_a_broken_gpu_gets_another(change: Any) -> None:
    done = change(eight(), eight(), "--nproc", "2", says="CUDA error: uncorrectable ECC error encountered")
    assert done.returncode == 0, done.stderr
    assert "on GPU 0, 2 (GPU 1 is left out: RuntimeError: CUDA error: uncorrectable ECC error" in done.stderr


def test_no_restart_where_no_gpu_is_left(change: Any) -> None:
    pair = load_machine("rtx3090_2x_nvlink")
    dead = {"faults": [{"call": "*", "error": "GPU_IS_LOST", "gpu": gpu} for gpu in (0, 1)]}
    done = change(pair, pair | dead)
    assert done.returncode == 1
    assert "restart" in done.stderr and "no GPU is left for another attempt (GPU 0 is left out: " in done.stderr


def test_restarts_on_the_cpu_are_reported_too(launcher: Any) -> None:
    launcher.script("import os\nif os.environ['TORCHELASTIC_RESTART_COUNT'] == '0': raise ValueError('boom')")
    done = launcher.run("--cpu", "--nproc", "1", "--max-restarts", "1", "program.py")
    assert done.returncode == 0
    assert "failed: ValueError: boom; attempt 2 starts with 1 rank on the CPU" in done.stderr


BUSY = {"processes": [{"pid": 4_000_000, "used_mib": 9000}]}


def busy(*indices: int) -> dict[str, Any]:
    machine = load_machine("rtx3090_2x_nvlink")
    for index in indices:
        machine["gpus"][index] |= BUSY
    return machine


def test_gpus_in_use_are_no_reason_for_a_run_on_the_cpu(launcher: Any, fake_driver: FakeDriver) -> None:
    launcher.script("print('ran')")
    for options in ((), ("--dry-run",), ("--nproc", "2")):
        done = launcher.run(*options, "program.py", **fake_driver(busy(0, 1)))
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        [line] = done.stderr.splitlines()
        assert line.startswith("error: no GPU can be used: GPU 0 busy: in use by process 4000000")
        assert line.endswith(
            "; --wait waits until they are free, --allow-busy takes them as they are, --cpu runs on the CPU"
        )
    done = launcher.run("--nproc", "2", "program.py", **fake_driver(busy(0)))
    assert done.returncode == 2 and "--wait waits until they are free" in done.stderr
    assert launcher.run("program.py", **fake_driver(busy(0))).returncode == 0, "the free one is taken"
    hidden = launcher.run("program.py", CUDA_VISIBLE_DEVICES="", **fake_driver(busy(0)))
    assert hidden.returncode == 0 and "2 ranks, gloo" in hidden.stderr, "asked for the CPU"


@pytest.mark.parametrize(
    ("options", "used"), [((), (0, 1)), (("--nproc", "2"), (0,)), (("--gpus", "1"), (1,))], ids=["any", "two", "named"]
)
def test_wait_until_gpus_are_free(launcher: Any, fake_driver: FakeDriver, options: Any, used: Any) -> None:
    launcher.script("print('ran')")
    env = fake_driver(busy(*used))
    process = launcher.start("--wait", *options, "program.py", **env)
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line.startswith("waiting: ") and [f"GPU {gpu} busy" in line for gpu in (0, 1)] == [0 in used, 1 in used]
    Path(env["FAKE_NVML_MACHINE"]).write_text(to_lines(busy()))
    assert "ran\n" in process.communicate(timeout=60)[0] and process.returncode == 0


def test_wait_has_an_end(launcher: Any, fake_driver: FakeDriver) -> None:
    launcher.script("print('ran')")
    done = launcher.run("--wait", "1s", "program.py", **fake_driver(busy(0, 1)))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("error: --wait: after 1 s still in use: GPU 0 busy: ")
    done = launcher.run("--wait", "--nproc", "3", "program.py", **fake_driver(busy(0, 1)))
    assert done.returncode == 2 and "3 GPUs were requested" in done.stderr, "what can never be is not waited for"


def test_the_trainer_ends_with_the_same_bits_on_fewer_ranks(
    tmp_path: Path, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher's engine starts the trainer's second attempt with one rank in place of two."""
    code = """
import sys
from dataclasses import replace
from pathlib import Path
from ddp_launch.plan.command import Job, RestartPlan
from ddp_launch.run import agent
folder, *words = sys.argv[1:]
job = Job(worker=(sys.executable, "-u", "ddp_train/main.py", *words), nproc_per_node=2,
    environment=(("OMP_NUM_THREADS", "1"), ("GLOO_SOCKET_IFNAME", "lo")), max_restarts=1, saves_together=True)
fewer = lambda failures: RestartPlan(replace(job, nproc_per_node=1), "the CPU")
outcome = agent.run(job, Path(folder) / "logs", next_attempt=fewer)
print(outcome.status, len(outcome.attempts))
"""
    options = "--device cpu --dataset synthetic --synthetic-samples 96 --batch-size 32 --epochs 2 --model small "
    options += "--reproducible --reproducible-shards 2 --save-every 1 --technique tests.faults.accident:plan --out-dir"
    results = []
    for name, accidents in (("whole", []), ("restarted", [{"rank": 1, "step": 5, "what": "kill"}])):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "accidents.json").write_text(json.dumps(accidents))
        monkeypatch.setenv("ACCIDENTS", str(folder / "accidents.json"))
        words = [*options.split(), str(folder / "run")]
        if accidents:
            command, root = [sys.executable, "-c", code, str(folder), *words], Path(__file__).parents[3]
            done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
            assert done.stdout.splitlines()[-1:] == ["0 1"], done.stdout + done.stderr
        else:
            assert trainer(*words).returncode == 0
        history = json.loads((folder / "run" / "training_history.json").read_text())
        keys = ("train_loss", "test_loss", "global_batch")
        results.append([[epoch[key] for key in keys] for epoch in history["epochs"]])
    assert results[0] == results[1] and len(results[0]) == 2
