"""Non-finite numbers: every step is watched, and the first step and layer that has one are named (`--watch-numbers`).

A step whose loss or gradient is not finite ends the run before the weights are touched, on all ranks alike: the ranks
join their findings in every step. The step's batch is then run again with hooks, and the line says which layer, in
forward order, is the first whose output is not finite, on which rank. A loss far above its running mean is only
reported, with the step and the parameter whose gradient rose most.

Cost: one wait for the device in every step, and one small all-reduce. Under fp16 an infinite gradient is handled by
the scaler and is no error; a loss that is not finite is one. It combines with everything.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ddp_core.errors import TrainingDiverged
from ddp_train.diagnostics.hooks import layers
from ddp_train.distributed.process_group import Ranks, gather, sum_over_ranks, to_host
from ddp_train.optim.losses import Loss
from ddp_train.optim.precision import Precision
from ddp_train.technique import Context, Moment, Technique
from ddp_train.torch_internals import foreach

KEEP = 0.95
"""Share of a running mean that is kept at each step."""
SETTLED = 20
"""Steps before a loss can be called a spike."""
DEVIATIONS = 6.0
RISE = 1.5
"""A spike must also exceed this multiple of the running mean: on a flat curve the deviation is close to 0."""
LINES = 20
"""Spikes that are printed; all are counted."""


def create(context: Context) -> Technique:
    """`--watch-numbers`."""
    watch = _WatchNumbers(context.network, context.precision, context.ranks)
    return Technique(
        name="watch_numbers",
        batch=watch.batch,
        loss=watch.loss,
        gradient=watch.gradient,
        report=watch.report,
        state=watch,
        looks=True,
    )


def first_bad_layer(
    network: nn.Module, images: Tensor, autocast: contextlib.AbstractContextManager[object]
) -> str | None:
    """Describe the first non-finite value, in forward order, for `images` [n, C, H, W]; None: all are finite.

    The network's mode is not changed; in training mode the pass changes the batch statistics.
    """
    if not _finite(images):
        return "the images themselves are not finite"
    found: list[str] = []
    seen = ["the images"]
    names = {module: f"{name or 'the network'} ({type(module).__name__})" for name, module in network.named_modules()}

    def look(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        """Note this layer if it is the first with a non-finite value."""
        if found:
            return
        name = names[module]
        state = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        if spoilt := next((key for key, value in state if not _finite(value)), None):
            found.append(f"the {spoilt} of layer {name} is not finite")
        elif not all(map(_finite, inputs)):
            found.append(f"what layer {name} is given, computed after {seen[-1]}, is not finite")
        elif not _finite(output):
            found.append(f"the output of layer {name} is not finite, while its input and weights are")
        seen.append(name)

    handles = [module.register_forward_hook(look) for module in layers(network).values()]
    try:
        with torch.no_grad(), autocast:
            output = network(images)
    finally:
        for handle in handles:
            handle.remove()
    if not found and not _finite(output):
        found.append(f"the network's output, computed after {seen[-1]}, is not finite")
    return found[0] if found else None


def first_bad_gradient(network: nn.Module) -> str | None:
    """Describe the non-finite gradient nearest to the loss, if all layers' outputs are finite; None: there is none."""
    named = [(name, p.grad) for name, p in network.named_parameters() if p.requires_grad and p.grad is not None]
    bad = [name for name, gradient in named if not _finite(gradient)]
    return f"all outputs are finite, the gradient of {bad[-1]} is not" if bad else None


def _finite(value: object) -> bool:
    """False for a tensor with an infinite value or NaN."""
    return not isinstance(value, Tensor) or not value.is_floating_point() or bool(torch.isfinite(value).all())


class RunningLoss:
    """Mean and deviation of the latest losses, each step counting less than the one after it."""

    def __init__(self) -> None:
        self.mean, self.variance, self.steps = 0.0, 0.0, 0

    def add(self, loss: float) -> float | None:
        """Add a loss. Returns by how many deviations a spike is above the mean, None for any other loss."""
        deviation = math.sqrt(self.variance)
        above = loss - self.mean
        spike = self.steps >= SETTLED and above > DEVIATIONS * deviation and loss > RISE * self.mean
        counted = min(above, DEVIATIONS * deviation) if spike else above  # a spike must not hide the next one
        share = max(1 - KEEP, 1 / (self.steps + 1))
        self.mean += share * counted
        self.variance = (1 - share) * (self.variance + share * counted * counted)
        self.steps += 1
        return above / max(deviation, 1e-12) if spike else None


