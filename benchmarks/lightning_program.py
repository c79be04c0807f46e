"""A Lightning program of the usual shape on CIFAR-10, started as a process: what `time_to_accuracy` compares with.

    python -m benchmarks.lightning_program --data-dir DIR --model small --epochs 15 --target 0.8 --seed 0

torchvision's transforms (crop, flip, normalise) on PIL images in a DataLoader with two workers, SGD with Nesterov
momentum under one cycle of the learning rate, one process with all threads, otherwise Lightning's own defaults. After
each epoch it prints a JSON line with the seconds since training began and the test accuracy; it ends at the target.
"""

from __future__ import annotations

import argparse
import json
import time
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
    """A classifier that prints the time and accuracy of each epoch, and ends the run at the target."""

    def __init__(self, options: argparse.Namespace, steps: int) -> None:
        super().__init__()
        self.model = create_model(options.model, num_classes=10)
        self.options, self.steps, self.began = options, steps, 0.0
        self.correct = self.seen = 0

    def training_step(self, batch: Any, index: int) -> Any:
        """See LightningModule."""
        images, labels = batch
        return cross_entropy(self.model(images), labels)

    def validation_step(self, batch: Any, index: int) -> None:
        """See LightningModule: count hits."""
        images, labels = batch
        self.correct += int((self.model(images).argmax(1) == labels).sum())
        self.seen += len(labels)

    def configure_optimizers(self) -> Any:
        """See LightningModule."""
        rate = self.options.lr
        optimizer = torch.optim.SGD(self.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """See LightningModule: start the clock."""
        self.began = time.monotonic()

    def on_validation_epoch_end(self) -> None:
        """See LightningModule: print the accuracy, and stop at the target."""
        accuracy = self.correct / max(1, self.seen)
        line = {"epoch": self.current_epoch + 1, "seconds": time.monotonic() - self.began, "accuracy": accuracy}
        print(json.dumps(line), flush=True)
        self.trainer.should_stop = accuracy >= self.options.target
        self.correct = self.seen = 0


def main() -> None:
    """Train with one cycle of the learning rate, until the target is reached."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lightning_program")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--model", default="small")
    for name, default in {"epochs": 15, "target": 1.0, "batch-size": 128, "lr": 0.1, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    options = parser.parse_args()
    lightning.seed_everything(options.seed, verbose=False)
    usual = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    augmented = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), *usual])
    train = ImageFolder(f"{options.data_dir}/train", augmented)
    test = ImageFolder(f"{options.data_dir}/test", v2.Compose(usual))
    workers: dict[str, Any] = {"num_workers": 2, "persistent_workers": True}
    loader = DataLoader(train, options.batch_size, shuffle=True, drop_last=True, **workers)
    silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(max_epochs=options.epochs, devices=1, num_sanity_val_steps=0, **silent)
    trainer.fit(Program(options, options.epochs * len(loader)), loader, DataLoader(test, 512, **workers))


if __name__ == "__main__":
    main()
