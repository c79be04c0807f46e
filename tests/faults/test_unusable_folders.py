"""An --out-dir that cannot be used is found before a worker starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.test_two_runs import _FRONT, _RUN

_ROOT = Path(__file__).parents[2]


def _run(front: str, folder: Path, *prefix: str) -> tuple[int, str]:
    """Status, and all that was said."""
    command = [*prefix, sys.executable, *_FRONT[front], *_RUN, "--out-dir", str(folder)]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("front", ["launcher", "python"])
def test_a_read_only_file_system(front: str, tmp_path: Path) -> None:
    inside = 'mount -t tmpfs -o ro none "$0" && exec "$@"'
    prefix = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", inside, str(tmp_path))
    try:
        subprocess.run([*prefix, "true"], capture_output=True, timeout=20, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this machine lets no user mount a file system")
    status, words = _run(front, tmp_path / "a" / "run", *prefix)
    assert status == 2
    assert words.splitlines() == [
        f"error: --out-dir {tmp_path}/a/run: cannot be written ({tmp_path} is on a read-only file system)"
    ]


@pytest.mark.parametrize("front", ["launcher", "python"])
def test_a_file_in_the_place_of_a_folder(front: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    status, words = _run(front, tmp_path / "file" / "run")
    assert (status, words) == (
        2,
        f"error: --out-dir {tmp_path}/file/run: cannot be written ({tmp_path}/file is a file)\n",
    )
