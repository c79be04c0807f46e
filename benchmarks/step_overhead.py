"""CPU time that the trainer, accelerate and Lightning add to a step of a bare loop.

CPU time over 400 steps on one thread, with SGD and momentum. The bare loop has the batches in a list, clears the
gradient, runs forward, loss and backward, and steps. Ours is the trainer as it is built by default, with accuracy and
loss counted, the records and the progress report on, over the same batches in memory; once with the input pipeline left
out, as in the others, and once whole. accelerate and Lightning take part where they are installed, Lightning with its
progress bar and logger off.

CPU time of a step of a network that computes almost nothing: what remains is the cost of the loop.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.harness import AGAINST, DEVICE, Figures, Measurement, rounds
from benchmarks.machine import device_name, synchronize, version
from benchmarks.turns import take_turns
from ddp_train.assemble.build import build
from ddp_train.config.parse import parse
from ddp_train.data.pipeline.window import Batch, Window
from ddp_train.distributed.process_group import Ranks, choose_device
from ddp_train.engine.trainer import Trainer

STEPS, BATCH, CLASSES = 400, 16, 10
BARE, AGAIN = "bare loop", "bare loop again"
Batches = list[tuple[Tensor, Tensor]]


class NullNetwork(nn.Module):
    """The first pixel of each channel through one linear map: [n, C, H, W] -> [n, num_classes]."""

    def __init__(self, num_classes: int = CLASSES, image_shape: tuple[int, int, int] = (3, 32, 32)) -> None:
        super().__init__()
        self.linear = nn.Linear(image_shape[0], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.linear(images[:, :, 0, 0])


def _timed(work: Callable[[], object], device: torch.device) -> float:
    """Microseconds of CPU time a step; what the device still does afterwards does not count."""
    synchronize(device)
    started = time.process_time()
    work()
    return 1e6 * (time.process_time() - started) / STEPS


def _sgd(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True)


def _loop(
    batches: Batches,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    backward: Callable[[Tensor], object] = Tensor.backward,
) -> None:
    for images, labels in batches:
        optimizer.zero_grad(set_to_none=True)
        backward(nn.functional.cross_entropy(network(images), labels))
        optimizer.step()


def _bare(batches: Batches, device: torch.device) -> Callable[[], float]:
    network = NullNetwork().to(device)
    return partial(_timed, partial(_loop, batches, network, _sgd(network)), device)


def _accelerate(batches: Batches, device: torch.device) -> Callable[[], float]:
    from accelerate import Accelerator  # type: ignore[import-not-found]

    accelerator = Accelerator(cpu=device.type == "cpu")
    network = NullNetwork().to(device)
    network, optimizer = accelerator.prepare(network, _sgd(network))
    return partial(_timed, partial(_loop, batches, network, optimizer, accelerator.backward), device)


def _trainer(device: torch.device, folder: Path) -> Trainer:
    words = (
        f"--dataset synthetic --synthetic-samples {STEPS * BATCH} --batch-size {BATCH} --optimizer sgd --lr 0.01 "
        f"--model benchmarks.step_overhead:NullNetwork --amp off --augment none --epochs 100000 --out-dir {folder}"
    )
    return build(parse(words.split()), Ranks(), device).trainer


def _ours(trainer: Trainer, device: torch.device, epochs: Iterator[int]) -> Callable[[], float]:
    def work() -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            trainer.train_epoch(next(epochs))
        trainer.progress.end_epoch()

    return partial(_timed, work, device)


def _in_memory(batches: Batches, device: torch.device, folder: Path) -> Callable[[], float]:
    """Our trainer with a pipeline whose batches are there."""
    trainer = _trainer(device, folder)
    rows = torch.arange(BATCH, device=device)
    ready = [Batch(images, labels, rows) for images, labels in batches]

    def train(epoch: int, start_step: int = 0) -> Iterator[Window]:
        for batch in itertools.islice(ready, start_step, None):
            yield Window(iter((batch,)), 1, BATCH, BATCH)

    trainer.components.pipeline.train = train  # type: ignore[method-assign]
    return _ours(trainer, device, itertools.repeat(0))


class _Loader:
    """A list of batches that Lightning does not take for a list of loaders."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)


def _lightning(batches: Batches, device: torch.device) -> Callable[[], float]:
    import lightning  # type: ignore[import-not-found]

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")

    class Module(lightning.LightningModule):
        """The start of a Trainer is not a step: its clock runs from the first batch to the end of the last step."""

        def __init__(self) -> None:
            super().__init__()
            self.network, self.seconds = NullNetwork(), 0.0

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            images, labels = batch
            return nn.functional.cross_entropy(self.network(images), labels)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return _sgd(self)

        def on_train_epoch_start(self) -> None:
            self.seconds = -time.process_time()

        def on_train_epoch_end(self) -> None:
            self.seconds += time.process_time()

    def work() -> float:
        module = Module()
        silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        accelerator = "cpu" if device.type == "cpu" else "gpu"
        lightning.Trainer(max_epochs=1, accelerator=accelerator, devices=1, **silent).fit(module, _Loader(batches))
        return 1e6 * module.seconds / STEPS

    return work


def measure(arguments: argparse.Namespace) -> Figures:
    """What each case adds to the bare loop, in microseconds of CPU time a step."""
    device = choose_device(arguments.device, Ranks())
    torch.set_num_threads(1)
    draw = partial(torch.randint, CLASSES, (BATCH,), device=device)
    batches = [(torch.randn(BATCH, 3, 32, 32, device=device), draw()) for _ in range(STEPS)]
    with tempfile.TemporaryDirectory() as folder:
        cases = {BARE: _bare(batches, device), AGAIN: _bare(batches, device)}
        cases["trainer"] = _in_memory(batches, device, Path(folder, "steps"))
        whole = _trainer(device, Path(folder, "whole"))
        cases["trainer with its input pipeline"] = _ours(whole, device, itertools.count())
        for name, prepare in (("accelerate", _accelerate), ("lightning", _lightning)):
            if version(name):
                cases[name] = prepare(batches, device)
        turns = take_turns(cases, arguments.rounds, unit="us a step")
    found: Figures = {"device": device_name(device), "unit": "microseconds of CPU time a step", **turns.account()}
    if turns.enough:
        found["over_bare_us"] = {name: turns.difference(name, BARE).rounded(1) for name in turns.cases}
        columns = ["loop", "CPU µs a step, median (quartiles)", "over the bare loop"]
        found["table"] = {"columns": columns, "rows": turns.rows(BARE, ".0f", turns.difference, "+.0f")}
    return found


main = Measurement("step_overhead", measure, (DEVICE, rounds(9), *AGAINST))

if __name__ == "__main__":
    sys.exit(main())
