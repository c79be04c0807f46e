"""Gradient flow: mean and largest |gradient| of each layer over the run, into gradient_flow.json and .png.

Effect: shows layers that learn nothing (gradients that vanish towards the input) and those that explode; training is
not touched. Cost: two reductions per layer at the progress reports (`--log-every`), nothing between them. It sees the
true gradient of the global batch, before centralisation and clipping; with SAM that is the second one. It combines
with everything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddp_core.errors import UserError
from ddp_core.files import write_text
from ddp_train.config.options import DEFAULT_LOG_EVERY
from ddp_train.observers.records import EpochRecord, Observer
from ddp_train.plots.gradient_flow import SCHEMA, FlowPoint, flow_figure, read_flow
from ddp_train.plots.style import save_if_possible
from ddp_train.technique import Context, Moment, Technique


def create(context: Context) -> Technique:
    """`--gradient-flow`. All ranks have the same gradients, so only the first rank measures them."""
    if not context.ranks.is_first:
        return Technique(name="gradient_flow")
    log_every = context.config.run.log_every or DEFAULT_LOG_EVERY
    flow = _GradientFlow(context.network, context.run_folder, log_every, context.steps_per_epoch)
    return Technique(name="gradient_flow", gradient=flow.look, observer=flow, state=flow, looks=True)


def weight_layers(network: nn.Module) -> dict[str, nn.Parameter]:
    """Layer name -> its trainable matrix or kernel, in network order; every parameter if none has two dimensions."""
    trainable = {name: p for name, p in network.named_parameters() if p.requires_grad}
    chosen = {name: p for name, p in trainable.items() if p.ndim > 1} or trainable
    return {name.removesuffix(".weight"): p for name, p in chosen.items()}


class _GradientFlow(Observer):
    def __init__(self, network: nn.Module, folder: Path, log_every: int, steps_per_epoch: int) -> None:
        self._layers = weight_layers(network)
        self._file, self._picture = folder / "gradient_flow.json", folder / "gradient_flow.png"
        self._log_every, self._steps_per_epoch = log_every, steps_per_epoch
        self._points: list[FlowPoint] | None = None
        self._fresh: list[tuple[Moment, torch.Tensor]] = []

    def look(self, parameters: Sequence[nn.Parameter], moment: Moment) -> None:
        """Measure at the steps of the progress reports; the numbers stay on the device until the epoch ends."""
        index = moment.step % self._steps_per_epoch + 1
        if index % self._log_every and index != self._steps_per_epoch:
            return
        if self._points is None:
            self._points = self._earlier(min([moment.step, *(before.step for before, _ in self._fresh)]))
        sizes = [torch.zeros_like(p) if p.grad is None else p.grad.detach().abs() for p in self._layers.values()]
        self._fresh.append((moment, torch.stack([torch.stack([s.mean(), s.max()]).float() for s in sizes])))

    def state_dict(self) -> dict[str, Any]:
        """The points that are not in the file yet: epoch and step (from 0), and the numbers."""
        return {"fresh": [[moment.epoch, moment.step, numbers] for moment, numbers in self._fresh]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore saved points; the file may have them too, if the run was stopped in good order."""
        self._fresh = [(Moment(epoch, step, 0, 0), numbers) for epoch, step, numbers in state["fresh"]]

    def _earlier(self, step: int) -> list[FlowPoint]:
        """The points that the resumed run recorded before `step` (from 0)."""
        with suppress(UserError):  # a new run has no file, and a damaged file is replaced
            document = read_flow(self._file)
            if step and document["layers"] == list(self._layers):
                return [point for point in document["points"] if point["step"] <= step]
        return []

    def on_epoch(self, record: EpochRecord) -> None:
        """See Observer: write the file."""
        self.leave()

    def close(self) -> None:
        """Write the remaining points and draw the figure, also for a run that failed."""
        self.leave()
        if self._points:
            save_if_possible(lambda: flow_figure(read_flow(self._file)), self._picture)

    def leave(self) -> None:
        """Write the new points."""
        if self._points is None or not self._fresh:
            return
        for moment, numbers in self._fresh:
            mean, largest = ([v if math.isfinite(v) else None for v in column] for column in numbers.T.tolist())
            self._points.append(FlowPoint(epoch=moment.epoch + 1, step=moment.step + 1, mean=mean, largest=largest))
        self._fresh.clear()
        document = {"schema": SCHEMA, "layers": list(self._layers), "points": self._points}
        write_text(self._file, json.dumps(document, allow_nan=False) + "\n")
