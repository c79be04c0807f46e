"""Every command in a Python that has the standard library alone, as the system's in a fresh clone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def bare(words: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """-S: without site-packages."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-S", *words.replace("ROOT", str(ROOT)).split()]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "words",
    [
        "launch.py --auto",
        "launch.py --cpu tests/conftest.py",
        "launch.py --doctor",
        "ddp_train/main.py",
        "-m ddp_train.evaluate --help",
        "-m ddp_train.predict runs/none image.png",
        "-m ddp_train.export runs/none -o a.onnx",
        "-m ddp_train.diagnostics.precision",
        "-m gpu_topology monitor --seconds 1",
        "-m gpu_topology verify",
        "-m benchmarks",
    ],
)
def test_what_is_missing_and_both_ways_to_get_it(words: str) -> None:
    done = bare(words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith(f"error: not installed in {sys.executable}: torch, ")
    for said in ("numpy", "psutil", "jsonargparse", "bash scripts/run.sh", "-m pip install -r requirements.txt"):
        assert said in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        "launch.py --auto --dry-run tests/conftest.py",
        "launch.py --help",
        "-m ddp_launch --version",
        "-m gpu_topology report",
        "-m gpu_topology env",
    ],
)
def test_what_needs_no_package_runs(words: str) -> None:
    done = bare(words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


def test_the_plan_without_rich_has_the_line_to_paste(tmp_path: Path) -> None:
    (tmp_path / "train.py").touch()
    text = bare("ROOT/launch.py --cpu --nproc 2 --dry-run train.py", tmp_path).stdout
    plan = json.loads(bare("ROOT/launch.py --cpu --nproc 2 --dry-run --json train.py", tmp_path).stdout)
    assert text.splitlines()[-1] == plan["shell"]
    assert all(f"{one['name']}={one['value']}: {one['reason']}" in text for one in plan["environment"])
