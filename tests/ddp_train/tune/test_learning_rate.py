"""The learning-rate range test: its rule on known curves, and a run of it."""

from __future__ import annotations

import json
import math

import pytest

from ddp_core.errors import UserError
from ddp_train.main import main
from ddp_train.tune.learning_rate import range_test, smooth, suggest
from tests.ddp_train.techniques import runs


def test_the_suggestion_is_a_tenth_of_the_rate_at_the_lowest_loss():
    rates = [10 ** (-6 + at / 10) for at in range(71)]
    # A valley in the log of the rate, lowest at 0.1, steepest at 0.01.
    losses = [2.0 - math.exp(-((math.log10(rate) + 1) ** 2) / 2) + 3 * max(0.0, math.log10(rate)) for rate in rates]
    found = suggest(rates, losses)
    lowest = found.rates[min(range(len(found.smoothed)), key=found.smoothed.__getitem__)]
    assert found.suggestion == pytest.approx(lowest / 10)
    assert 0.05 < lowest < 1.5  # smoothing lags behind the curve
    assert found.steepest < lowest


def test_smoothing_is_corrected_for_its_start():
    assert smooth([3.0] * 5) == pytest.approx([3.0] * 5)


def test_a_loss_that_is_lost_from_the_start_is_refused():
    with pytest.raises(UserError, match="--tune lr: the loss was nan after 3 steps"):
        suggest([1e-6] * 4, [1.0, 1.0, 1.0, math.nan])
    with pytest.raises(UserError, match="--tune lr: the loss diverged after 4 steps"):
        suggest([1e-6] * 4, [1.0, 1.0, 1.0, 1e6])


def test_a_range_test_writes_its_result(tmp_path, capsys):
    out = tmp_path / "run"
    words = ["--dataset", "digits", "--device", "cpu", "--tune", "lr", "--out-dir", str(out), "--no-tensorboard"]
    assert main([*words, "--batch-size", "64", "--augment", "none"]) == 0
    found = json.loads((out / "lr_range_test.json").read_text())
    assert 1e-4 < found["suggestion"] < 2.0
    assert found["rates"][0] == pytest.approx(1e-6)
    assert (out / "lr_range_test.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert f"suggested peak learning rate {found['suggestion']:.2g}" in printed
    assert found["ran_away"] and "warning" not in printed


def test_a_loss_that_never_ran_away_is_warned_of(tmp_path, capsys, monkeypatch):
    falls = [2.0 - at / 100 for at in range(71)]
    rates = [10 ** (-6 + at / 10) for at in range(71)]
    assert not suggest(rates, falls).ran_away
    assert suggest(rates, [*falls[:-2], math.inf, math.inf]).ran_away
    assert suggest(rates, [*falls[:60], *[30.0] * 11]).ran_away
    monkeypatch.setattr("ddp_train.tune.learning_rate.HIGHEST", 1e-4)
    words = ["--dataset", "digits", "--device", "cpu", "--tune", "lr", "--out-dir", str(tmp_path), "--no-tensorboard"]
    assert main([*words, "--model", "tests.ddp_train.techniques.tiny:pooled"]) == 0
    assert "warning: the loss never ran away, up to a rate of 0.0001" in capsys.readouterr().out
    assert json.loads((tmp_path / "lr_range_test.json").read_text())["ran_away"] is False


def test_a_loss_that_is_lost_from_one_step_to_the_next_ends_the_test_with_a_suggestion(tmp_path):
    run = runs.make("--tune lr", tmp_path, "tests.ddp_train.techniques.tiny:cliff")
    found = range_test(run.trainer)
    assert found.ran_away and math.isfinite(found.losses[-1]) and found.suggestion < found.rates[-1] < 10.0
