"""scripts/run.sh and test.sh: a Python that will not do, an installation that fails, the torch that fits the driver."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import FakeDriver
from tests.integration.conftest import ROOT


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The parts of a clone that the scripts need before anything is installed."""
    folder = tmp_path / "clone"
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    for name in ("requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    return folder


def fake_python(folder: Path, text: str) -> str:
    """A `python3` that is too old, or has no venv: a shell script."""
    path = folder / "python3"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("script", ["run.sh", "test.sh"])
@pytest.mark.parametrize(
    ("python", "words"),
    [
        ('case "$1" in --version) echo Python 3.9.2;; *) exit 1;; esac', "Python 3.9.2 is too old"),
        ('case "$2" in *venv*) exit 1;; *) exit 0;; esac', "no venv module"),
        (None, "not found"),
    ],
    ids=["too old", "no venv", "missing"],
)
def test_a_python_that_will_not_do_is_one_line(clone: Path, script: str, python: str | None, words: str) -> None:
    name = fake_python(clone, python) if python is not None else str(clone / "no-such-python")
    done = subprocess.run(
        ["bash", f"scripts/{script}"],
        cwd=clone,
        env={"PATH": "/usr/bin:/bin", "PYTHON": name},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and words in done.stderr and done.stderr.count("\n") == 1
    assert not (clone / ".venv").exists()


FAKE_PIP = """case "$*" in
*--version*) exit 0;;
-*install*) echo "ERROR: [Errno 28] No space left on device" >&2; exit 1;;
*) echo torch;;
esac"""


@pytest.mark.parametrize(("free", "said"), [(3_000_000, "3 GB are free, and it takes 9"), (90_000_000, None)])
def test_an_installation_that_fails_says_so_and_whether_the_disk_is_small(
    clone: Path, free: int, said: str | None
) -> None:
    (clone / ".venv/bin").mkdir(parents=True)
    shutil.move(fake_python(clone, FAKE_PIP), clone / ".venv/bin/python")
    df = Path(fake_python(clone, f'echo "Filesystem"; echo "disk 100000000 1 {free} 1% /"'))
    df.rename(clone / "df")
    done = subprocess.run(
        ["bash", "scripts/test.sh"],
        cwd=clone,
        env={"PATH": f"{clone}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2
    assert last.startswith("error: the installation failed") and last.endswith("run the same command again to retry")
    assert said in last if said else "GB" not in last
    assert not (clone / ".venv/installed-dev.txt").exists()


UVS_PYTHON = """case "$*" in
*pip\\ --version*) test -e "$0-pip";;
*ensurepip*) touch "$0-pip";;
*install*|*-c*|*compileall*) exit 0;;
*) echo torch;;
esac"""


def prepare(clone: Path, python: str) -> subprocess.CompletedProcess[str]:
    """Prepare a clone that has an environment with this Python; there is no other one."""
    (clone / ".venv/bin").mkdir(parents=True)
    (clone / ".venv/mine").touch()
    shutil.move(fake_python(clone, python), clone / ".venv/bin/python")
    return subprocess.run(
        ["bash", "-c", "source scripts/environment.sh; prepare_environment ''"],
        cwd=clone,
        env={"PATH": "/usr/bin:/bin", "PYTHON": "/bin/true"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_an_environment_of_uv_gets_pip_and_stays(clone: Path) -> None:
    done = prepare(clone, UVS_PYTHON)
    assert done.returncode == 0, done.stderr
    assert (clone / ".venv/mine").exists()
    assert (clone / ".venv/installed.txt").read_text() == "torch\n"


def test_an_environment_with_an_old_python_is_named_and_stays(clone: Path) -> None:
    done = prepare(clone, 'case "$*" in --version) echo Python 3.10.4;; -c*) exit 1;; *) exit 0;; esac')
    assert done.returncode == 2
    assert (clone / ".venv/mine").exists()
    expected = "error: .venv has Python 3.10.4, and Python 3.11 or newer is needed: remove "
    assert done.stderr.startswith(expected) and done.stderr.count("\n") == 1


SPEAKING_PIP = """case "$*" in
*torch_index.py*) echo https://example.org/cu126;;
*pip\\ --version*) exit 0;;
*install*) echo "$*" >>"$PIP_LOG";;
*) printf 'torch>=2.11\\ntorchvision>=0.26\\nnvidia-ml-py>=12\\nrich>=13\\n';;
esac"""


def test_torch_comes_from_the_index_that_fits_the_driver_and_the_rest_from_pypi(clone: Path, tmp_path: Path) -> None:
    (clone / ".venv/bin").mkdir(parents=True)
    shutil.move(fake_python(clone, SPEAKING_PIP), clone / ".venv/bin/python")
    done = subprocess.run(
        ["bash", "-c", "source scripts/environment.sh; prepare_environment ''"],
        cwd=clone,
        env={"PATH": "/usr/bin:/bin", "PIP_LOG": str(tmp_path / "pip.log")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "pip.log").read_text().splitlines()
    ml, torch, rest = (line.split("--disable-pip-version-check ")[1] for line in calls)
    assert ml == "nvidia-ml-py>=12"
    assert torch == "--index-url https://example.org/cu126 torch>=2.11 torchvision>=0.26"
    assert rest.startswith("-r .venv/installed.txt")
    assert "torch is taken from https://example.org/cu126" in done.stderr


@pytest.mark.parametrize(
    ("cuda", "capabilities", "build"),
    [
        (13000, [[9, 0]], None),
        (13000, [[6, 1], [8, 6]], None),  # PyPI's torch has code for one of them
        (13000, [[7, 0]], "cu126"),
        (12040, [[8, 0]], "cu126"),
        (12080, [[10, 0]], "cu128"),
        (11020, [[8, 0]], None),  # no build for such a driver: the plan says what to do
    ],
)
def test_the_build_of_torch_follows_the_driver_and_the_gpus(
    fake_driver: FakeDriver, cuda: int, capabilities: list[list[int]], build: str | None
) -> None:
    gpus = [{"name": "NVIDIA X", "memory_mib": 16384, "cc": capability} for capability in capabilities]
    env = {**os.environ, **fake_driver({"gpus": gpus, "cuda_version": cuda}), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "scripts/torch_index.py")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ("" if build is None else f"https://download.pytorch.org/whl/{build}")


@pytest.mark.parametrize(
    ("words", "said"),
    [(["no-such-python"], "no-such-python is not there"), (["--dark"], "--dark: expected --light SITE_PACKAGES")],
)
def test_the_matrix_refuses_what_it_cannot_run(words: list[str], said: str) -> None:
    command = ["bash", str(ROOT / "scripts" / "test_matrix.sh"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1) and said in done.stderr
