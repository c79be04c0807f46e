"""`python -m ddp_launch compare`: its output for people, programs and pipes, and its mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ddp_train.compare import command
from tests.ddp_train.compare.folders import run_folder

HOSTILE = "<script>alert(1)</script>\x1b[31m'\"&[bold]${{7*7}}"


def test_a_table_without_colours_in_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        run_folder(tmp_path / f"lr-{lr}-{seed}", [0.5, 0.9 + lr / 10 + seed / 100], lr=lr, seed=seed)
        for lr in (0.1, 0.2)
        for seed in (0, 1)
    ]
    runs.append(run_folder(tmp_path / "part", [0.3], lr=0.2, seed=2, epochs=2, finished=False))
    assert command.run([str(run) for run in runs]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert re.search(r"^best test accuracy +91\.50% ± 0\.71% \(2\) +92\.50% ± 0\.71% \(2\)", out, re.MULTILINE)
    assert re.search(
        r"^B +best test accuracy +\+1\.00 points +-2\.04 to \+4\.04 +within the spread$", out, re.MULTILINE
    )
    assert re.search(r"^B +2 +30\.00% test, epoch 1 +10\.0 s +not finished, 1 of 2 epochs", out, re.MULTILINE)
    assert "Welch's" in out


def test_names_are_no_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [run_folder(tmp_path / name, [0.9], model=f"{name}[bold]\x1b[31m\n") for name in ("[red]a", "b")]
    assert command.run([str(run) for run in runs]) == 0
    out = capsys.readouterr().out
    assert "/[red]a" in out
    assert "[red]a[bold]\\x1b[31m\\n" in out
    assert "\x1b" not in out


def test_json_is_pure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [run_folder(tmp_path / str(seed), [0.9 + seed / 100], seed=seed) for seed in (0, 1)]
    runs.append(run_folder(tmp_path / "other", [0.5], lr=0.3))
    assert command.run(["--json", *map(str, runs)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "ddp-train-compare/1"
    assert found["groups"][0]["outcomes"]["best_test_accuracy"]["n"] == 2
    assert found["groups"][1]["outcomes"]["best_test_accuracy"]["standard_deviation"] is None
    assert {one["verdict"] for one in found["comparisons"]} == {"unknown"}


def test_mistakes_are_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(run_folder(tmp_path / "run", [0.9]))
    (tmp_path / "empty").mkdir()
    cases = {
        (run, str(tmp_path / "empty")): "not a run folder",
        (run, str(tmp_path / "missing")): "no such folder",
        (run, str(tmp_path / "run" / "done.json")): "not a run folder",
        (run,): "expected two or more",
        (run, str(tmp_path / "empty" / ".." / "run")): "expected two or more",
        (run, run, "--target", "94"): "--target '94': expected an accuracy",
        (): "RUN",
        (run, run, "--colour"): "--colour",
    }
    for words, expected in cases.items():
        assert command.run(list(words)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert expected in line


def test_damaged_files_cost_only_themselves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_folder(tmp_path / "run", [0.9])
    broken = run_folder(tmp_path / "broken", [0.9], seed=1)
    for name in ("training_history.json", "config.yaml", "dataset.json"):
        (broken / name).write_text("{" * 5000)
    assert command.run([str(run), str(broken)]) == 0
    assert "broken" in capsys.readouterr().out


def test_the_page_takes_hostile_names_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = HOSTILE.replace("/", "|")
    values = {seed: [0.5, 0.9 + seed / 100] for seed in (0, 1)}
    runs = [run_folder(tmp_path / f"{name}{seed}", one, seed=seed, model=HOSTILE) for seed, one in values.items()]
    runs += [run_folder(tmp_path / f"b{seed}", [0.4, 0.7 + seed / 100], seed=seed, model="b") for seed in (0, 1)]
    assert command.run([*map(str, runs), "-o", str(tmp_path / "page.html")]) == 0
    assert "\x1b" not in capsys.readouterr().out
    html = (tmp_path / "page.html").read_text()
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert "49" not in re.findall(r"\$\{\{?(\d+)", html)
    assert "\x1b" not in html
    assert html.count("<circle") >= 4
    assert not re.search(r"(?:src|href)=['\"]?(?:https?:)?//", html)
