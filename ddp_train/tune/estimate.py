"""`--tune estimate` (`launch.py --estimate`): time and memory of a run, measured in half a minute of it.

Data flow: two small forward passes -> activations as a line over the micro-batch; one step -> the optimizer's state;
real steps with the run's own input for some seconds, and a part of an evaluation -> the time of an epoch. The run's
state is restored.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from ddp_train.config.batch_split import ceil_div
from ddp_train.data.pipeline.window import Batch
from ddp_train.diagnostics.memory_report import kept_bytes
from ddp_train.engine.components import Components
from ddp_train.engine.evaluate import evaluate
from ddp_train.engine.trainer import Trainer
from ddp_train.tune.preserve import Part, preserved
from ddp_train.tune.steps import Line, Steps, fit, largest_over_ranks

TRAIN_S, EVALUATE_S = 18.0, 6.0
LEAST_STEPS, MOST_STEPS = 3, 200
_MIB = 2**20


@dataclass(frozen=True)
class Memory:
    """Bytes on each rank: what training keeps between steps, and activations over the samples of a micro-batch."""

    weights: int
    gradients: int
    optimizer: int
    activations: Line

    def total(self, micro_batch: int) -> float:
        """Everything that a step with such micro-batches needs at its peak; kernels' own workspaces come on top."""
        return self.weights + self.gradients + self.optimizer + self.activations(micro_batch)


@dataclass(frozen=True)
class Estimate:
    """A run in numbers. Times in seconds, from `steps_measured` training steps."""

    parameters: int
    memory: Memory
    micro_batch: int
    steps_per_epoch: int
    epochs: int
    step_seconds: float
    evaluation_seconds: float
    steps_measured: int

    @property
    def epoch_seconds(self) -> float:
        """Seconds of an epoch with its evaluation."""
        return self.steps_per_epoch * self.step_seconds + self.evaluation_seconds


def estimate(trainer: Trainer, test_images: int) -> Estimate:
    """Measure the run that `trainer` would make. All ranks take part; times are those of the slowest.

    test_images: images of the split that is evaluated, over all ranks.
    """
    components = trainer.components
    states = [t.state for t in components.techniques if t.state is not None]
    kept: list[Part] = [components.network, components.optimizer, components.precision.scaler, *states]
    window = next(iter(components.pipeline.train(0)))
    for _ in window.batches:  # use the window up: its batches must not turn up later
        pass
    micro_batch = ceil_div(ceil_div(components.global_batch, components.ranks.world_size), max(1, window.count))
    with preserved(*kept):
        memory = measure_memory(components)
    with preserved(*kept):  # from the weights that a run begins with, not those after a step on noise
        step_seconds, measured = _time_steps(trainer)
        evaluation_seconds = _time_evaluation(components, test_images)
    return Estimate(
        parameters=sum(p.numel() for p in components.network.parameters()),
        memory=memory,
        micro_batch=micro_batch,
        steps_per_epoch=components.pipeline.steps_per_epoch,
        epochs=components.epochs,
        step_seconds=step_seconds,
        evaluation_seconds=evaluation_seconds,
        steps_measured=measured,
    )


def measure_memory(components: Components) -> Memory:
    """Memory by part, from steps of two and four samples on each rank alone; leaves the network trained by one step."""
    steps, kept = Steps(components), []
    for batch in (2, 4):
        with kept_bytes(components.network) as found:
            steps.gradients(batch)
        kept.append((float(batch), float(sum(found.values()))))
    gradients = _bytes(p.grad for p in components.network.parameters() if p.grad is not None)
    components.precision.step(components.optimizer)
    components.optimizer.zero_grad(set_to_none=True)
    tensors = (v for state in components.optimizer.state.values() for v in state.values() if isinstance(v, Tensor))
    line = fit(kept)
    assert line is not None
    weights = _bytes(itertools.chain(components.network.parameters(), components.network.buffers()))
    return Memory(weights, gradients, _bytes(tensors), line)


def _time_steps(trainer: Trainer) -> tuple[float, int]:
    """Median seconds of a whole step with its input, and how many were measured; the first one is not counted."""
    components, step = trainer.components, trainer.progress.step
    components.model.train()
    epochs = (components.pipeline.train(epoch) for epoch in itertools.count())
    taken: list[float] = []
    begun = time.perf_counter()
    for window in itertools.chain.from_iterable(epochs):
        trainer.measure_step(window)  # waits for the device and for all ranks
        now = time.perf_counter()
        taken.append(now - begun)
        begun = now
        enough = len(taken) > LEAST_STEPS and (sum(taken) > TRAIN_S or len(taken) > MOST_STEPS)
        if not any(largest_over_ranks(components.device, not enough)):  # all ranks end after the same step
            break
    trainer.progress.step = step
    return largest_over_ranks(components.device, statistics.median(taken[1:]))[0], len(taken) - 1


def _time_evaluation(components: Components, test_images: int) -> float:
    """Seconds of an evaluation, from as much of it as some seconds allow."""
    begun, seen = time.perf_counter(), 0

    def enough() -> bool:
        """Whether EVALUATE_S seconds are over, and something was evaluated."""
        return seen > 0 and time.perf_counter() - begun > EVALUATE_S

    def some() -> Iterator[Batch]:
        """Batches of an evaluation, until it is enough."""
        nonlocal seen
        for batch in components.pipeline.evaluate(interrupted=enough):
            seen += len(batch.labels)
            yield batch

    evaluate(components.evaluated, some(), components.precision)
    _, mine, _ = components.pipeline.sampler.cut(test_images)
    seconds = (time.perf_counter() - begun) * sum(count for _, count in mine) / max(1, seen)
    return largest_over_ranks(components.device, seconds)[0]


def _bytes(tensors: Iterable[Tensor]) -> int:
    """The bytes of these tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def table(found: Estimate) -> str:
    """The estimate as a few lines."""
    memory = found.memory
    rows = [
        ("weights", memory.weights),
        ("gradients", memory.gradients),
        ("optimizer", memory.optimizer),
        (f"activations (micro-batch of {found.micro_batch})", memory.activations(found.micro_batch)),
        ("together", memory.total(found.micro_batch)),
    ]
    lines = [f"{found.parameters:,} parameters", "memory on each rank"]
    lines += [f"  {name:<38}{size / _MIB:>12,.1f} MiB" for name, size in rows]
    lines += [
        f"{found.steps_per_epoch:,} steps an epoch, {1000 * found.step_seconds:,.1f} ms a step "
        f"({found.steps_measured} measured), {_shown(found.evaluation_seconds)} for an evaluation",
        f"an epoch {_shown(found.epoch_seconds)}, {found.epochs:,} epochs "
        f"{_shown(found.epochs * found.epoch_seconds)}; start and checkpoints come on top",
    ]
    return "\n".join(lines)


def _shown(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
