"""A run folder to use: two epochs of digits, trained once."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddp_train.main import main


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation") / "run"
    words = ["--dataset", "digits", "--device", "cpu", "--epochs", "2", "--batch-size", "64", "--amp", "off"]
    assert main([*words, "--no-tensorboard", "--lr", "0.02", "--augment", "none", "--out-dir", str(folder)]) == 0
    return folder
