"""CPU time that the trainer, accelerate and Lightning add to a step of a bare loop.

CPU time over 400 steps on one thread, with SGD and momentum. The bare loop has the batches in a list, clears the
gradient, runs forward, loss and backward, and steps. Ours is the trainer as it is built by default, with accuracy and
loss counted, the records and the progress report on, over the same batches in memory; once with the input pipeline
left out, as in the others, and once whole; and the bare loop written with ddp_train.Run, which loads its data too.
accelerate and Lightning take part where they are installed, Lightning with its progress bar and logger off.

CPU time of a step of a network that computes almost nothing: what remains is the cost of the loop.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks.harness import AGAINST, DEVICE, Arguments, Figures, measurement, rounds
from benchmarks.machine import device_name, version
from benchmarks.turns import take_turns
from ddp_train import Run
from ddp_train.assemble.build import build
from ddp_train.config.parse import parse
from ddp_train.data.pipeline.window import Batch, Window
from ddp_train.distributed.process_group import Ranks, choose_device

STEPS, BATCH, CLASSES = 400, 16, 10
BARE = "bare loop"
Batches = list[tuple[Tensor, Tensor]]


class NullNetwork(nn.Module):
    """The first pixel of each channel through one linear map: [n, C, H, W] -> [n, num_classes]."""

    def __init__(self, num_classes: int = CLASSES, image_shape: tuple[int, int, int] = (3, 32, 32)) -> None:
        super().__init__()
        self.linear = nn.Linear(image_shape[0], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the first pixel."""
        return self.linear(images[:, :, 0, 0])


def _timed(work: Callable[[], object], device: torch.device) -> float:
    """Microseconds of CPU time a step; what the device still does afterwards does not count."""
    torch.get_device_module(device).synchronize(device)
    started = time.process_time()
    work()
    return 1e6 * (time.process_time() - started) / STEPS


