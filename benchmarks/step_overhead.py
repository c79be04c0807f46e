"""CPU time that a trainer adds to the step of a bare loop: this one, accelerate and Lightning, on a null model.

    python -m benchmarks.step_overhead [--rounds 9] [--out NAME]

The network is one tiny linear map, so that a step is nothing but overhead: CPU time over 400 steps, on one thread, with
SGD and momentum. The bare loop has the batches in a list, clears the gradient, runs forward, loss and backward, and
steps. Ours is the trainer as it is built by default, with the accuracy and loss counted, the records and the progress
report on, over the same batches in memory; once with the input pipeline left out, as in the others, and once whole.
accelerate and Lightning take part where they are installed, Lightning with its progress bar and logger off.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import itertools
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import AGAINST, DEVICE, Figures, Measurement, rounds
from benchmarks.turns import Turns, take_turns
from ddp_train.assemble.build import build
from ddp_train.config.parse import parse
from ddp_train.data.pipeline.window import Batch, Pipeline, Window
from ddp_train.distributed.process_group import Ranks, choose_device
from ddp_train.engine.trainer import Trainer

STEPS, BATCH, CLASSES = 400, 16, 10
BARE, AGAIN = "bare loop", "bare loop again"


def null_network(num_classes: int = CLASSES, image_shape: tuple[int, int, int] = (3, 32, 32)) -> nn.Module:
    """The first pixel of each channel through one linear map: [n, C, H, W] -> [n, num_classes]."""
    return _First(num_classes, image_shape[0])


class _First(nn.Module):
    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images[:, :, 0, 0])


def measure(device: torch.device, count: int, folder: Path) -> Turns:
    """Microseconds of CPU time a step, by case."""
    batches = [
        (torch.randn(BATCH, 3, 32, 32, device=device), torch.randint(CLASSES, (BATCH,), device=device))
        for _ in range(STEPS)
    ]
    cases: dict[str, Callable[[], float]] = {BARE: _bare(batches, device), AGAIN: _bare(batches, device)}
    cases["trainer"] = _ours(batches, device, folder / "steps")
    cases["trainer with its input pipeline"] = _whole(device, folder / "whole")
    if importlib.util.find_spec("accelerate"):
        cases["accelerate"] = _accelerate(batches, device)
    if importlib.util.find_spec("lightning"):
        cases["lightning"] = _lightning(batches, device)
    return take_turns(cases, count, unit="us a step")


def _timed(work: Callable[[], object], device: torch.device) -> float:
    """Microseconds of CPU time a step; what the device still does afterwards does not count."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.process_time()
    work()
    return 1e6 * (time.process_time() - started) / STEPS


def _sgd(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True)


def _loop(
    batches: list[tuple[Tensor, Tensor]],
    device: torch.device,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    backward: Callable[[Tensor], object] = Tensor.backward,
) -> Callable[[], float]:
    def work() -> None:
        for images, labels in batches:
            optimizer.zero_grad(set_to_none=True)
            backward(nn.functional.cross_entropy(network(images), labels))
            optimizer.step()

    return lambda: _timed(work, device)


def _bare(batches: list[tuple[Tensor, Tensor]], device: torch.device) -> Callable[[], float]:
    network = null_network().to(device)
    return _loop(batches, device, network, _sgd(network))


def _trainer(device: torch.device, folder: Path) -> Trainer:
    words = (
        f"--dataset synthetic --synthetic-samples {STEPS * BATCH} --batch-size {BATCH} --optimizer sgd --lr 0.01 "
        f"--model benchmarks.step_overhead:null_network --amp off --augment none --epochs 100000 --out-dir {folder}"
    )
    return build(parse(words.split()), Ranks(), device).trainer