@dataclass(slots=True)
class _Step:
    """What this rank has seen of a step: the images of its micro-batches, and the sum of their losses."""

    images: list[Tensor]
    loss: Tensor | float = 0.0
    samples: int = 0


class _WatchNumbers:
    def __init__(self, network: nn.Module, precision: Precision, ranks: Ranks) -> None:
        self._network, self._precision, self._ranks = network, precision, ranks
        self._running, self._spikes = RunningLoss(), 0
        self._usual: Tensor | None = None
        self._step = _Step([])

    def batch(self, images: Tensor, targets: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        """Keep the images of the step; they pass unchanged."""
        self._step.images.append(images)
        return images, targets

    def loss(self, inner: Loss) -> Loss:
        """Return the same loss function, which also adds up the losses of the step."""

        def watched(logits: Tensor, targets: Tensor) -> Tensor:
            """`inner`, with its values added up for the step."""
            value = inner(logits, targets)
            self._step.loss = self._step.loss + value.detach()
            self._step.samples += len(logits)
            return value

        return watched

    def gradient(self, parameters: Sequence[nn.Parameter], moment: Moment) -> None:
        """Judge the step. Errors: TrainingDiverged, on all ranks alike."""
        step, self._step = self._step, _Step([])
        trained = {name: p for name, p in self._network.named_parameters() if p.requires_grad}
        # A parameter without a gradient keeps its place in the list.
        gradients = [p.new_zeros(()) if p.grad is None else p.grad for p in trained.values()]
        norms = torch.stack(foreach("norm", gradients)).float()
        # Everything stays on the device, so that the host waits for it only once.
        spoilt = ~torch.isfinite(norms).all()
        loss = norms.new_zeros((), dtype=torch.float64) + step.loss
        bad = ~torch.isfinite(loss) | (spoilt & (self._precision.mode != "fp16"))
        here = torch.stack([loss, torch.full_like(loss, step.samples), bad.double(), spoilt.double()])
        total, samples, bad_ranks, spoilt_ranks = to_host(sum_over_ranks(here))
        if bad_ranks:
            raise TrainingDiverged(self._explain(step, float(loss), moment))
        deviations = self._running.add(total / max(1.0, samples))
        if deviations is not None:
            self._spikes += 1
            if self._ranks.is_first and self._spikes <= LINES:
                rise = (norms / (norms if self._usual is None else self._usual)).nan_to_num()
                print(
                    f"step {moment.step + 1} (epoch {moment.epoch + 1}): the loss {total / samples:.4g} is "
                    f"{deviations:.0f} deviations above its running mean {self._running.mean:.4g}; the gradient of "
                    f"{[*trained][int(rise.argmax())]} rose most, to {float(rise.max()):.1f} times its usual norm",
                    file=sys.stderr,
                    flush=True,
                )
        elif not spoilt_ranks:
            self._usual = norms if self._usual is None else KEEP * self._usual + (1 - KEEP) * norms

    def _explain(self, step: _Step, loss: float, moment: Moment) -> str:
        """The error message: the first rank that found the cause in its own batch, and what it found."""
        each = (first_bad_layer(self._network, images, self._precision.autocast()) for images in step.images)
        found = next(filter(None, each), None)
        findings = enumerate(gather(found, self._ranks))
        where = next((f"rank {rank}: {text}" for rank, text in findings if text is not None), None)
        where = where or first_bad_gradient(self._network) or f"the loss is {loss}"
        return (
            f"step {moment.step + 1} (epoch {moment.epoch + 1}), {where}; "
            "the weights are still those of the step before: try a lower --lr, more --warmup-epochs, or --clip-grad 1"
        )

    def report(self) -> Mapping[str, float]:
        """The number of loss spikes, for the epoch's record."""
        return {"loss_spikes": float(self._spikes)}

    def state_dict(self) -> dict[str, Any]:
        """The running mean and deviation of the loss, the usual norms of the gradients, and the spikes."""
        running = self._running
        moments = [running.mean, running.variance, running.steps]
        return {"running": moments, "usual": self._usual, "spikes": self._spikes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the running statistics."""
        running = self._running
        running.mean, running.variance, running.steps = state["running"]
        self._spikes = state["spikes"]
        self._usual = None if state["usual"] is None else state["usual"].to(self._precision.device)
