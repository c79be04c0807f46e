"""TensorBoard's curves behind a kill and a resume: every step and every epoch is there, once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ddp_train.observers.records import read_history
from ddp_train.observers.tensorboard import open_writer
from tests.ddp_train.techniques import runs


@pytest.mark.parametrize("at", [4, 14, 18])
def test_event_files_have_every_step_once(at: int, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    runs.train_with_a_kill("--tensorboard --log-every 1", tmp_path, runs.PLAIN, at=at, saved=3)
    seen = {}
    for part, tag in (("steps", "step/loss"), ("epochs", "loss/train")):
        events = accumulator.EventAccumulator(str(tmp_path / "tensorboard" / part))
        events.Reload()
        seen[part] = [event.step for event in events.Scalars(tag)]
    assert seen == {"steps": list(range(1, 21)), "epochs": [1, 2]}


@pytest.mark.parametrize("ahead_s", [0, 86_400])
def test_files_of_the_same_second_or_of_a_clock_that_was_set_back(ahead_s: int, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for start in (1, 3, 5):  # each resumes the one before it, which had gone two steps too far
        writer = open_writer(tmp_path, purge_step=start)
        for step in range(start, start + 4):
            writer.add_scalar("loss", step / start, step)
        writer.close()
        newest = max(tmp_path.glob("events.out.tfevents.*"), key=lambda file: file.name)
        second = f"{int(time.time()) + ahead_s:010d}"
        newest.rename(tmp_path / f"events.out.tfevents.{second}.zzz.{start}")
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (step, pytest.approx(step / min(5, (step - 1) // 2 * 2 + 1))) for step in range(1, 9)
    ]


def test_the_time_of_all_attempts_is_known(tmp_path: Path) -> None:
    _, run = runs.train_with_a_kill("--epochs 3", tmp_path, runs.PLAIN, at=17, saved=3)
    epochs = read_history(tmp_path / "training_history.json")["epochs"]
    before = run.facts.seconds_before
    # One whole epoch, and the second up to step 15; that epoch's own clock continued.
    assert epochs[0]["seconds"] < before < epochs[0]["seconds"] + epochs[1]["seconds"]
    assert run.trainer.progress.total_seconds == pytest.approx(sum(epoch["seconds"] for epoch in epochs))
