"""A torchvision model on a folder of images, one folder a class: `--data FOLDER`, or digits that are drawn first.

PYTHONPATH=. torchrun --nproc-per-node 2 examples/image_folder.py --data photos/train
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torchvision import datasets, models
from torchvision.transforms import v2

from ddp_train import Run

parser = argparse.ArgumentParser()
parser.add_argument("--out-dir", default="runs/folder")
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--data", type=Path, help="a folder with a folder of images for each class")
parser.add_argument("--workers", type=int, default=0)
options = parser.parse_args()


def draw_digits(folder: Path, images: int = 200) -> Path:
    """Scikit-learn's digits as image files."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (picture, label) in enumerate(zip(digits.images[:images], digits.target, strict=False)):
        (folder / str(label)).mkdir(exist_ok=True)
        Image.fromarray((picture * 15.9).astype("uint8")).save(folder / str(label) / f"{number:04}.png")
    return folder


with tempfile.TemporaryDirectory() as drawn, Run(options.out_dir, seed=0) as run:
    folder = options.data or draw_digits(Path(drawn))
    steps = [v2.ToImage(), v2.Resize((36, 36)), v2.RandomCrop(32), v2.ToDtype(torch.float32, scale=True)]
    images = datasets.ImageFolder(folder, v2.Compose(steps))  # the crop of an image is the same on any number of ranks
    net: nn.Module = models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=len(images.classes))
    net = run.model(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    loader = run.loader(images, batch_size=30, num_workers=options.workers)
    run.keep(net=net, optimizer=optimizer)
    for _ in run.epochs(options.epochs):
        hits = count = 0
        for pictures, labels in loader:
            scores = net(pictures)
            run.backward(F.cross_entropy(scores, labels, reduction="sum"))
            run.step(optimizer)
            hits += int((scores.argmax(1) == labels).sum())
            count += len(labels)
        run.log(accuracy=run.mean(hits, count))
