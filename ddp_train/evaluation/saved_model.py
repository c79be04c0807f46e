"""A trained network from a file of a run folder: best_model.pth or checkpoint-latest.pt, with the files beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddp_core.errors import UserError
from ddp_train import models
from ddp_train.checkpoint import format as checkpoint_format
from ddp_train.config.options import Config
from ddp_train.config.parse import parse
from ddp_train.data.augment.augmentation import Augmentation
from ddp_train.data.sources.samples import DatasetFacts


@dataclass(frozen=True)
class SavedModel:
    """A network in evaluation mode on its device, with the configuration and the data facts of its run."""

    file: Path
    network: nn.Module
    config: Config
    facts: DatasetFacts
    device: torch.device

    def normaliser(self) -> Augmentation:
        """Its `normalise` takes uint8 images [n, H, W, C] to what the network was trained on."""
        facts = self.facts
        return Augmentation(
            "none", image_shape=facts.image_shape, mean=facts.mean, std=facts.std, flip_ok=False, device=self.device
        )


def open_saved_model(path: str, device: torch.device) -> SavedModel:
    """Open `path`; for a run folder its best_model.pth.

    Errors: UserError, one line, for a file that is missing, damaged or of another model, and where config.yaml and
    dataset.json are not beside it.
    """
    file = Path(path)
    file = file / "best_model.pth" if file.is_dir() else file
    weights = _weights(file)
    for name in ("config.yaml", "dataset.json"):
        if not (file.parent / name).is_file():
            raise UserError(f"{file}: there is no {name} beside it; a run folder has one")
    facts = DatasetFacts.read(file.parent / "dataset.json")
    found = parse(["--config", str(file.parent / "config.yaml")])
    network = models.create_from_options(found.model, len(facts.classes), facts.image_shape, device)
    try:
        network.load_state_dict(weights)
    except (RuntimeError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{file}: does not fit the model in config.yaml beside it ({reason})") from None
    return SavedModel(file, network.eval(), found, facts, device)


def _weights(file: Path) -> Mapping[str, Any]:
    """The state_dict of the network: the file's own, or that in a checkpoint."""
    content: Any = checkpoint_format.load_state_dict(file)
    if content.get("schema") == checkpoint_format.SCHEMA:
        content = checkpoint_format.load(file).get("model")
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{file}: there are no weights in it")
    return content
