"""Schedules against formulas written out here and against torch's own schedulers."""

from __future__ import annotations

import warnings

import pytest
import torch

from ddp_train.options import ScheduleOptions
from ddp_train.schedule import create_schedule, set_learning_rate


def factors(scheduler: str, epochs: int = 10, steps: int = 10, warmup: float = 0.0) -> list[float]:
    options = ScheduleOptions(scheduler=scheduler, warmup_epochs=warmup)  # type: ignore[arg-type]
    schedule = create_schedule(options, epochs=epochs, steps_per_epoch=steps)
    return [schedule(step) for step in range(epochs * steps)]


def torch_factors(create: object, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = create(optimizer)  # type: ignore[operator]
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            scheduler.step()
    return found


def test_cosine_is_torchs() -> None:
    expected = torch_factors(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=100), 100)
    assert factors("cosine") == pytest.approx(expected, abs=1e-9)


def test_multistep_is_torchs() -> None:
    expected = torch_factors(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [60, 80], gamma=0.1), 100)
    assert factors("multistep") == pytest.approx(expected)


def test_constant() -> None:
    assert set(factors("constant")) == {1.0}


@pytest.mark.parametrize("scheduler", ["cosine", "multistep", "constant"])
def test_warm_up_rises_evenly_to_the_peak_and_no_step_is_wasted(scheduler: str) -> None:
    found = factors(scheduler, warmup=2.0)
    assert found[:20] == pytest.approx([(i + 1) / 21 for i in range(20)])
    assert found[20] == 1.0 and max(found) == 1.0 and min(found) > 0


def test_warm_up_takes_at_most_half_of_a_short_run() -> None:
    found = factors("cosine", epochs=1, warmup=5.0)
    assert found.index(max(found)) == 5


def test_every_group_follows_its_own_peak() -> None:
    a, b = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([{"params": [a], "initial_lr": 1.0}, {"params": [b], "initial_lr": 0.1}], lr=1.0)
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.05]
