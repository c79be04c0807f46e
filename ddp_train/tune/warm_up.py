"""Steps before a clock starts: kernels are loaded, compiled and chosen for every shape that the run will have.

The run's state is unchanged afterwards, bit for bit; the allocator keeps the memory.
"""

from __future__ import annotations

from dataclasses import asdict

from ddp_train.engine.trainer import Trainer
from ddp_train.technique import Moment
from ddp_train.tune.preserve import preserved

Shape = tuple[int, ...]


def warm_up(trainer: Trainer, passes: int = 2) -> list[tuple[int, Shape]]:
    """Train `passes` steps of every shape (samples of the global batch; [C, H, W] after the techniques) and of every
    sort of step that a technique distinguishes.

    Returns the shapes, in the order of their first epoch. More than one pass, since the first step makes the
    optimizer's state. Waits for the device.
    """
    parts, progress = trainer.components, trainer.progress
    before, states = asdict(progress), [t.state for t in parts.techniques if t.state is not None]
    found: list[tuple[int, Shape]] = []
    with preserved(parts.network, parts.optimizer, parts.precision, *states, release=False):
        parts.model.train()
        for (shape, *_), epoch in _epochs(trainer).items():
            for step, size in _steps(trainer).items():
                found.append((size, shape))
                for _ in range(passes):
                    progress.epoch, progress.step = epoch, epoch * parts.pipeline.steps_per_epoch + step
                    trainer.measure_step(next(iter(parts.pipeline.train(epoch, step))))
    for name, value in before.items():
        setattr(progress, name, value)
    return found


def _epochs(trainer: Trainer) -> dict[tuple[Shape, object], int]:
    """The first epoch of each combination of the image shape after the techniques and the sorts of step."""
    parts = trainer.components
    found: dict[tuple[Shape, object], int] = {}
    for epoch in range(parts.epochs):
        batch = parts.pipeline.dummy_batch()
        images, targets = batch.images, batch.labels
        sorts: list[object] = []
        moment = Moment(epoch, epoch * parts.pipeline.steps_per_epoch, parts.seed, parts.ranks.rank)
        for technique in parts.techniques:
            if technique.before_step is not None:
                sorts.append(technique.before_step(moment))
            if technique.batch is not None:
                images, targets = technique.batch(images, targets, moment)
        found.setdefault((tuple(images.shape[1:]), tuple(sorts)), epoch)
    return found


def _steps(trainer: Trainer) -> dict[int, int]:
    """Step of an epoch -> samples of its global batch, for the first step of each size."""
    pipeline = trainer.components.pipeline
    sizes = {step: next(iter(pipeline.sampler.plan(step))).global_size for step in (0, pipeline.steps_per_epoch - 1)}
    return {step: size for step, size in sizes.items() if step == 0 or size != sizes[0]}
