"""TensorBoard's curves behind a kill and a resume: every step and every epoch is there, once."""

from __future__ import annotations

from pathlib import Path

import pytest

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
