"""What run.keep() takes: what a checkpoint can hold is there again after a resume."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from ddp_train.checkpoint import format as checkpoint_format
from ddp_train.library.keep import KeptState


def resumed(before: KeptState, folder: Path, **things: Any) -> KeptState:
    """A new run's state, from the checkpoint of `before`."""
    checkpoint_format.save(folder / "checkpoint.pt", before.state_dict())
    after = KeptState(0, dict)
    after.load_state_dict(dict(checkpoint_format.load(folder / "checkpoint.pt")))
    after.add(things)
    return after


def test_numbers_of_numpys_are_kept_as_pythons(tmp_path: Path) -> None:
    state = KeptState(0, dict)
    state.add({"best": np.float32(0.5), "count": 0, "seen": False})
    assert state.kept.best == 0.5
    state.kept.best = max(state.kept.best, np.mean([0.75]))
    state.kept.count, state.kept.seen = np.int64(3), np.bool_(True)
    kept = resumed(state, tmp_path, best=0.0, count=0, seen=False).kept
    assert [(type(value), value) for value in (kept.best, kept.count, kept.seen)] == [
        (float, 0.75),
        (int, 3),
        (bool, True),
    ]


@pytest.mark.parametrize("nested", [False, True])
def test_a_schedule_with_a_counter_is_kept(nested: bool, tmp_path: Path) -> None:
    def made() -> tuple[torch.optim.Optimizer, Any, Any]:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
        steps = lr_scheduler.MultiStepLR(optimizer, [2, 4, 4], 0.5)
        if not nested:
            return optimizer, steps, steps
        warm_up = lr_scheduler.LinearLR(optimizer, 0.5, total_iters=2)
        return optimizer, steps, lr_scheduler.SequentialLR(optimizer, [warm_up, steps], [1])

    def rates(optimizer: torch.optim.Optimizer, schedule: Any, count: int) -> list[float]:
        found = []
        for _ in range(count):
            optimizer.step()
            schedule.step()
            found.append(optimizer.param_groups[0]["lr"])
        return found

    optimizer, _, schedule = made()
    state = KeptState(0, dict)
    state.add({"optimizer": optimizer, "schedule": schedule})
    rates(optimizer, schedule, 3)
    again, steps, schedule_again = made()
    steps.milestones = Counter([7])
    resumed(state, tmp_path, optimizer=again, schedule=schedule_again)
    assert steps.milestones == Counter([2, 4, 4]) and isinstance(steps.milestones, Counter)
    assert rates(again, schedule_again, 4) == rates(optimizer, schedule, 4)