def _sgd(network: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of every loop but ours, which builds the same."""
    return torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True)


def _loop(batches: Batches, device: torch.device, *, accelerated: bool = False) -> Callable[[], float]:
    """The bare loop over the batches, or accelerate's form of it."""
    network = NullNetwork().to(device)
    optimizer, backward = _sgd(network), Tensor.backward
    if accelerated:
        from accelerate import Accelerator  # type: ignore[import-not-found]

        accelerator = Accelerator(cpu=device.type == "cpu")
        network, optimizer = accelerator.prepare(network, optimizer)
        backward = accelerator.backward

    def work() -> None:
        """One epoch of the loop."""
        for images, labels in batches:
            optimizer.zero_grad(set_to_none=True)
            backward(nn.functional.cross_entropy(network(images), labels))
            optimizer.step()

    return partial(_timed, work, device)


def _trainer(device: torch.device, folder: Path, batches: Batches | None = None) -> Callable[[], float]:
    """Our trainer with its input pipeline, or with `batches` in its place."""
    words = (
        f"--dataset synthetic --synthetic-samples {STEPS * BATCH} --batch-size {BATCH} --optimizer sgd --lr 0.01 "
        f"--model benchmarks.step_overhead:NullNetwork --amp off --augment none --epochs 100000 --out-dir {folder}"
    )
    trainer = build(parse(words.split()), Ranks(), device).trainer
    if batches is not None:
        rows = torch.arange(BATCH, device=device)
        ready = [Batch(images, labels, rows) for images, labels in batches]

        def train(epoch: int, start_step: int = 0) -> Iterator[Window]:
            """The ready batches in place of the pipeline's windows."""
            for batch in itertools.islice(ready, start_step, None):
                yield Window(iter((batch,)), 1, BATCH, BATCH)

        trainer.components.pipeline.train = train  # type: ignore[method-assign]
    epochs = itertools.count()

    def work() -> None:
        """One epoch of the trainer."""
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            trainer.train_epoch(next(epochs))
        trainer.progress.end_epoch()

    return partial(_timed, work, device)


def _library(device: torch.device, folder: Path) -> Callable[[], float]:
    """The bare loop written with ddp_train.Run, with the data it loads; what happens after an epoch does not count."""
    run = Run(folder, device=device.type, save_every="epoch").__enter__()
    torch.set_num_threads(1)  # Run has set it to suit the machine
    network = run.model(NullNetwork())
    optimizer, samples = _sgd(network), STEPS * BATCH
    data = TensorDataset(torch.randn(samples, 3, 32, 32), torch.randint(CLASSES, (samples,)))
    loader = run.loader(data, BATCH)
    run.keep(network=network, optimizer=optimizer)
    epochs = run.epochs(100_000)

    def work() -> None:
        """One epoch of the loop with Run."""
        for images, labels in loader:
            run.backward(nn.functional.cross_entropy(network(images), labels, reduction="sum"))
            run.step(optimizer)

    def once() -> float:
        """Microseconds of CPU time a step of one epoch."""
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            next(epochs)
            return _timed(work, device)

    return once


class _Loader:
    """A list of batches that Lightning does not mistake for a list of loaders."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)


def _lightning(batches: Batches, device: torch.device) -> Callable[[], float]:
    """Lightning's trainer over the same batches."""
    import lightning  # type: ignore[import-not-found]

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")

    # The start of a Trainer is not a step: the module's clock runs from the first batch to the end of the last step.
    class Module(lightning.LightningModule):
        """The network as a LightningModule with its own clock."""

        def __init__(self) -> None:
            super().__init__()
            self.network, self.seconds = NullNetwork(), 0.0

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            """See LightningModule."""
            images, labels = batch
            return nn.functional.cross_entropy(self.network(images), labels)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            """See LightningModule."""
            return _sgd(self)

        def on_train_epoch_start(self) -> None:
            """See LightningModule: start the clock."""
            self.seconds = -time.process_time()

        def on_train_epoch_end(self) -> None:
            """See LightningModule: stop the clock."""
            self.seconds += time.process_time()

    def work() -> float:
        """Microseconds of CPU time a step, by the module's clock."""
        module = Module()
        silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        accelerator = "cpu" if device.type == "cpu" else "gpu"
        lightning.Trainer(max_epochs=1, accelerator=accelerator, devices=1, **silent).fit(module, _Loader(batches))
        return 1e6 * module.seconds / STEPS

    return work


@measurement(DEVICE, rounds(9), *AGAINST)
def main(arguments: Arguments) -> Figures:
    """Every loop, in turns."""
    device = choose_device(arguments.device, Ranks())
    torch.set_num_threads(1)
    draw = partial(torch.randint, CLASSES, (BATCH,), device=device)
    batches = [(torch.randn(BATCH, 3, 32, 32, device=device), draw()) for _ in range(STEPS)]
    with tempfile.TemporaryDirectory() as folder:
        cases = {
            BARE: _loop(batches, device),
            "bare loop again": _loop(batches, device),
            "trainer": _trainer(device, Path(folder, "steps"), batches),
            "trainer with its input pipeline": _trainer(device, Path(folder, "whole")),
            "ddp_train.Run with its loader": _library(device, Path(folder, "library")),
        }
        if version("accelerate"):
            cases["accelerate"] = _loop(batches, device, accelerated=True)
        if version("lightning"):
            cases["lightning"] = _lightning(batches, device)
        turns = take_turns(cases, arguments.rounds, unit="us a step")
    found: Figures = {"device": device_name(device), "unit": "microseconds of CPU time a step", **turns.account()}
    if turns.enough:
        found["over_bare_us"] = {name: turns.difference(name, BARE).rounded(1) for name in turns.cases}
        columns = ["loop", "CPU µs a step, median (quartiles)", "over the bare loop"]
        found["table"] = {"columns": columns, "rows": turns.rows(BARE, ".0f", turns.difference, "+.0f")}
    return found
