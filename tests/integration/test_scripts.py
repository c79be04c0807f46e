"""scripts/run.sh and test.sh on a machine whose Python will not do."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

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
