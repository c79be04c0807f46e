"""The front of the measurements: what is listed can be run, what is kept is shown, and the arithmetic is right."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.catalogue import CATALOGUE
from benchmarks.collectives import bus_bandwidth
from benchmarks.ddp_scaling import find_model
from benchmarks.harness import Arguments, Measurement, Option
from benchmarks.pictures import batch_figure, curves, start_up_figure, throughput_figure
from benchmarks.report import page, read_results
from benchmarks.turns import FEWEST, Spread, Turns

ROOT = Path(__file__).resolve().parents[2]
NEEDED = {"time_to_accuracy": ("--data-dir=DIR",)}
"""Options without which a measurement does not start."""


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)
def test_what_is_listed_can_be_run(entry, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(entry.module)
    assert list(inspect.signature(module.main).parameters) == ["argv"]
    assert module.main.name == entry.name
    for words in (["run", entry.name, "--help"], [entry.name, "--help"]):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 0
        assert entry.module in capsys.readouterr().out


def test_the_list_names_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [entry.name for entry in CATALOGUE]


def test_an_unknown_name_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "speed"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: run speed: no such measurement; known are input_pipeline, ")
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)
def test_a_wrong_value_is_one_line(entry, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is started: a count of 0 that reaches torchrun ends in a traceback of its own."""
    with pytest.raises(SystemExit):
        main([entry.name, "--help"])
    options = capsys.readouterr().out
    wrong = [(name, value) for name in ("ranks", "rounds", "runs", "seeds", "steps", "turns") for value in ("0", "x")]
    for name, value in [*wrong, ("delay-ms", "nan"), ("seconds", "0"), ("beside", "-1"), ("out", "a/b")]:
        if f"  --{name} " in options:
            assert main([entry.name, *NEEDED.get(entry.name, ()), f"--{name}={value}"]) == 2, name
            told = capsys.readouterr().err
            assert told.startswith("error: ") and f"--{name}" in told and value in told
            assert len(told.splitlines()) == 1


def test_a_measurement_is_a_program_of_its_own() -> None:
    command = [sys.executable, "-m", "benchmarks.topology_report", "--runs", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: argument --runs: '0' is not a whole number of at least 1")


def test_every_kept_result_is_on_the_page() -> None:
    shown = page()
    for name, result in read_results().items():
        assert f"[{name}.json]" in shown, name
        assert f"`{result['command']}`" in shown
        assert result["machine"]["processor"] in shown


def test_the_page_in_the_docs_is_what_the_results_say() -> None:
    command = [sys.executable, "-m", "benchmarks", "report"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == (ROOT / "docs" / "performance.md").read_text(), (
        "python -m benchmarks report -o docs/performance.md"
    )


def test_too_few_clean_rounds_are_not_measured() -> None:
    assert Turns([{"a": 1.0}] * FEWEST, 2).account() == {"clean_rounds": FEWEST, "disturbed_rounds": 2}
    few = Turns([{"a": 1.0}] * (FEWEST - 1), 9)
    assert not few.enough
    assert few.account()["not_measured"] == f"{FEWEST - 1} undisturbed rounds, {FEWEST} are needed"
    machine = {"gpus": [], "versions": {}, "date": "d", "processor": "p", "usable_cpus": 2}
    result = {"command": "python -m benchmarks.step_overhead", "machine": machine, **few.account()}
    assert f"Not measured: {FEWEST - 1} undisturbed rounds" in page({"kept": result})


def test_ratios_are_those_within_a_round() -> None:
    rounds = [{"ours": 2.0 * noise, "theirs": 1.0 * noise} for noise in (1.0, 5.0, 0.1, 3.0, 2.0)]
    turns = Turns(rounds, 0)
    assert turns.ratio("ours", "theirs") == Spread(2.0, 2.0, 2.0), "what both suffer cancels"
    assert turns.difference("ours", "theirs").median == 2.0
    assert turns.best(["ours", "theirs"]) == "ours"
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 5.0]) == Spread(3.0, 2.0, 4.0)


def test_bus_bandwidth_is_that_of_nccl_tests() -> None:
    """github.com/NVIDIA/nccl-tests, doc/PERFORMANCE.md: 2(n-1)/n, (n-1)/n and 1."""
    size, seconds = 8_000_000, 0.004
    assert bus_bandwidth("all-reduce", size, seconds, 8) == pytest.approx((2.0, 3.5))
    assert bus_bandwidth("all-gather", size, seconds, 8) == pytest.approx((2.0, 1.75))
    assert bus_bandwidth("broadcast", size, seconds, 8) == pytest.approx((2.0, 2.0))
    assert bus_bandwidth("all-reduce", size, seconds, 2) == pytest.approx((2.0, 2.0))


