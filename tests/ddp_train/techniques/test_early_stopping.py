"""Early stopping and a resume; its rule is tested in tests/ddp_train/optim/test_lr_schedule.py."""

from __future__ import annotations

from pathlib import Path

from tests.ddp_train.techniques import runs


def test_a_run_that_was_stopped_early_continues_if_more_epochs_are_asked_for(tmp_path: Path) -> None:
    """It waits for two epochs again; the same number of epochs leaves it as it is."""
    words = "--early-stopping 2 --min-delta 1 --resume auto"
    for epochs, done in ((4, 3), (4, 3), (6, 5)):
        run = runs.make(f"{words} --epochs {epochs}", tmp_path / "run", runs.PLAIN)
        assert run.trainer.fit().epoch == done
