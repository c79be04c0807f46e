"""Every command in a Python that has the standard library alone, as the system's in a fresh clone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ddp_core.missing_packages import older

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


def with_torch(version: str, words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A command in this Python, which finds a torch of that version first; importing it fails."""
    torch = folder / "torch"
    torch.mkdir()
    (torch / "__init__.py").write_text("raise SystemExit('imported')\n")
    (torch / "version.py").write_text(f"__version__ = '{version}'\ncuda = None\n")
    (folder / "train.py").write_text("print('started')\n")
    command = [sys.executable, *words.replace("ROOT", str(ROOT)).split()]
    env = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("version", "words", "said"),
    [
        ("2.5.1+cu124", "ROOT/launch.py --cpu train.py", "the launcher needs torch 2.6 or newer, here is 2.5.1+cu124"),
        ("2.10.0", "ROOT/launch.py --cpu", "a program of your own runs on torch 2.6 or newer"),
        ("2.10.0", "ROOT/ddp_train/main.py", "the trainer needs torch 2.11 or newer, here is 2.10.0"),
        ("2.9.1", "ROOT/launch.py --cpu --virtual-local-rank train.py", "needs torch 2.10 or newer, here is 2.9.1"),
    ],
)
def test_a_torch_that_is_too_old_is_refused_before_anything_starts(
    tmp_path: Path, version: str, words: str, said: str
) -> None:
    done = with_torch(version, words, tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith("error: ") and said in done.stderr
    assert f"{sys.executable} -m pip install --upgrade torch torchvision" in done.stderr


def test_the_oldest_torch_for_a_users_program_is_let_through(tmp_path: Path) -> None:
    done = with_torch("2.6.0+cu124", "ROOT/launch.py --cpu train.py", tmp_path)
    assert "imported" in done.stderr and "needs torch" not in done.stderr


@pytest.mark.parametrize(
    ("version", "is_older"), [("2.9.1", True), ("2.10.0a0+git", False), ("3.0", False), (None, False)]
)
def test_versions_are_compared_as_numbers(version: str | None, is_older: bool) -> None:
    assert older(version, (2, 10)) is is_older