def run_of(*epochs: tuple[float, float], disturbed: bool = False) -> dict[str, object]:
    return {"disturbed": disturbed, "epochs": [{"seconds": s, "test_accuracy": a} for s, a in epochs]}


def test_curves_are_accuracy_over_the_time_spent() -> None:
    sort = "--preset speedrun --target 0.8"
    results = {
        "a": {
            "command": "python -m benchmarks.time_to_accuracy --data-dir DIR",
            "machine": {"processor": "P"},
            "runs": {sort: [run_of((2.0, 0.5), (3.0, 0.7)), run_of((9.0, 0.1), disturbed=True)]},
        },
        "b": {
            "command": "python launch.py --auto --preset quick --data-dir data",
            "best_test_accuracy": 0.8,
            "epochs": [{"seconds": 4.0, "test_accuracy": 0.8}],
        },
        "c": {
            "command": "python launch.py --auto --preset quick --epochs 1 --seed 1 --data-dir DIR",
            "best_test_accuracy": 0.6,
            "epochs": [{"seconds": 3.0, "test_accuracy": 0.6}],
        },
    }
    assert curves(results) == {
        sort: [[(2.0, 0.5), (5.0, 0.7)]],
        "--preset quick": [[(4.0, 0.8)]],
        "--preset quick --epochs 1": [[(3.0, 0.6)]],
    }


def scaling(batch: int, rounds: list[dict[str, float]]) -> dict[str, object]:
    return {"global_batch": batch, "rounds": rounds}


def test_lines_run_over_the_batches_of_a_network() -> None:
    found = {name: scaling(batch, [{"one": float(batch)}]) for name, batch in (("m:64", 64), ("m", 8), ("m:16", 16))}
    results = {"a": {"command": "python -m benchmarks.ddp_scaling --models m", "models": found}}
    figure = batch_figure(results)
    assert figure is not None
    (line,) = figure.axes[0].lines
    assert list(line.get_xdata()) == list(line.get_ydata()) == [8, 16, 64]
    assert batch_figure({"a": {**results["a"], "models": {"m": found["m"]}}}) is None
    elsewhere = {**results["a"], "machine": {"processor": "P"}, "models": {"m:32": scaling(32, [{"one": 1.0}])}}
    figure = batch_figure(results | {"b": elsewhere})
    assert figure is not None and list(figure.axes[0].lines[0].get_xdata()) == [8, 16, 64]


def test_a_network_may_be_named_with_its_batch() -> None:
    assert (find_model("small").batch, find_model("small:64").batch) == (512, 64)
    for wrong in ("smal", "small:", "small:1", "small:x"):
        with pytest.raises(ValueError, match="--models"):
            find_model(wrong)


def test_bars_are_medians_of_the_rounds() -> None:
    rounds = [{"one": 1.0, "two": 9.0}, {"one": 3.0, "two": 7.0}, {"one": 2.0, "two": 8.0}]
    results = {
        "a": {"command": "python -m benchmarks.start_up --ranks 2", "rounds": rounds},
        "b": {"command": "python -m benchmarks.ddp_scaling --models m", "models": {"m": scaling(8, rounds)}},
    }
    for figure in (start_up_figure(results), throughput_figure(results)):
        assert figure is not None
        assert [bar.get_width() for bar in figure.axes[0].patches] == [8.0, 2.0]
    assert start_up_figure({}) is None and throughput_figure({}) is None


def test_pictures_of_the_kept_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pictures", "-o", str(tmp_path / "new")]) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(path.name for path in written) == sorted(path.name for path in (tmp_path / "new").iterdir())
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    (tmp_path / "file").write_text("")
    assert main(["pictures", "-o", str(tmp_path / "file" / "below")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_command_of_a_result_has_an_empty_list_where_it_is_not_the_default() -> None:
    options = (Option("--targets", nargs="*", default=[0.8]), Option("--peer", action="append", default=[]))
    harness = Measurement("one", lambda arguments: {}, options, None, lambda figures: False)
    assert harness._words(Arguments(targets=[], peer=[])) == ["--targets"]
    assert harness._words(Arguments(targets=[0.9], peer=["a", "b"])) == ["--targets", "0.9", "--peer", "a", "b"]
