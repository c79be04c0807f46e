"""The geometry of a chart."""

from __future__ import annotations

import pytest

from ddp_train.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Series,
    chart,
    linear_ticks,
    log_ticks,
    positions,
)


def test_a_curve_fills_the_plot_and_leaves_gaps() -> None:
    found = chart("Loss", "", [1, 2, 3], [Series("train", [2.0, None, 1.0])], str)
    assert found is not None
    (curve,) = found.curves
    assert found.xs == (LEFT, (LEFT + WIDTH - RIGHT) / 2, WIDTH - RIGHT)
    assert curve.ys == (TOP, None, (TOP + HEIGHT - BOTTOM) / 2)
    assert curve.path == f"M{LEFT:g} {TOP:g}M{WIDTH - RIGHT:g} {curve.ys[2]:g}"
    assert curve.texts == ("2.0", "-", "1.0") and len(curve.dots) == 2
    assert found.summary == "train: 2.0 in epoch 1, 1.0 in epoch 3"


def test_what_is_not_known_is_no_chart() -> None:
    assert chart("Loss", "", [1], [Series("train", [None])], str) is None
    assert chart("Loss", "", [], [Series("train", [])], str) is None
    found = chart("Loss", "", [1], [Series("train", [None]), Series("test", [1.0], 2)], str)
    assert found is not None and [one.name for one in found.curves] == ["test"]


@pytest.mark.parametrize("values", [[0.0, 0.0], [5.0], [-1.0, 1.0], [1e-300, 1e149], [1e149, -1e149], [5e-324, 0.0]])
def test_every_value_is_within_the_plot(values: list[float]) -> None:
    for log in (True, False):
        found = chart("x", "", range(1, len(values) + 1), [Series("x", values)], str, may_be_log=log)
        assert found is not None
        ys = [y for y in found.curves[0].ys if y is not None]
        assert all(TOP - 0.1 <= y <= HEIGHT - BOTTOM + 0.1 for y in ys), (ys, found.y_ticks)
        assert len(found.y_ticks) < 30


def test_round_ticks_from_below_to_above() -> None:
    assert linear_ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert linear_ticks(0, 37_000) == [0, 10_000, 20_000, 30_000, 40_000]
    assert log_ticks(0.008, 2.3) == pytest.approx([0.003, 0.01, 0.03, 0.1, 0.3, 1, 3])
    ticks = log_ticks(1e-9, 1e9)
    assert ticks[0] <= 1e-9 and ticks[-1] >= 1e9 and len(ticks) < 10


def test_each_kth_epoch_and_the_last() -> None:
    assert positions(3, 10) == [0, 1, 2] and positions(0) == []
    assert positions(10, 4) == [0, 3, 6, 9] and positions(11, 4) == [0, 3, 6, 9, 10]
