"""The optimizer of configurations: what it decides for hardware that is not here, and the tool as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ddp_core.errors import UserError
from ddp_train.config.parse import parse
from ddp_train.config.recommend import GB, Hardware
from ddp_train.tune.optimize import Machine, Measured, auto_optimize_config, suggest
from scripts.optimize_gpu import main

ROOT = Path(__file__).resolve().parents[3]
GPU = Machine(Hardware("cuda", gpu_memory=80 * GB, compute_capability=(9, 0), cpus=16), can_compile=True)
OLD = Machine(Hardware("cuda", 2, 2, gpu_memory=22 * GB, compute_capability=(6, 1), cpus=4), can_compile=True)
CPU = Machine(Hardware("cpu", cpus=4), can_compile=False, note="no GPU to use")


def decided(machine: Machine, *words: str, measured: Measured | None = None) -> dict[str, object]:
    return {change.name: change.after for change in suggest(machine, parse(words), measured)}


def test_a_data_centre_gpu() -> None:
    found = decided(GPU, "--model", "power", "--amp", "off", "--no-channels-last", "--batch-size", "128", "--lr", "0.1")
    assert found == {
        "batch_size": 512,
        "lr": 0.2,
        "accumulate": 1,
        "num_workers": 8,
        "amp": "bf16",
        "width_mult": 1.5,
        "compile": True,
        "channels_last": True,
    }


def test_two_older_gpus_and_a_transformer() -> None:
    found = decided(OLD, "--model", "vit", "--compile")
    assert (found["amp"], found["compile"], found["num_workers"]) == ("off", False, 1)
    assert "channels_last" not in found
    assert "lr" not in found, "a rate that is open follows the batch by itself"
    assert found["hidden_dim"] == 256


def test_what_was_measured_goes_over_what_is_known() -> None:
    found = decided(OLD, "--batch-size", "4096", measured=Measured(recommended=300, largest=150))
    assert (found["batch_size"], found["accumulate"]) == (600, 2)


def test_kernels_cannot_be_compiled_everywhere() -> None:
    assert decided(Machine(GPU.hardware, can_compile=False))["compile"] is False
    assert decided(GPU, "--reproducible")["compile"] is False


def test_the_file_is_written_and_can_be_read(tmp_path: Path) -> None:
    source = tmp_path / "run.yaml"
    source.write_text("epochs: 3\nmodel: small\nbatch_size_per_rank: 64\nlr: 0.1\namp: fp16\n")
    changes = auto_optimize_config(source, machine=CPU)
    target = tmp_path / "run_optimized.yaml"
    written = yaml.safe_load(target.read_text())
    assert written["epochs"] == 3
    assert (written["batch_size"], written["batch_size_per_rank"], written["amp"]) == (128, None, "off")
    assert written["lr"] == pytest.approx(0.1414)
    assert {change.name for change in changes if change.changed} >= {"batch_size", "lr", "amp"}
    assert parse(["--config", str(target)]).data.batch_size == 128
    again = auto_optimize_config(target, tmp_path / "again.yaml", machine=CPU)
    assert not [change for change in again if change.changed and change.name in ("batch_size", "lr", "amp")]


def test_a_file_that_is_no_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "run.yaml"
    source.write_text("bath_size: 3\n")
    with pytest.raises(UserError, match="unknown key 'bath_size', did you mean batch_size"):
        auto_optimize_config(source)
    assert main(["--config", str(source)]) == 2
    assert capsys.readouterr().err.startswith("error: --config")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: [3\n", "not YAML (line 2, column 1: expected"),
        ("- 3\n", "expected lines of the form"),
        ("epochs: three\n", "epochs takes a whole number"),
        ("preset: quick\n", "--preset is given on the command line"),
        (None, "No such file"),
    ],
)
def test_a_bad_file_is_one_line_and_nothing_is_written(
    tmp_path: Path, text: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "run.yaml").write_text(text)
    assert main(["--config", str(tmp_path / "run.yaml"), "--benchmark"]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert (len(said.err.splitlines()), said.out) == (1, "")
    assert not (tmp_path / "run_optimized.yaml").exists()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("missing/run.yaml", "there is no folder"),
        (".", "a folder, not a file"),
        ("run.yaml", "the file that is read"),
    ],
)
def test_a_place_that_cannot_be_written_is_told_before_the_measurement(
    tmp_path: Path, output: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "run.yaml"
    source.write_text("epochs: 3  # few\n")
    assert main(["--config", str(source), "--benchmark", "--output", str(tmp_path / output)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --output") and message in said
    assert len(said.splitlines()) == 1
    assert source.read_text() == "epochs: 3  # few\n"


def test_a_search_without_time_for_larger_sizes_decides_nothing() -> None:
    assert Measured.of(2, 4, "time") is None
    assert Measured.of(16, 64, "time") == Measured(16, 64)
    assert Measured.of(64, 64, "limit") == Measured(64, 64)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --config IN.yaml, or --monitor SECONDS"),
        (["--benchmark", "--monitor", "0"], "--benchmark is for --config"),
        (["--monitor", "-1"], "not a number of seconds"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1


def test_the_tool_in_words_without_a_gpu(tmp_path: Path) -> None:
    source = tmp_path / "run.yaml"
    source.write_text("dataset: digits\nchannels_last: false\n")
    command = [sys.executable, str(ROOT / "scripts" / "optimize_gpu.py"), "--config", str(source), "--monitor", "0.1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    if "no GPU to use" not in done.stderr:
        pytest.skip("this machine has a GPU")
    assert "channels-last  false   true" in done.stdout
    assert "nothing to watch" in done.stdout
    assert (tmp_path / "run_optimized.yaml").exists()


def test_the_finder_for_modules_is_there_too() -> None:
    import scripts.optimize_gpu
    from ddp_train.tune.batch_size_optimizer import BatchSizeOptimizer

    assert scripts.optimize_gpu.BatchSizeOptimizer is BatchSizeOptimizer
    with pytest.raises(AttributeError):
        _ = scripts.optimize_gpu.nothing
