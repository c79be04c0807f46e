"""The thread that writes checkpoints: what it copies, when it waits, which generations stay, when it gives up."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from ddp_core import files
from ddp_core.errors import UserError
from ddp_train.checkpoint import format as checkpoint_format
from ddp_train.checkpoint.async_writer import CheckpointWriter, copy_to_host
from ddp_train.config.validation import LATEST, PREVIOUS


def _state(value: float) -> dict[str, object]:
    return {"weights": torch.full((1000,), value), "progress": {"epoch": int(value)}}


def _epoch(path: Path) -> int:
    state = checkpoint_format.load(path)
    weights, progress = state["weights"], state["progress"]
    assert isinstance(weights, torch.Tensor)
    assert isinstance(progress, dict)
    assert torch.equal(weights, torch.full((1000,), float(progress["epoch"])))
    return int(progress["epoch"])


def _damage(path: Path) -> None:
    """Flip a bit in a file of its own: a hard link to the same bytes stays as it is."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)


def _files(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# What is copied


def test_the_training_goes_on_with_its_own_tensors(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(8, 4)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "list": [1, (2.0, "three")]}
    checkpoint_format.save(tmp_path / "before.pt", state)
    copied = copy_to_host(state)
    with torch.no_grad():
        for tensor in (*model.state_dict().values(), *optimizer.state[model[0].weight].values()):
            tensor.add_(1)
    optimizer.param_groups[0]["lr"] = 7.0
    state["list"].append(4)  # type: ignore[attr-defined]
    checkpoint_format.save(tmp_path / "after.pt", copied)  # type: ignore[arg-type]
    assert (tmp_path / "before.pt").read_bytes() == (tmp_path / "after.pt").read_bytes()


def test_shared_memory_is_copied_once_and_layouts_stay() -> None:
    weight = torch.randn(3, 5, 4, 4).to(memory_format=torch.channels_last)
    state: dict[str, object] = {
        "a": weight,
        "b": OrderedDict(c=weight.detach()),
        "part": weight[0],
        "no": torch.empty(0),
    }
    copied = copy_to_host(state)
    a, b = copied["a"], copied["b"]
    assert isinstance(a, torch.Tensor)
    assert isinstance(b, OrderedDict)
    assert b["c"] is a
    assert a.data_ptr() != weight.data_ptr()
    assert a.is_contiguous(memory_format=torch.channels_last)
    assert isinstance(copied["part"], torch.Tensor)
    assert copied["part"].untyped_storage().nbytes() == weight[0].numel() * 4, "not the whole that it is a part of"


def test_what_could_not_be_loaded_is_refused_in_the_training_thread(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path / LATEST)
    with pytest.raises(TypeError, match=r"state\['set'\] is a builtins\.set"):
        writer.save({"set": {1}}, step=1)
    writer.close()
    assert _files(tmp_path) == []


# Two generations


def test_the_two_newest_stay(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path / LATEST)
    for step in (1, 2, 3):
        assert writer.save(_state(step), step=step, first={tmp_path / "best_model.pth": {"weights": torch.ones(step)}})
    writer.close()
    assert _files(tmp_path) == ["best_model.pth", LATEST, PREVIOUS]
    assert (_epoch(tmp_path / LATEST), _epoch(tmp_path / PREVIOUS)) == (3, 2)
    assert writer.written == 3
    assert len(checkpoint_format.load_state_dict(tmp_path / "best_model.pth")["weights"]) == 3  # type: ignore[arg-type]


def test_the_highest_step_wins_whatever_the_files_times(tmp_path: Path) -> None:
    checkpoint_format.save(tmp_path / LATEST, _state(1), step=10)
    checkpoint_format.save(tmp_path / PREVIOUS, _state(2), step=9)
    os.utime(tmp_path / LATEST, (0, 0))
    assert checkpoint_format.newest(tmp_path).path.name == LATEST
    checkpoint_format.save(tmp_path / PREVIOUS, _state(3), step=11)
    os.utime(tmp_path / PREVIOUS, (0, 0))
    found = checkpoint_format.newest(tmp_path)
    assert (found.path.name, found.notes) == (PREVIOUS, ())
    assert found.state["progress"] == {"epoch": 3}
    checkpoint_format.save(tmp_path / PREVIOUS, _state(4), step=10)
    assert checkpoint_format.newest(tmp_path).path.name == LATEST, "the later one of the same step"


def test_a_damaged_one_is_named_and_the_other_used(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path / LATEST)
    for step in (1, 2):
        writer.save(_state(step), step=step)
    writer.close()
    _damage(tmp_path / LATEST)
    found = checkpoint_format.newest(tmp_path)
    assert found.path.name == PREVIOUS
    (note,) = found.notes
    assert f"{tmp_path / LATEST} is damaged: its SHA-256 is " in note
    assert note.endswith("checkpoint-previous.pt of step 1 is used")
    _damage(tmp_path / PREVIOUS)
    with pytest.raises(UserError, match=r"no checkpoint to continue from: .*latest\.pt is damaged.*previous\.pt is"):
        checkpoint_format.newest(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"neither checkpoint-latest\.pt nor checkpoint-previous\.pt is there"):
        checkpoint_format.newest(tmp_path / "empty")


def test_a_damaged_latest_never_takes_the_place_of_the_good_previous(tmp_path: Path) -> None:
    for step in (1, 2):
        writer = CheckpointWriter(tmp_path / LATEST)
        writer.save(_state(step), step=step)
        writer.close()
    assert _epoch(tmp_path / PREVIOUS) == 1, "a run that goes on keeps what the one before left"
    _damage(tmp_path / LATEST)
    writer = CheckpointWriter(tmp_path / LATEST)
    writer.save(_state(3), step=3)
    writer.close()
    assert (_epoch(tmp_path / LATEST), _epoch(tmp_path / PREVIOUS)) == (3, 1)


def test_a_run_that_goes_back_is_not_taken_over_by_what_it_left(tmp_path: Path) -> None:
    checkpoint_format.save(tmp_path / LATEST, _state(9), step=9)
    checkpoint_format.save(tmp_path / PREVIOUS, _state(8), step=8)
    writer = CheckpointWriter(tmp_path / LATEST)
    writer.save(_state(4), step=4)
    writer.close()
    assert checkpoint_format.newest(tmp_path).state["progress"] == {"epoch": 4}
    assert _files(tmp_path) == [LATEST]


def test_without_hard_links_the_old_file_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")  # what vfat answers

    monkeypatch.setattr(files.os, "link", refuse)
    writer = CheckpointWriter(tmp_path / LATEST)
    for step in (1, 2, 3):
        writer.save(_state(step), step=step)
    writer.close()
    assert (_epoch(tmp_path / LATEST), _epoch(tmp_path / PREVIOUS)) == (3, 2)
    assert _files(tmp_path) == [LATEST, PREVIOUS]


# One at a time


def test_one_write_is_under_way_and_periodic_ones_are_left_out(tmp_path: Path) -> None:
    pipe = tmp_path / "slow"
    os.mkfifo(pipe)  # the writing thread waits until somebody reads
    writer = CheckpointWriter(tmp_path / LATEST)
    slow = threading.Thread(target=lambda: pipe.open("wb").close(), daemon=True)
    writer._thread = slow
    slow.start()
    assert not writer.save(_state(1), step=1, periodic=True)
    assert writer.skipped == 1
    threading.Timer(0.2, lambda: pipe.open("rb").close()).start()
    assert writer.save(_state(2), step=2), "one that is not periodic waits"
    assert not slow.is_alive()
    writer.close()
    assert _epoch(tmp_path / LATEST) == 2


# Giving up


def test_three_failures_in_a_row_end_the_run_and_the_old_file_stays(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    writer = CheckpointWriter(tmp_path / "run" / LATEST)
    (tmp_path / "run").mkdir()
    writer.save(_state(1), step=1)
    writer.wait()
    (tmp_path / "run").rename(tmp_path / "gone")
    for step in (2, 3):
        writer.save(_state(step), step=step)
    writer.wait()
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["warning"] * 2
    assert "no checkpoint of step 3 (2 of 3 failures in a row): cannot write" in lines[1]
    with pytest.raises(UserError, match=r"latest\.pt is not of the run's last step: cannot write .*No such file"):
        writer.close()
    writer.save(_state(4), step=4)
    with pytest.raises(UserError, match=r"cannot write .*; given up after 3 failures in a row"):
        writer.wait()
    (tmp_path / "gone").rename(tmp_path / "run")
    assert _epoch(tmp_path / "run" / LATEST) == 1
    writer.save(_state(5), step=5)
    writer.close()
    assert _epoch(tmp_path / "run" / LATEST) == 5


def test_the_best_model_of_a_failed_write_comes_with_the_next_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    writer = CheckpointWriter(folder / LATEST)
    writer.save(_state(1), step=1, first={folder / "best_model.pth": {"weights": torch.ones(1)}})
    writer.wait()
    folder.mkdir()
    writer.save(_state(2), step=2)
    writer.close()
    assert _files(folder) == ["best_model.pth", LATEST]


def test_an_error_of_the_thread_is_raised_in_the_training_thread(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path / LATEST)
    writer._run({"not loadable": object()}, 1, {})
    with pytest.raises(TypeError, match="not loadable"):
        writer.save(_state(1), step=1)
    assert _files(tmp_path) == []


_INTERRUPTED = """
import sys, torch
from pathlib import Path
from ddp_train.checkpoint.async_writer import CheckpointWriter
writer = CheckpointWriter(Path(sys.argv[1]) / "checkpoint-latest.pt")
writer.save({"weights": torch.zeros(2_000_000)}, step=1)
raise SystemExit(3)
"""


def test_a_process_that_ends_in_order_finishes_the_write(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", _INTERRUPTED, str(tmp_path)], cwd=root, timeout=120, check=False)
    assert done.returncode == 3
    assert len(checkpoint_format.load(tmp_path / LATEST)["weights"]) == 2_000_000  # type: ignore[arg-type]
    shutil.rmtree(tmp_path)