def _ours(batches: list[tuple[Tensor, Tensor]], device: torch.device, folder: Path) -> Callable[[], float]:
    trainer = _trainer(device, folder)
    rows = torch.arange(BATCH, device=device)
    ready = [Batch(images, labels, rows) for images, labels in batches]
    trainer.components = replace(trainer.components, pipeline=_InMemory(ready, trainer.components.pipeline))
    return _epochs(trainer, device, itertools.repeat(0))


def _whole(device: torch.device, folder: Path) -> Callable[[], float]:
    return _epochs(_trainer(device, folder), device, itertools.count())


def _epochs(trainer: Trainer, device: torch.device, epochs: Iterator[int]) -> Callable[[], float]:
    def work() -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            trainer.train_epoch(next(epochs))
        trainer.progress.end_epoch()

    return lambda: _timed(work, device)


class _InMemory:
    """A pipeline whose batches are there."""

    def __init__(self, batches: list[Batch], inner: Pipeline) -> None:
        self._batches, self._inner = batches, inner
        self.steps_per_epoch = len(batches)
        self.left_out = 0
        self.sampler, self.accumulate = inner.sampler, 1

    def train(self, epoch: int, start_step: int = 0) -> Iterator[Window]:
        for batch in itertools.islice(self._batches, start_step, None):
            yield Window(iter((batch,)), 1, BATCH, BATCH)

    def evaluate(self) -> Iterator[Batch]:
        return self._inner.evaluate()

    def dummy_batch(self) -> Batch:
        return self._inner.dummy_batch()


def _accelerate(batches: list[tuple[Tensor, Tensor]], device: torch.device) -> Callable[[], float]:
    from accelerate import Accelerator  # type: ignore[import-not-found]

    accelerator = Accelerator(cpu=device.type == "cpu")
    network = null_network().to(device)
    network, optimizer = accelerator.prepare(network, _sgd(network))
    return _loop(batches, device, network, optimizer, accelerator.backward)


def _lightning(batches: list[tuple[Tensor, Tensor]], device: torch.device) -> Callable[[], float]:
    import lightning  # type: ignore[import-not-found]

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = null_network()

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            images, labels = batch
            return nn.functional.cross_entropy(self.network(images), labels)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return _sgd(self)

    def work() -> float:
        # The start of a Trainer is not a step: the clock runs from the first batch to the end of the last step.
        clock = _Clock(lightning)
        trainer = lightning.Trainer(
            max_epochs=1, accelerator="cpu" if device.type == "cpu" else "gpu", devices=1, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            callbacks=[clock.callback],
        )  # fmt: skip
        trainer.fit(Module(), _Loader(batches))
        return 1e6 * clock.seconds / STEPS

    return work


class _Loader:
    """A list of batches that Lightning does not take for a list of loaders."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)


class _Clock:
    """CPU seconds of Lightning's training epoch."""

    def __init__(self, lightning: Any) -> None:
        clock = self
        self.seconds = 0.0

        class Callback(lightning.Callback):  # type: ignore[misc]
            def on_train_epoch_start(self, *_: object) -> None:
                clock.seconds = -time.process_time()

            def on_train_epoch_end(self, *_: object) -> None:
                clock.seconds += time.process_time()

        self.callback = Callback()


def compare(arguments: argparse.Namespace) -> Figures:
    """What each case adds to the bare loop, in microseconds of CPU time a step."""
    device = choose_device(arguments.device, Ranks())
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        turns = measure(device, arguments.rounds, Path(folder))
    found: Figures = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "unit": "microseconds of CPU time a step",
        **turns.account(),
    }
    if turns.enough:
        found["over_bare_us"] = {name: turns.difference(name, BARE).rounded(1) for name in turns.cases}
        columns = ["loop", "CPU µs a step, median (quartiles)", "over the bare loop"]
        found["table"] = {"columns": columns, "rows": turns.rows(BARE, ".0f", turns.difference, "+.0f")}
    return found


main = Measurement("step_overhead", __doc__, compare, (DEVICE, rounds(9), *AGAINST))

if __name__ == "__main__":
    sys.exit(main())
