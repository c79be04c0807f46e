"""A signal at every place of a run: where it stops, what it leaves, and that it goes on as if nothing had been."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ddp_core.errors import Stopped
from ddp_train.assemble.build import Run
from ddp_train.checkpoint import format as checkpoint_format
from ddp_train.data.pipeline.window import Batch, Window
from ddp_train.data.sources import decode
from ddp_train.engine.stop_signals import STATUS, StopSignals
from ddp_train.run_folder import claim
from tests.ddp_train.techniques import runs
from tests.ddp_train.techniques.test_table import same

OPTIONS = "--ema 0.8 --save-every epoch"


@contextmanager
def installed(stop: StopSignals | None = None) -> Iterator[StopSignals]:
    before = {number: signal.getsignal(number) for number in STATUS}
    stop = stop or StopSignals()
    stop.install()
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def tell(number: signal.Signals) -> None:
    """A signal whose handler has run when this returns; os.kill may give it to another thread, and later."""
    signal.raise_signal(number)


def in_evaluation(run: Run) -> None:
    """A signal at the first batch of the first evaluation."""
    pipeline = run.trainer.components.pipeline
    evaluate = pipeline.evaluate

    def batches(*arguments: Any, **named: Any) -> Iterator[Batch]:
        for index, batch in enumerate(evaluate(*arguments, **named)):
            if index == 0:
                tell(signal.SIGTERM)
            yield batch

    pipeline.evaluate = batches  # type: ignore[method-assign]


def in_step(number: int) -> Callable[[Run], None]:
    def prepare(run: Run) -> None:
        step = run.trainer.train_step

        def signalled(window: Window) -> None:
            if run.trainer.progress.step == number:
                tell(signal.SIGTERM)
            step(window)

        run.trainer.train_step = signalled  # type: ignore[method-assign]

    return prepare


@pytest.mark.parametrize(
    ("where", "step", "within"),
    [(in_step(0), 1, 1), (in_step(13), 14, 4), (in_step(9), 10, 10), (in_evaluation, 10, 10), (in_step(19), 20, 10)],
    ids=["first step", "a step", "an epoch's last step", "evaluation", "the last step"],
)
def test_a_signal_while_it_trains(where: Callable[[Run], None], step: int, within: int, tmp_path: Path) -> None:
    run = runs.make(OPTIONS, tmp_path, runs.STATEFUL)
    where(run)
    with installed(run.trainer.components.stop), pytest.raises(Stopped) as stopped:
        run.trainer.fit()
    assert stopped.value.status == 143 and stopped.value.together and f"after step {step}" in str(stopped.value)
    progress = checkpoint_format.newest(tmp_path).state["progress"]
    assert progress["step"] == step and progress["step_in_epoch"] == within  # type: ignore[index]
    again = runs.make(f"{OPTIONS} --resume auto", tmp_path, runs.STATEFUL)
    again.trainer.fit()
    whole, epochs = runs.trained("--ema 0.8", runs.STATEFUL)
    assert same(runs.weights(again), whole) and runs.rows_of_history(again) == epochs


def test_outside_of_training_there_is_nothing_to_wait_for() -> None:
    with installed() as stop:
        with pytest.raises(Stopped) as stopped, stop.raising():
            tell(signal.SIGINT)
        assert stopped.value.status == 130 and not stopped.value.together


@pytest.mark.parametrize("read", [lambda file: decode.read_image(file, (4, 4)), lambda file: decode.probe_size([file])])
def test_what_passes_over_bad_images_does_not_pass_over_a_signal(
    read: Callable[[str], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "image.png"
    Image.new("RGB", (4, 4)).save(file)
    opened = Image.open

    def interrupted(*arguments: Any) -> Image.Image:
        tell(signal.SIGTERM)
        return opened(*arguments)

    monkeypatch.setattr(Image, "open", interrupted)
    with installed() as stop, pytest.raises(Stopped), stop.raising():
        read(str(file))


def test_a_signal_that_came_too_late_to_stop_a_step_ends_the_run_behind_it() -> None:
    with installed() as stop, pytest.raises(Stopped), stop.deferred():
        tell(signal.SIGUSR1)
        tell(signal.SIGUSR1)  # the same one again: timeout(1) and job managers do that
        assert stop.received == signal.SIGUSR1


def test_under_slurm_a_signal_that_comes_again_is_the_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm signals every process of a step, and the launcher passes on what it gets, SIGUSR1 as SIGTERM."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with installed(StopSignals()) as stop, pytest.raises(Stopped), stop.deferred():
        tell(signal.SIGUSR1)
        time.sleep(0.1)
        tell(signal.SIGTERM)
        assert stop.received == signal.SIGUSR1


@pytest.mark.parametrize("prelude", ["", "stop.deferred().__enter__(); os.kill(os.getpid(), signal.SIGTERM);"])
def test_a_second_signal_or_one_at_the_start_ends_the_process(prelude: str) -> None:
    import subprocess
    import sys

    code = (
        "import os, signal, time; "
        "from ddp_train.engine.stop_signals import StopSignals; stop = StopSignals(); stop.install();"
        f"{prelude} time.sleep(0.1); os.kill(os.getpid(), signal.SIGTERM); time.sleep(5)"
    )
    found = subprocess.run([sys.executable, "-c", code], timeout=20, cwd=Path(__file__).parents[3])
    assert found.returncode == 143


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    config = runs.make("", tmp_path, runs.PLAIN).config
    config = replace(config, run=replace(config.run, resume="auto"))
    assert claim.finished(config) is None
    claim.mark_done(tmp_path, epochs=2, epoch=2, step=20, best={})
    assert "is finished: epoch 2" in (claim.finished(config) or "")
    longer = replace(config, run=replace(config.run, epochs=3))
    assert (
        claim.finished(longer) is None and claim.finished(replace(config, run=replace(config.run, resume=None))) is None
    )
    (tmp_path / claim.DONE).write_text("{")
    assert claim.finished(config) is None, "a damaged marker is none"
