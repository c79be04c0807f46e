"""Every technique in one table. Each row passes every check in test_table.py, or says why one does not apply."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One technique.

    options   the command line that switches it on
    neutral   a command line under which it is on and changes nothing, None where there is none (`no_neutral` says why)
    ranks     None where two ranks must equal one; else the reason why the method does not allow that
    oracle    module:test that compares it with an independent implementation
    """

    name: str
    options: str
    oracle: str
    neutral: str | None = None
    no_neutral: str | None = None
    ranks: str | None = None
    network: str = ""
    """A model of its own, in place of the tiny ones."""


TABLE: tuple[Row, ...] = (
    Row(
        name="clip_grad",
        options="--clip-grad 0.05",
        neutral="--clip-grad 1e9",
        oracle="tests.ddp_train.test_step_parts:test_clipping_is_torchs",
    ),
    Row(
        name="label_smoothing",
        options="--label-smoothing 0.2",
        neutral="--label-smoothing 0",
        oracle="tests.ddp_train.test_step_parts:test_the_loss_is_a_sum_over_samples",
    ),
    Row(
        name="accumulate",
        options="--accumulate 3",
        neutral="--accumulate 1",
        oracle="tests.integration.test_exact_gradients:test_any_split_gives_the_gradient_of_the_global_batch",
    ),
    Row(
        name="own technique",
        options="--technique tests.ddp_train.techniques.own:noise",
        neutral="--technique tests.ddp_train.techniques.own:silence",
        oracle="tests.ddp_train.techniques.test_table:test_a_technique_of_the_users_own_takes_part",
    ),
)
