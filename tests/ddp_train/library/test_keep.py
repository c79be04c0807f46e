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


def test_a_schedule_that_is_made_after_its_optimizer_was_kept_does_not_set_the_rate_back(tmp_path: Path) -> None:
    def schedule_of(optimizer: torch.optim.Optimizer) -> Any:
        warm_up, rest = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=2), lr_scheduler.ExponentialLR(optimizer, 0.5)
        return lr_scheduler.SequentialLR(optimizer, [warm_up, rest], [3])

    first, again = (torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0) for _ in range(2))
    schedule, state = schedule_of(first), KeptState(0, dict)
    for _ in range(5):
        first.step()
        schedule.step()
    state.add({"optimizer": first, "schedule": schedule})
    after = KeptState(0, dict)
    after.load_state_dict(state.state_dict())
    after.add({"optimizer": again})
    after.add({"schedule": schedule_of(again)})
    assert again.param_groups[0]["lr"] == first.param_groups[0]["lr"] == 0.25


def test_lists_and_dicts_that_the_program_holds_itself_are_restored(tmp_path: Path) -> None:
    state, losses, best = KeptState(0, dict), [1.0], {"epoch": 3}
    state.add({"losses": losses, "best": best})
    losses.append(0.5)
    again: tuple[list[float], dict[str, int]] = [], {"epoch": 0}
    kept = resumed(state, tmp_path, losses=again[0], best=again[1]).kept
    assert again == ([1.0, 0.5], {"epoch": 3}) and kept.losses is again[0]
