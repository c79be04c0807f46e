"""An epoch's sums against sums that are taken at once."""

from __future__ import annotations

import pytest
import torch

from ddp_train.engine.metrics import MOST, Metrics
from ddp_train.optim.losses import cross_entropy_sum, summable


def fed(steps: int, micro_batches: int = 1, undone: int | None = None) -> tuple[Metrics, torch.Tensor]:
    """Sums, and what they ought to be; the step `undone` is taken back."""
    sums, expected = Metrics(torch.device("cpu")), torch.tensor([1.5, 2.0, 3.0], dtype=torch.float64)
    sums.start(1.5, 2.0, 3.0)
    draw = torch.Generator().manual_seed(1)
    for step in range(steps):
        sums.begin_step()
        for part in range(micro_batches):
            logits = torch.randn(2 + part, 5, generator=draw)
            targets = torch.randint(5, (2 + part,), generator=draw)
            mixed = torch.nn.functional.one_hot(targets, 5).float()
            loss = cross_entropy_sum()(logits, targets)
            sums.add(loss, logits, mixed if part else targets)
            if step != undone:
                right = (logits.argmax(1) == targets).sum()
                expected += torch.stack([summable(loss), right.double(), torch.tensor(2.0 + part).double()])
        if step == undone:
            sums.undo()
    return sums, expected


@pytest.mark.parametrize(("steps", "micro_batches"), [(1, 1), (3, 2), (2 * MOST + 3, 1), (3, MOST)])
def test_the_sums_are_exact(steps: int, micro_batches: int) -> None:
    sums, expected = fed(steps, micro_batches)
    assert torch.equal(sums.total(), expected)
    assert torch.equal(sums.total(), expected)  # asking changes nothing
    sums.start()
    assert sums.total().tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("undone", [0, 1, MOST, MOST + 1])
def test_a_step_is_taken_back(undone: int) -> None:
    sums, expected = fed(MOST + 2, 2, undone)
    assert torch.equal(sums.total(), expected)


def test_the_losses_of_a_step_are_told() -> None:
    sums, _ = fed(2)
    sums.begin_step()
    assert list(sums.of_step) == []
    for value in (1.0, float("nan")):
        sums.add(torch.tensor(value), torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))
    assert [str(loss.item()) for loss in sums.of_step] == ["1.0", "nan"]


def test_mean_losses_count_as_many_times_as_they_have_samples() -> None:
    sums = Metrics(torch.device("cpu"))
    for taken_back in (True, False):  # what is forgotten leaves no factor to the next loss
        sums.begin_step()
        sums.add_loss(torch.tensor(0.25), 3, 3)
        sums.add_loss(torch.tensor(2.0), 0)
        if taken_back:
            sums.undo()
    sums.begin_step()
    sums.add_loss(torch.tensor(0.5), 4)
    assert sums.total().tolist() == [0.25 * 3 + 2.0 + 0.5, 0.0, 7.0]
