"""The division of a global batch over unequal ranks, against brute force and by hand."""

from __future__ import annotations

import itertools
import random

import pytest

from ddp_train.distributed.load_balance import Hysteresis, Speed, divide, gain, seconds_of


@pytest.mark.parametrize("slower", [2, 3, 4])
def test_two_ranks_finish_together(slower: int) -> None:
    speeds = (Speed(0.0, 1.0), Speed(0.0, float(slower)))
    division = divide(600, speeds)
    assert division.samples == (600 * slower // (slower + 1), 600 // (slower + 1))
    # The bounds of an even split against this one: 1.5, 2.0 and 2.5.
    assert gain((300, 300), division.samples, speeds) + 1 == pytest.approx((slower + 1) / 2)


def test_the_formula_with_fixed_parts() -> None:
    speeds = (Speed(0.1, 0.01), Speed(0.3, 0.02), Speed(0.0, 0.04))
    total = 1000
    ready = (total + sum(s.fixed / s.each for s in speeds)) / sum(1 / s.each for s in speeds)
    division = divide(total, speeds)
    assert sum(division.samples) == total
    assert division.samples == pytest.approx([(ready - s.fixed) / s.each for s in speeds], abs=1)
    assert division.seconds == pytest.approx(ready, rel=0.01)


def test_no_division_is_better_than_the_best_of_all() -> None:
    draw = random.Random(0)
    for _ in range(60):
        total = draw.randint(3, 24)
        speeds = [Speed(draw.choice([0, 0.5, 3]), draw.uniform(0.5, 4), draw.choice([None, 12, 24])) for _ in range(3)]
        if sum(speed.most or total for speed in speeds) < total:
            continue
        found = divide(total, speeds)
        assert sum(found.samples) == total
        assert all(n <= (speed.most or total) for n, speed in zip(found.samples, speeds, strict=True))
        every = (s for s in itertools.product(range(total + 1), repeat=3) if sum(s) == total)
        fitting = (s for s in every if all(n <= (v.most or total) for n, v in zip(s, speeds, strict=True)))
        best = min(seconds_of(samples, speeds) for samples in fitting)
        # Rounding costs a sample at most, and a rank that would bring less than 5% is left out: three at the most.
        assert found.seconds <= best * 1.05**2 + max(speed.each for speed in speeds)


def test_limits_are_kept_and_the_rest_goes_to_the_others() -> None:
    assert divide(100, (Speed(0, 1, 40), Speed(0, 3), Speed(0, 3))).samples == (40, 30, 30)
    assert divide(100, (Speed(0, 1, 40), Speed(0, 3, 25), Speed(0, 3, 35))).samples == (40, 25, 35)
    with pytest.raises(ValueError, match="100 samples do not fit: the ranks have room for 99 together"):
        divide(100, (Speed(0, 1, 40), Speed(0, 3, 25), Speed(0, 3, 34)))


def test_a_rank_is_admitted_only_above_five_percent() -> None:
    # Alone 1000; with a rank k times as slow k / (k + 1) of that.
    assert divide(1000, (Speed(0, 1), Speed(0, 16))).idle == ()
    assert divide(1000, (Speed(0, 1), Speed(0, 30))).idle == (1,)
    # Communication takes its part of what is gained; where it has to be paid anyhow, it makes every gain smaller.
    fast = (Speed(0, 1), Speed(0, 10))
    assert divide(1000, fast, 60.0, joined=False).idle == (1,)
    assert divide(1000, fast, 60.0).idle == ()
    assert divide(1000, fast, 2000.0).idle == (1,)


def test_a_rank_whose_fixed_part_is_too_long_gets_nothing() -> None:
    division = divide(10, (Speed(0, 1), Speed(100, 0.1)))
    assert (division.samples, division.seconds) == ((10, 0), 10.0)


def test_shares_of_one_kind_are_equal() -> None:
    assert divide(65, (Speed(0.2, 1),) * 4).samples == (17, 16, 16, 16)


@pytest.mark.parametrize("speeds", [(), (Speed(0, 0),), (Speed(-1, 1),)])
def test_speeds_that_are_none_are_refused(speeds: tuple[Speed, ...]) -> None:
    with pytest.raises(ValueError, match="cannot divide"):
        divide(10, speeds)


@pytest.mark.parametrize(
    ("gains", "changes"),
    [
        ([0.06, 0.06, 0.0], [False, True, False]),
        ([0.06, 0.04, 0.06, 0.05], [False, False, False, True]),
        ([0.3, 0.06, 0.0], [True, False, False]),
        ([0.04, 0.04, 0.049], [False, False, False]),
        ([-0.5, 0.1, 0.1, 0.1], [False, False, True, False]),
    ],
)
def test_hysteresis(gains: list[float], changes: list[bool]) -> None:
    hysteresis = Hysteresis()
    assert [hysteresis.decide(gain) for gain in gains] == changes
