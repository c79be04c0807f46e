"""The search: its space, its rungs, and searches of real and of pretended runs that go on where they were ended."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from ddp_core.errors import UserError
from ddp_train.tune.search import LAUNCHER, Search, Settings, Trial, next_job, rungs, search_table
from ddp_train.tune.space import Choice, Range, draw, option_words, read_space

ROOT = Path(__file__).parents[3]
SPACE = {
    "lr": Range(0.001, 1.0, log=True),
    "batch_size": Range(32, 128, step=32, whole=True),
    "augment": Choice(("none",)),
}


def settings(**changes: object) -> Settings:
    values = {"space": "", "method": "halving", "trials": 9, "epochs": 9, "seed": 1, "eta": 3, "first_epochs": 1}
    return Settings(**(values | {"words": ()} | changes))  # type: ignore[arg-type]


def test_draws_are_a_function_of_seed_and_trial_within_their_ranges():
    drawn = [draw(SPACE, 3, trial) for trial in range(300)]
    assert drawn == [draw(SPACE, 3, trial) for trial in range(300)] and drawn[0] != draw(SPACE, 4, 0)
    rates = [values["lr"] for values in drawn]
    assert all(0.001 <= rate <= 1.0 for rate in rates)
    assert 110 < sum(rate < math.sqrt(0.001) for rate in rates) < 190, "even over the logarithm"
    assert {values["batch_size"] for values in drawn} == {32, 64, 96, 128}


def test_whole_numbers_reach_both_ends():
    assert {draw({"epochs": Range(1, 3, whole=True)}, 0, trial)["epochs"] for trial in range(50)} == {1, 2, 3}


def test_words_of_the_command_line():
    assert option_words({"lr": 0.1, "channels_last": False, "compile": True}) == [
        *("--lr=0.1", "--no-channels-last", "--compile")
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lrr: [1]", "lrr is not an option"),
        ("lr: {low: 1}", "lr takes low and high"),
        ("lr: {low: 1, high: 0.1}", "lr takes low < high"),
        ("lr: {low: 0, high: 1, log: true}", "low above 0 with log"),
        ("lr: {low: 0.1, high: 99999}", "--lr takes a number"),
        ("augment: [none, much]", "--augment takes one of"),
        ("lr: []", "lr takes a value"),
        ("- lr", "expected lines of the form"),
        ("lr: [", "not YAML"),
        ("", "expected lines"),
    ],
)
def test_a_space_that_cannot_work_is_refused_in_one_line(tmp_path, text, words):
    file = tmp_path / "space.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        read_space(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_rungs():
    assert rungs(9, 3, 1) == (1, 3, 9)
    assert rungs(10, 3, 1) == (1, 3, 9, 10)
    assert rungs(4, 2, 8) == (4,)


def test_a_third_goes_on_at_each_rung_and_failed_runs_never_do():
    scores: dict[int, dict[int, float | None]] = {}
    jobs = []
    while job := next_job(scores, 9, (1, 3, 9), 3):
        jobs.append(job)
        trial, epochs = job
        scores.setdefault(trial, {})[epochs] = None if trial == 8 else trial / 10
    assert jobs == [*((trial, 1) for trial in range(9)), (7, 3), (6, 3), (5, 3), (7, 9)]


def pretend(search: Search, ends: int | None = None) -> list[Sequence[str]]:
    """Run a search whose trials only write a history: the accuracy is nearer to 1 the nearer the rate is to 0.1."""
    commands: list[Sequence[str]] = []

    def start(command: Sequence[str], log: Path) -> int:
        if len(commands) == ends:
            raise KeyboardInterrupt
        commands.append(command)
        words = dict(word.removeprefix("--").split("=") for word in command if "=" in word)
        epochs = int(words.get("stop-after", words["epochs"]))
        accuracy = 1 / (1 + abs(math.log10(float(words["lr"])) + 1))
        columns = ("train_loss", "train_accuracy", "test_loss", "learning_rate", "seconds", "images_per_second")
        rows = [{"epoch": e + 1, "test_accuracy": accuracy, "global_batch": 8} for e in range(epochs)]
        document = {"schema": "ddp-train-history/1", "environment": {}, "best": {"epoch": 1, "test_accuracy": accuracy}}
        document["epochs"] = [row | dict.fromkeys(columns, 0.5) for row in rows]
        folder = Path(words["out-dir"])
        folder.mkdir(exist_ok=True)
        (folder / "training_history.json").write_text(json.dumps(document))
        return 0

    try:
        search.run(lambda line: None, start)
    except KeyboardInterrupt:
        assert ends is not None
    return commands


def test_a_search_finds_the_best_rate_and_goes_on_where_it_was_ended(tmp_path):
    whole, parts = (Search(settings(), SPACE, tmp_path / name) for name in ("whole", "parts"))
    commands = pretend(whole)
    assert len(commands) == 13
    best = whole.ranking[0]
    assert best.number == min(whole.trials, key=lambda n: abs(math.log10(float(whole.trials[n].values["lr"])) + 1))
    assert len(pretend(parts, ends=6)) == 6
    rest = pretend(Search(settings(), SPACE, tmp_path / "parts"))
    assert len(rest) == 7
    one, other = (json.loads((tmp_path / name / "search.json").read_text()) for name in ("whole", "parts"))
    assert one["trials"] == other["trials"]


def test_another_search_in_the_folder_is_refused(tmp_path):
    pretend(Search(settings(), SPACE, tmp_path))
    Search(settings(trials=12), SPACE, tmp_path)  # more trials are the same search
    with pytest.raises(UserError, match=r"another search \(seed differ\)"):
        Search(settings(seed=2), SPACE, tmp_path)
    (tmp_path / "search.json").write_text("{}")
    with pytest.raises(UserError, match="is not a search of ours"):
        Search(settings(), SPACE, tmp_path)


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ddp_train.tune", *words]
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(cwd), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=240)


def test_trials_are_started_by_a_file_of_an_installed_package(tmp_path):
    done = subprocess.run([sys.executable, LAUNCHER, "--version"], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0 and (LAUNCHER.parent / "__init__.py").is_file()


def test_trials_are_real_runs(tmp_path):
    """The input size is tuned: trials of two sizes, drawn with seed 0."""
    (tmp_path / "space.yaml").write_text("lr: [0.05, 0.01]\nimage_size: [12, 20]\n")
    for number in range(64):
        file = tmp_path / "data" / ("train" if number % 4 else "test") / str(number // 4 % 2) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 24), (number * 3,) * 3).save(file)
    words = [
        "search",
        "space.yaml",
        "--out",
        "found",
        "--trials",
        "2",
        "--epochs",
        "2",
        "--first-epochs",
        "1",
        "--eta",
        "2",
    ]
    common = "--cpu --nproc 1 --data-dir data --batch-size 32 --model resnet18 --width-mult 0.0625"
    done = run(*words, "--", *common.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "best: trial" in done.stdout and "test accuracy" in done.stdout
    assert (tmp_path / "found/search.png").read_bytes().startswith(b"\x89PNG")
    trials = json.loads((tmp_path / "found/search.json").read_text())["trials"]
    for trial in trials:
        facts = json.loads((tmp_path / f"found/trial-{trial['number']:03d}/dataset.json").read_text())
        assert facts["image_shape"] == [3, trial["values"]["image_size"], trial["values"]["image_size"]]
    assert {trial["values"]["image_size"] for trial in trials} == {12, 20}
    longest = max(trials, key=lambda trial: len(trial["scores"]))
    assert set(longest["scores"]) == {"1", "2"}
    history = json.loads((tmp_path / f"found/trial-{longest['number']:03d}/training_history.json").read_text())
    assert [epoch["epoch"] for epoch in history["epochs"]] == [1, 2], "the second rung went on from the first"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search", "missing.yaml", "--out", "x"], "error: missing.yaml: No such file"),
        (["search", "space.yaml"], "error: the following arguments are required: --out"),
        (["search", "space.yaml", "--out", "x", "--trials", "0"], "error: --trials: '0' is not a whole number from 1"),
        (["search", "space.yaml", "--out", "x", "--eta", "1"], "error: --eta takes a whole number of at least 2"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, words, message):
    (tmp_path / "space.yaml").write_text("lr: [0.1]\n")
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith(message) and done.stderr.count("\n") == 1, done.stderr


def test_the_table_of_a_large_space_fits_80_columns() -> None:
    names = ["lr", "batch_size", "augment", "weight_decay", "label_smoothing", "warmup_epochs"]
    names += ["stochastic_depth", "randaugment_magnitude"]
    values: dict[str, object] = dict.fromkeys(names, 0.0001234) | {"model": "package.module:a_function_of_a_long_name"}
    ranking = [Trial(number, values, {9: 0.5}) for number in range(3)] + [Trial(3, values, {1: None})]  # type: ignore[arg-type]
    stream = io.StringIO()
    Console(file=stream, width=80).print(search_table(ranking))
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    shown = " ".join(text.split())
    assert "test accuracy" in shown and "failed" in shown and "50.00%" in shown
    for name in names:
        assert shown.count(f"--{name.replace('_', '-')}") == 4, text
    assert "0.0001234" in shown and "package.module:a_function_of_a_long_name" in shown
