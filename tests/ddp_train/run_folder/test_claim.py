"""The run folder before the run: names, and an earlier run that must not be lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddp_core.errors import UserError
from ddp_train.config.options import Config
from ddp_train.config.parse import parse, with_values
from ddp_train.run_folder.claim import claim
from ddp_train.run_folder.lock import RunLock


def test_a_fresh_folder_is_made(tmp_path: Path) -> None:
    path, note = claim(parse(["--out-dir", str(tmp_path / "a" / "b")]), lock := RunLock())
    lock.release()
    assert path.is_dir() and note is None and list(path.iterdir()) == []


def test_new_names_are_free_and_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for model in ("small", "my.models:net", "../up"):
        first, _ = claim(with_values(Config(), {"model": model}), RunLock())
        second, _ = claim(with_values(Config(), {"model": model}), RunLock())
        assert first != second and first.parent == second.parent == Path("runs")
        assert ":" not in first.name and "/" not in first.name


def test_an_earlier_run_is_moved_aside_and_stays_whole(tmp_path: Path) -> None:
    wanted, lock = parse(["--out-dir", str(tmp_path)]), RunLock()
    for number in (1, 2):
        for name in ("checkpoint-latest.pt", "training_history.json", "config.yaml"):
            (tmp_path / name).write_text(f"{name} {number}")
        (tmp_path / "tensorboard").mkdir()
        (tmp_path / "mine.txt").write_text("not of a run")
        path, note = claim(wanted, lock)
        earlier = path / f"earlier-{number}"
        assert note is not None and str(earlier) in note
        assert (earlier / "checkpoint-latest.pt").read_text() == f"checkpoint-latest.pt {number}"
        assert (earlier / "tensorboard").is_dir()
        assert not (path / "checkpoint-latest.pt").exists() and (path / "mine.txt").exists()


def test_a_run_that_is_resumed_stays_in_place(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-latest.pt").write_text("")
    for resume in ("auto", str(tmp_path)):
        _, note = claim(parse(["--out-dir", str(tmp_path), "--resume", resume]), RunLock())
        assert note is None and (tmp_path / "checkpoint-latest.pt").exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--out-dir .*cannot be written"):
        claim(parse(["--out-dir", str(tmp_path / "file" / "run")]), RunLock())
