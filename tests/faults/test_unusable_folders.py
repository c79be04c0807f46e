"""Folders that cannot be used are found before a worker starts, and refused in one line."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ddp_core.errors import UserError
from ddp_train.config.options import DataOptions
from ddp_train.config.parse import parse
from ddp_train.config.validation import check_paths, resume_target
from ddp_train.data.sources.cifar10 import has_torchvision_folder
from ddp_train.data.sources.dataset import resolve
from ddp_train.data.sources.listing import other_data
from ddp_train.data.sources.torchvision_files import missing_file
from ddp_train.evaluation.saved_model import open_saved_model
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


@contextlib.contextmanager
def _as_an_ordinary_user() -> Iterator[None]:
    """Permissions count for this process, also where the tests run as root."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data folder, relative to the working folder, whose permissions the test changes."""
    (tmp_path / "data" / "train" / "cat").mkdir(parents=True)
    (tmp_path / "data" / "train" / "cat" / "a.png").touch()
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    yield Path("data")
    (tmp_path / "data").chmod(0o755)


def test_a_data_folder_that_cannot_be_listed_is_refused(locked: Path) -> None:
    """Not taken for an empty one, in whose place the trainer would train on digits."""
    locked.chmod(0o311)
    for options in (DataOptions(data_dir="data"), DataOptions(data_dir="data", val_split=0.1)):
        with _as_an_ordinary_user(), pytest.raises(UserError) as caught:
            resolve(options)
        assert str(caught.value) == "--data-dir data: cannot be read (Permission denied)"


def test_folders_that_cannot_be_entered_are_refused_in_one_line(locked: Path) -> None:
    locked.chmod(0o600)
    inside = str(locked / "run")
    found = parse(["--data-dir", inside])
    with _as_an_ordinary_user():
        with pytest.raises(UserError, match=r"--data-dir data/run: cannot be read \(Permission denied\) \(expected"):
            check_paths(found)
        with pytest.raises(UserError, match="--resume data/run: there is no checkpoint"):
            resume_target(inside, None)
        with pytest.raises(UserError, match="cannot read data/run: Permission denied"):
            open_saved_model(inside, torch.device("cpu"))
        assert not has_torchvision_folder(Path(inside)) and missing_file("mnist", Path(inside)) is not None


def test_a_folder_beside_the_data_that_cannot_be_read_is_none_of_them(locked: Path, tmp_path: Path) -> None:
    locked.chmod(0o600)  # as lost+found is
    (tmp_path / "more" / "train" / "cat").mkdir(parents=True)
    with _as_an_ordinary_user():
        assert other_data(Path()) == "one in more/: --data-dir more"
