"""A Lightning program of the usual shape on CIFAR-10: what `time_to_accuracy` compares with; started as a process.

    python -m benchmarks.lightning_program --data-dir DIR --model small --epochs 15 --target 0.8 --seed 0

torchvision's transforms (crop, flip, normalise) on PIL images in a DataLoader with two workers, SGD with Nesterov
momentum under one cycle of the learning rate, one process with all threads, Lightning's own defaults beside that. After
each epoch it prints a JSON line with the seconds since training began and the test accuracy; it ends at the target.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import lightning  # type: ignore[import-not-found]
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from ddp_train.models import create_model

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)


class Program(lightning.LightningModule):
    """A classifier with its optimizer and schedule."""

    def __init__(self, model: str, lr: float, steps: int) -> None:
        super().__init__()
        self.model = create_model(model, num_classes=10)
        self.rate, self.steps, self.correct, self.seen = lr, steps, 0, 0

    def training_step(self, batch: Any, index: int) -> Any:
        """The loss of a batch."""
        images, labels = batch
        return cross_entropy(self.model(images), labels)

    def validation_step(self, batch: Any, index: int) -> None:
        """Count what is right."""
        images, labels = batch
        self.correct += int((self.model(images).argmax(1) == labels).sum())
        self.seen += len(labels)

    def configure_optimizers(self) -> Any:
        """SGD under one cycle."""
        optimizer = torch.optim.SGD(self.parameters(), self.rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.rate, total_steps=self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Clock(lightning.Callback):
    """Prints the time and accuracy of each epoch; ends the run at the target."""

    def __init__(self, target: float) -> None:
        self.target = target
        self.started = 0.0

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Training begins."""
        self.started = time.monotonic()

    def on_validation_epoch_start(self, trainer: Any, module: Any) -> None:
        """Count from nothing."""
        module.correct = module.seen = 0

    def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
        """One line."""
        accuracy = module.correct / max(1, module.seen)
        line = {"epoch": trainer.current_epoch + 1, "seconds": time.monotonic() - self.started, "accuracy": accuracy}
        print(json.dumps(line), flush=True)
        trainer.should_stop = accuracy >= self.target


def main() -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lightning_program")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--model", default="small")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--target", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    lightning.seed_everything(arguments.seed, verbose=False)
    usual = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    augmented = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), *usual])
    folder = Path(arguments.data_dir)
    train, test = ImageFolder(str(folder / "train"), augmented), ImageFolder(str(folder / "test"), v2.Compose(usual))
    workers: dict[str, Any] = {"num_workers": 2, "persistent_workers": True}
    loader = DataLoader(train, arguments.batch_size, shuffle=True, drop_last=True, **workers)
    module = Program(arguments.model, arguments.lr, arguments.epochs * len(loader))
    trainer = lightning.Trainer(
        max_epochs=arguments.epochs,
        accelerator="auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[Clock(arguments.target)],
    )
    trainer.fit(module, loader, DataLoader(test, 512, **workers))


if __name__ == "__main__":
    main()
