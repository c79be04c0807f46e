"""The examination at the end of a run: with test-time augmentation beside the plain accuracy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ddp_train.config.parse import with_values
from ddp_train.evaluate import main
from ddp_train.evaluation.after_training import finish
from ddp_train.observers.records import read_history
from tests.ddp_train.techniques.runs import PLAIN, make


@pytest.mark.parametrize(("words", "below"), [("", None), ("--tta-below 0.4", 0.4)])
def test_both_accuracies_are_told(
    words: str, below: float | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make(f"--tta flip+shifts {words}", tmp_path / "run", PLAIN)
    for observer in run.observers:
        observer.on_start(run.facts)
    run.trainer.fit()
    finish(run)
    found = read_history(tmp_path / "run" / "training_history.json")["examination"]
    # The evaluation of the saved model is a program of its own.
    of_the_file = {}
    for tta in ("none", "flip+shifts"):
        options = ["--tta", tta, *(words.split() if tta != "none" else [])]
        capsys.readouterr()
        assert main(["--checkpoint", str(tmp_path / "run"), "--json", *options]) == 0
        of_the_file[tta] = json.loads(capsys.readouterr().out)
    assert found == {
        "samples": of_the_file["none"]["samples"],
        "top1": of_the_file["none"]["top1"],
        "tta": "flip+shifts",
        "tta_below": below,
        "top1_tta": of_the_file["flip+shifts"]["top1"],
    }
    card = (tmp_path / "run" / "model_card.md").read_text()
    assert f"{found['top1_tta']:.2%}" in card and "test-time augmentation (flip+shifts" in card


def test_digits_are_not_mirrored(tmp_path: Path) -> None:
    run = make("--dataset digits --epochs 1 --batch-size 512", tmp_path / "run", "small")
    # As where the digits are taken for want of CIFAR-10: the option was fit for what was asked for.
    run = replace(run, config=with_values(run.config, {"tta": "flip"}))
    for observer in run.observers:
        observer.on_start(run.facts)
    run.trainer.fit()
    finish(run)
    assert set(read_history(tmp_path / "run" / "training_history.json")["examination"]) == {"samples", "top1"}
