"""Schedules against formulas written out here and against torch's own schedulers."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ddp_core.errors import UserError
from ddp_train.config.options import ScheduleOptions
from ddp_train.config.parse import parse
from ddp_train.observers.records import EpochRecord
from ddp_train.optim.lr_schedule import create_schedule, set_learning_rate
from ddp_train.techniques import early_stopping, plateau
from tests.ddp_train.contexts import make_context


def factors(
    scheduler: str, epochs: int = 10, steps: int = 10, warmup: float = 0.0, peak: float = 1.0, **more: Any
) -> list[float]:
    options = ScheduleOptions(scheduler=scheduler, warmup_epochs=warmup, **more)  # type: ignore[arg-type]
    schedule = create_schedule(options, epochs=epochs, steps_per_epoch=steps, peak_rate=peak)
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


def test_milestones_count_from_the_start_of_the_run() -> None:
    found = factors("multistep", warmup=2.0, milestones="5,0.8", gamma=0.5)
    assert [found[step] for step in (49, 50, 79, 80, 99)] == [1.0, 0.5, 0.5, 0.25, 0.25]


def test_step_is_torchs() -> None:
    expected = torch_factors(lambda o: torch.optim.lr_scheduler.StepLR(o, 30, gamma=0.2), 100)
    assert factors("step", step_size=3, gamma=0.2) == pytest.approx(expected)


def test_exponential_is_torchs() -> None:
    expected = torch_factors(lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.8), 10)
    assert factors("exponential", steps=1, gamma=0.8) == pytest.approx(expected)
    assert factors("exponential", epochs=100, steps=1)[50] == pytest.approx(0.1)


@pytest.mark.parametrize(("t_0", "t_mult"), [(2, 2), (3, 1), (1, 3)])
def test_warm_restarts_are_torchs(t_0: int, t_mult: int) -> None:
    expected = torch_factors(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 10 * t_0, t_mult, eta_min=0.1), 100
    )
    found = factors("warm_restarts", peak=0.5, eta_min=0.05, t_0=t_0, t_mult=t_mult)
    assert found == pytest.approx(expected, abs=1e-9)


def test_open_warm_restarts_end_a_cycle_with_the_run() -> None:
    found = factors("warm_restarts", epochs=14, steps=10)
    assert [step for step in range(1, 140) if found[step] > found[step - 1]] == [20, 60]
    assert found[-1] < 0.01


def test_onecycle_is_torchs() -> None:
    # torch reaches its end in the last step, ours just after it: 101 of its steps are 100 of ours.
    expected = torch_factors(lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 1.0, total_steps=101), 101)
    found = factors("onecycle", pct_start=29.3 / 100)  # torch's rise ends at pct_start * 101 - 1
    assert found == pytest.approx(expected[:100], abs=1e-9)


def test_linear_is_torchs() -> None:
    expected = torch_factors(lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.25, total_iters=100), 100)
    assert factors("linear", peak=0.2, eta_min=0.05) == pytest.approx(expected)


def test_triangular_is_two_lines() -> None:
    expected = np.interp(np.arange(100), [0, 40, 100], [0.1, 1.0, 0.1])
    assert factors("triangular", peak=1.0, eta_min=0.1, pct_start=0.4) == pytest.approx(expected.tolist())


def test_plateau_is_torchs() -> None:
    losses = [1.0, 0.9, 0.9, 0.91, 0.89999, 0.5, 0.6, 0.6, 0.6, 0.4, 0.4, 0.4, 0.4, 0.4]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    oracle = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=2, min_lr=0.2)
    context = make_context(nn.Linear(1, 1), scheduler="plateau", gamma=0.5, patience=2, eta_min=0.02)
    ours = plateau.create(context)  # its peak rate is 0.1
    assert ours.rate is not None and ours.after_epoch is not None and ours.state is not None
    for epoch, loss in enumerate(losses):
        oracle.step(loss)
        assert not ours.after_epoch(record(epoch + 1, loss=loss))
        assert ours.rate(0) == pytest.approx(optimizer.param_groups[0]["lr"])
    assert ours.rate(0) == pytest.approx(0.2), "the floor was reached"


def test_early_stopping_counts_epochs_without_a_better_accuracy() -> None:
    context = make_context(nn.Linear(1, 1), early_stopping=2, min_delta=0.01)
    stopping = early_stopping.create(context)
    assert stopping.after_epoch is not None
    accuracies = [0.5, 0.6, 0.605, 0.62, 0.61, 0.625, 0.7]
    ends = [stopping.after_epoch(record(epoch + 1, accuracy=value)) for epoch, value in enumerate(accuracies)]
    # 0.605 and 0.625 are not better by more than 0.01; the second epoch in a row without one ends the run.
    assert ends == [False, False, False, False, False, True, False]


@pytest.mark.parametrize("text", ["", "a", "0.5,", "-1", "nan", "inf"])
def test_milestones_that_are_no_numbers_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--milestones"):
        factors("multistep", milestones=text)


def test_a_floor_above_the_peak_is_refused() -> None:
    with pytest.raises(UserError, match="is above the peak"):
        factors("cosine", peak=0.1, eta_min=0.5)


def record(epoch: int, loss: float = 1.0, accuracy: float = 0.5) -> EpochRecord:
    return EpochRecord(
        epoch=epoch,
        train_loss=1.0,
        train_accuracy=0.5,
        loss=loss,
        accuracy=accuracy,
        learning_rate=0.1,
        seconds=1.0,
        images_per_second=1.0,
        global_batch=8,
    )


def test_constant() -> None:
    assert set(factors("constant")) == {1.0}


@pytest.mark.parametrize("scheduler", ["cosine", "multistep", "constant"])
def test_warm_up_rises_evenly_to_the_peak_and_no_step_is_wasted(scheduler: str) -> None:
    found = factors(scheduler, warmup=2.0)
    assert found[:20] == pytest.approx([(i + 1) / 21 for i in range(20)])
    assert found[20] == 1.0 and max(found) == 1.0 and min(found) > 0


@pytest.mark.parametrize("start", [0.0, 0.1, 1.0])
def test_warm_up_from_a_share_of_the_peak_is_torchs(start: float) -> None:
    found = factors("constant", warmup=2.0, warmup_start=start)
    if start:  # torch takes no zero
        expected = torch_factors(lambda o: torch.optim.lr_scheduler.LinearLR(o, start, 1.0, total_iters=20), 100)
        assert found == pytest.approx(expected)
    assert found[0] == start and found[20] == 1.0
    with pytest.raises(UserError, match="--warmup-start with --scheduler onecycle"):
        parse(["--warmup-start", "0.1", "--scheduler", "onecycle"])


def test_warm_up_takes_at_most_half_of_a_short_run() -> None:
    found = factors("cosine", epochs=1, warmup=5.0)
    assert found.index(max(found)) == 5


def test_every_group_follows_its_own_peak() -> None:
    a, b = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([{"params": [a], "initial_lr": 1.0}, {"params": [b], "initial_lr": 0.1}], lr=1.0)
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.05]
