"""Histograms of weights and activations for TensorBoard, once an epoch: `--histograms`.

Effect: shows saturated or dead layers and weights that drift; training is not touched. Cost: once an epoch, on the
first rank, a forward pass in evaluation mode over up to 64 images of the epoch's last batch, and a histogram per layer.
It combines with everything.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ddp_train.diagnostics.hooks import each_output
from ddp_train.observers.records import EpochRecord, Observer, RunFacts
from ddp_train.observers.tensorboard import open_writer
from ddp_train.technique import Context, Moment, Technique

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

IMAGES = 64
VALUES = 1 << 20
"""Most values of a tensor that go into its histogram; a larger tensor is sampled at even intervals."""


def create(context: Context) -> Technique:
    """`--histograms`. All ranks have the same weights, so only the first rank writes histograms."""
    if not context.ranks.is_first:
        return Technique(name="histograms")
    histograms = _Histograms(context.network, context.run_folder / "tensorboard" / "histograms")
    return Technique(name="histograms", batch=histograms.batch, observer=histograms)


class _Histograms(Observer):
    def __init__(self, network: nn.Module, folder: Path) -> None:
        self._network, self._folder = network, folder
        self._images: Tensor | None = None
        self._writer: SummaryWriter | None = None

    def batch(self, images: Tensor, targets: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        """Remember the latest images; they pass unchanged."""
        self._images = images[:IMAGES]
        return images, targets

    def on_start(self, facts: RunFacts) -> None:
        """Open the event file; points of epochs that a resumed run trains again are dropped."""
        self._writer = open_writer(self._folder, facts.start_epoch)

    @torch.no_grad()
    def on_epoch(self, record: EpochRecord) -> None:
        """Write the histograms of every weight, and of every layer's output for the remembered images."""
        if self._writer is None:
            return
        for name, parameter in self._network.named_parameters():
            self._add(f"weights/{name}", parameter, record.epoch)
        if self._images is not None:
            was_training = self._network.training
            self._network.eval()
            epoch = record.epoch
            with each_output(self._network, lambda name, output: self._add(f"activations/{name}", output, epoch)):
                self._network(self._images)
            self._network.train(was_training)
        self._writer.flush()

    def _add(self, tag: str, values: Tensor, epoch: int) -> None:
        """Write the histogram of up to VALUES finite values."""
        flat = values.detach().float().flatten()
        flat = flat[:: -(-flat.numel() // VALUES) or 1]
        flat = flat[torch.isfinite(flat)]
        if flat.numel() and self._writer is not None:
            self._writer.add_histogram(tag, flat.cpu().numpy(), epoch)

    def close(self) -> None:
        """Close the writer."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
