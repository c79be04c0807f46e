"""Networks whose first weights depend on the data: anything with a method init_from_data(images)."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from ddp_core.errors import UserError
from ddp_train.data.pipeline.loader import ImageReader
from ddp_train.data.sources.samples import Dataset

MOST = 5000
"""Images that are shown; evenly spread over the training set, which may be sorted by class."""


@runtime_checkable
class FromData(Protocol):
    """A network that looks at training images before it is trained."""

    def init_from_data(self, images: torch.Tensor) -> None:
        """images: float32 [n, C, H, W], normalised and not augmented, on the network's device."""
        ...


def init_from_data(network: nn.Module, dataset: Dataset, device: torch.device) -> None:
    """Show some of the training images to a network that asks for them: the same whatever the number of ranks.

    Errors: UserError for an image file that cannot be read.
    """
    if not isinstance(network, FromData):
        return
    count = len(dataset.train)
    rows = np.linspace(0, count - 1, min(MOST, count)).astype(np.int64)
    reader = ImageReader(dataset.train, (dataset.image_shape[1], dataset.image_shape[2]), "train")
    found, _, bad = reader[rows.tolist()]
    if bad and dataset.on_bad_sample == "stop":
        raise UserError(str(bad[0]))
    images = found.to(device).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (dataset.mean, dataset.std))
    network.init_from_data((images - mean) / std)
