"""Which runs are one group, what is said about groups, and that no more is said than is known."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest

from ddp_train.compare.comparison import Against, Comparison, compare
from ddp_train.report.read_run import read_run
from tests.ddp_train.compare.folders import program_folder, run_folder

A, B = (0.90, 0.91, 0.92), (0.95, 0.96, 0.97)


def of(*folders: Path, target: float | None = None) -> Comparison:
    return compare([read_run(folder) for folder in folders], target)


def two_groups(folder: Path, first: Any, second: Any) -> Comparison:
    runs = [run_folder(folder / f"a-{seed}", [0.1, value], seed=seed) for seed, value in enumerate(first)]
    runs += [run_folder(folder / f"b-{seed}", [0.1, value], seed=seed, lr=0.2) for seed, value in enumerate(second)]
    return of(*runs)


def best(comparison: Comparison, key: str = "best_test_accuracy") -> Against:
    return next(one for one in comparison.against if one.outcome.key == key)


def test_seeds_of_one_setting_are_a_group_with_mean_and_deviation(tmp_path: Path) -> None:
    found = two_groups(tmp_path, A, B)
    assert [(group.name, group.label, len(group.runs)) for group in found.groups] == [
        ("A", "lr 0.1", 3),
        ("B", "lr 0.2", 3),
    ]
    sample = found.samples["best_test_accuracy"]["A"]
    assert sample.mean == pytest.approx(0.91)
    assert sample.deviation == pytest.approx(stdev(A))
    assert [(one.kind, one.name, dict(one.values)) for one in found.differences] == [
        ("setting", "lr", {"A": "0.1", "B": "0.2"})
    ]


@pytest.mark.parametrize(
    ("first", "second", "verdict", "words"),
    [
        (A, B, "differs", "differs"),
        (B, A, "differs", "differs"),
        ((0.90, 0.94), (0.93, 0.95), "within", "within the spread"),
        ((0.9,), (0.95,), "unknown", "one seed each: the spread is unknown"),
        ((0.9,), B, "unknown", "one seed of A: its spread is unknown"),
        (A, (0.95,), "unknown", "one seed of B: its spread is unknown"),
        ((0.9, 0.9), (0.9, 0.9), "equal", "equal"),
        ((0.9, 0.9), (0.95, 0.95), "differs", "differs, and neither has any spread"),
    ],
)
def test_a_difference_counts_where_it_is_more_than_the_spread(
    tmp_path: Path, first: Any, second: Any, verdict: str, words: str
) -> None:
    one = best(two_groups(tmp_path, first, second))
    assert one.verdict == verdict
    assert one.words == words
    assert one.interval == ("+2.73 to +7.27" if (first, second) == (A, B) else one.interval)
    assert (one.interval == "-") is (verdict in ("unknown", "equal") or "neither" in words)


def test_repetitions_of_one_seed_are_one_value_but_for_times(tmp_path: Path) -> None:
    again = [run_folder(tmp_path / f"a{number}", [0.9], seconds=10 + number) for number in range(3)]
    found = of(
        *again,
        *(run_folder(tmp_path / f"b{seed}", [0.8 + seed / 50], lr=0.3, seconds=30, seed=seed) for seed in (0, 1)),
    )
    assert len(found.samples["best_test_accuracy"]["A"].values) == 1
    assert len(found.samples["seconds"]["A"].values) == 3
    assert best(found).words == "one seed of A: its spread is unknown"
    assert best(found, "seconds").verdict == "differs"
    assert "A: several runs of seed 0 count as one, but for times" in found.notes


def test_a_run_that_is_not_finished_is_shown_and_not_counted(tmp_path: Path) -> None:
    whole, part = run_folder(tmp_path / "a", [0.9], seed=1), run_folder(tmp_path / "b", [0.1], finished=False)
    found = of(whole, part)
    assert len(found.groups) == 1
    assert found.samples["best_test_accuracy"]["A"].values == (0.9,)
    assert "A: 1 run is not finished, and in no mean" in found.notes
    assert of(part, run_folder(tmp_path / "c", [0.2], lr=0.5, finished=False)).outcomes == ()


def test_the_time_to_a_target_only_where_all_runs_reach_it(tmp_path: Path) -> None:
    runs = [run_folder(tmp_path / f"a{seed}", [0.5, 0.91, 0.95], seed=seed) for seed in (0, 1)]
    runs.append(run_folder(tmp_path / "b0", [0.5, 0.6, 0.91], lr=0.2))
    runs.append(run_folder(tmp_path / "b1", [0.5, 0.6, 0.7], lr=0.2, seed=1))
    found = of(*runs, target=0.9)
    assert found.samples["seconds_to_target"]["A"].values == (20.0, 20.0)
    assert found.samples["seconds_to_target"]["B"].values == (30.0,)
    assert "seconds_to_target" not in {one.outcome.key for one in found.against}
    assert "B: 1 of 2 finished runs have not reached the target" in found.notes
    assert of(*runs).target is None
    assert of(run_folder(tmp_path / "c", [0.95], target=0.9), runs[0]).target == 0.9


def test_splits_are_not_mixed(tmp_path: Path) -> None:
    found = of(run_folder(tmp_path / "a", [0.9]), run_folder(tmp_path / "b", [0.8], split="val", val_split=0.1))
    assert not found.samples["best_test_accuracy"]["B"].values
    assert not found.samples["best_val_accuracy"]["A"].values
    assert {one.outcome.key for one in found.against} == {"final_train_loss", "seconds", "images_per_second"}
    assert any("are not compared with one another" in note for note in found.notes)


def test_other_data_is_another_group_and_other_machines_are_named(tmp_path: Path) -> None:
    first = run_folder(tmp_path / "a", [0.9], joules=3.6e6)
    other = run_folder(tmp_path / "b", [0.9], content="xyz", environment={"torch": "2.15", "world_size": 4})
    same = run_folder(tmp_path / "c", [0.9], seed=2, environment={"torch": "2.11"})
    found = of(first, other, same)
    assert [len(group.runs) for group in found.groups] == [2, 1]
    assert {(one.kind, one.name): one.values["A"] for one in found.differences} == {
        ("data", "content"): "abc",
        ("version", "torch"): "2.14.1, 2.11",
        ("machine", "world size"): "2",
    }
    assert found.samples["energy_kwh"]["A"].values == (1.0,)


def test_runs_of_another_program_are_grouped_by_their_command(tmp_path: Path) -> None:
    runs = [
        program_folder(tmp_path / "0", "--log-dir", "x0", "train.py", "--lr", "1", "--seed", "0"),
        program_folder(tmp_path / "1", "--log-dir=x1", "train.py", "--lr", "1", "--seed=1"),
        program_folder(tmp_path / "2", "train.py", "--lr", "2", status=1),
    ]
    found = of(*runs)
    assert [len(group.runs) for group in found.groups] == [2, 1]
    assert [group.label for group in found.groups] == ["launch.py train.py --lr 1", "launch.py train.py --lr 2"]
    assert found.samples["launch_seconds"]["A"].values == (5.0, 5.0)
    assert "B: 1 run is not finished, and in no mean" in found.notes


def test_a_config_file_of_another_program_hides_neither_its_end_nor_its_command(tmp_path: Path) -> None:
    runs = [program_folder(tmp_path / lr, "train.py", "--lr", lr) for lr in "12"]
    for run in runs:
        (run / "config.yaml").write_text("model: gpt\n")
    found = of(*runs)
    assert [group.label for group in found.groups] == ["launch.py train.py --lr 1", "launch.py train.py --lr 2"]
    assert found.samples["launch_seconds"]["A"].values == (5.0,)
    assert not any("not finished" in note for note in found.notes)


def test_an_option_without_a_value_takes_no_other_word(tmp_path: Path) -> None:
    runs = [
        program_folder(tmp_path / "0", "train.py", "--resume", "--lr", "0.1"),
        program_folder(tmp_path / "1", "train.py", "--resume", "--wd", "0.1"),
        program_folder(tmp_path / "2", "train.py", "--seed", "-1", "--lr", "0.1", "--resume"),
    ]
    assert [group.label for group in of(*runs).groups] == ["launch.py train.py --lr 0.1", "launch.py train.py --wd 0.1"]


def test_a_loop_of_ones_own_is_compared_by_what_it_logs(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path / str(number), [0.5]) for number in range(2)]
    for number, folder in enumerate(folders):
        (folder / "config.yaml").unlink()
        history = json.loads((folder / "training_history.json").read_text())
        history["epochs"][-1] |= {"columns": ["error", "seconds"], "error": number + 0.5}
        history["environment"]["command"] = ["own.py", "--epochs", str(number), "--out-dir", str(folder)]
        (folder / "training_history.json").write_text(json.dumps(history))
    found = of(*folders)
    assert [group.label for group in found.groups] == ["own.py --epochs 0", "own.py --epochs 1"]
    assert found.samples["final:error"]["B"].values == (1.5,)
    assert best(found, "final:error").difference == "+1.000"


def test_an_option_that_an_older_version_did_not_have_sets_no_run_apart(tmp_path: Path) -> None:
    older = run_folder(tmp_path / "a", [0.9])
    newer = run_folder(tmp_path / "b", [0.8], seed=1, hard_samples=None, label_smoothing=0.0)
    other = run_folder(tmp_path / "c", [0.7], seed=1, hard_samples=0.5)
    found = of(older, newer, other)
    assert [(group.label, len(group.runs)) for group in found.groups] == [
        ("hard_samples -", 2),
        ("hard_samples 0.5", 1),
    ]
    assert found.samples["best_test_accuracy"]["A"].values == (0.9, 0.8)


def test_many_groups_have_names(tmp_path: Path) -> None:
    found = of(*(run_folder(tmp_path / str(number), [0.5], lr=number) for number in range(28)))
    assert [group.name for group in found.groups][24:] == ["Y", "Z", "AA", "AB"]
