"""The goals: read from results, with a bound, and none that no result could miss."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.catalogue import find
from benchmarks.goals import GOALS, sooner_to, table


def shown(results: dict[str, Any]) -> list[str]:
    return table(results, lambda benchmark, result: result["by"] == benchmark)


def test_each_goal_is_of_a_benchmark_and_has_one_bound() -> None:
    for goal in GOALS:
        assert find(goal.benchmark) is not None
        assert (goal.at_least is None) != (goal.at_most is None)
        bound = goal.at_least if goal.at_least is not None else goal.at_most
        assert bound is not None and goal.held(bound)
        assert not goal.held(bound - 1e-6 if goal.at_least is not None else bound + 1e-6)


@pytest.mark.parametrize(("microseconds", "word"), [(49.9, "held"), (50.1, "missed")])
def test_a_figure_is_held_or_missed(microseconds: float, word: str) -> None:
    result = {"by": "step_overhead", "over_bare_us": {"trainer": {"median": microseconds}}}
    (line,) = (line for line in shown({"a": result}) if "step_overhead" in line)
    assert f"| at most 50 | 50 | {word}" in line
    assert [line for line in shown({"a": result}) if "| held |" in line or "| missed" in line] == [line]


@pytest.mark.parametrize(
    ("accuracies", "disturbed", "seconds"),
    [
        ((0.79, 0.795, 0.785), False, "20"),
        ((0.79, 0.795, 0.78), False, "not yet measured"),
        ((0.79, 0.795), False, "not yet measured"),
        ((0.79, 0.795, 0.785), True, "not yet measured"),
    ],
)
def test_an_accuracy_counts_as_the_mean_of_three_clean_seeds(
    accuracies: tuple[float, ...], disturbed: bool, seconds: str
) -> None:
    runs = [
        {"disturbed": disturbed and at == 0, "test_accuracy": accuracy, "epoch_seconds": 10.0 * (at + 1)}
        for at, accuracy in enumerate(accuracies)
    ]
    result = {"by": "time_to_accuracy", "runs": {"--preset speedrun --target 0.8": runs}}
    (line,) = (line for line in shown({"a": result}) if "to 79%" in line)
    assert f"| at most 45 | {seconds} |" in line


def runs_of(*epochs: tuple[float, float]) -> list[dict[str, Any]]:
    """Three clean runs of the same epochs: (seconds, accuracy)."""
    found = [{"seconds": seconds, "test_accuracy": accuracy} for seconds, accuracy in epochs]
    seconds = sum(seconds for seconds, _ in epochs)
    return [{"disturbed": False, "test_accuracy": epochs[-1][1], "epoch_seconds": seconds, "epochs": found}] * 3


def test_the_shortest_run_that_reaches_an_accuracy_counts_wherever_it_was_kept() -> None:
    short = {"by": "time_to_accuracy", "runs": {"--preset speedrun --target 0.8": runs_of((20, 0.8))}}
    long = {"by": "time_to_accuracy", "runs": {"--preset speedrun --target 0.93": runs_of((900, 0.94))}}
    lines = shown({"a": short, "b": long})
    assert any("to 79% on" in line and "| 20 | held" in line for line in lines)
    assert any("to 93% " in line and "| 900 | held" in line for line in lines)


@pytest.mark.parametrize(("accuracy", "ratio"), [(0.88, "2.5"), (0.95, "5.0")])
def test_a_peer_counts_up_to_the_epoch_that_reached_it_or_with_all_its_time(accuracy: float, ratio: str) -> None:
    ours, peer = runs_of((20, 0.96)), runs_of((50, 0.9), (50, 0.91))
    result = {"by": "time_to_accuracy", "runs": {"--preset speedrun --target 0.96": ours, "Lightning": peer}}
    assert f"{sooner_to(accuracy)(result):.1f}" == ratio
    for few in ([*peer[:2], {**peer[0], "disturbed": True}], peer[:2]):
        with pytest.raises(KeyError):
            sooner_to(accuracy)({"runs": {"--preset speedrun --target 0.96": ours, "Lightning": few}})


@pytest.mark.parametrize(
    ("tta", "disturbed", "shows"), [(0.961, False, "8000 | held"), (0.961, True, ""), (0.95, False, "")]
)
def test_the_longest_runs_count_once_by_the_accuracy_with_augmentation(tta: float, disturbed: bool, shows: str) -> None:
    run = {"disturbed": disturbed, "test_accuracy": 0.951, "test_accuracy_tta": tta, "epoch_seconds": 8000.0}
    result = {"by": "time_to_accuracy", "runs": {"--preset speedrun --target 0.96": [run]}}
    (line,) = (line for line in shown({"a": result}) if "to 96% with" in line)
    assert (shows or "not yet measured") in line
    (plain,) = (line for line in shown({"a": result}) if "to 94.51%" in line)
    assert "not reached" in plain  # one run is no mean


def test_a_share_of_the_matrix_rate_is_that_of_its_number_of_threads() -> None:
    share = {"models": {"speedrun": {"share": {"median": 0.66}}}}
    one = {"by": "limit", "command": "python -m benchmarks.limit --threads 1 --profile", **share}
    two = {"by": "limit", "command": "python -m benchmarks.limit", "models": {"speedrun": {"share": {"median": 0.55}}}}
    lines = [line for line in shown({"one": one, "two": two}) if "(limit)" in line]
    assert [line.split("|")[3].strip() for line in lines] == ["0.66", "0.55"]
