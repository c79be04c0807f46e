"""A transformer that writes one character after another, trained on the beginning of a book.

PYTHONPATH=. torchrun --nproc-per-node 2 examples/character_transformer.py --epochs 10
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddp_train import Run

parser = argparse.ArgumentParser()
parser.add_argument("--out-dir", default="runs/characters")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--text", type=Path, default=Path(__file__).with_name("alice.txt"))
options = parser.parse_args()

text = options.text.read_text(encoding="utf-8")
letters = sorted(set(text))
codes = torch.tensor([letters.index(letter) for letter in text])
LENGTH, STRIDE = 32, 8
pieces = [codes[at : at + LENGTH + 1] for at in range(0, len(codes) - LENGTH, STRIDE)]  # a list is a dataset


class Writer(nn.Module):
    """Characters [n, length] -> scores of the next one at every place [n, length, letters]."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.letter, self.place = nn.Embedding(len(letters), width), nn.Embedding(LENGTH, width)
        kind = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, **kind)
        self.layers = nn.TransformerEncoder(layer, 2, nn.LayerNorm(width), enable_nested_tensor=False)
        self.scores = nn.Linear(width, len(letters))

    def forward(self, known: Tensor) -> Tensor:
        """Scores of the next letter at each place."""
        later = torch.ones(known.shape[1], known.shape[1], dtype=torch.bool, device=known.device).triu(1)
        places = torch.arange(known.shape[1], device=known.device)
        return self.scores(self.layers(self.letter(known) + self.place(places), mask=later))


with Run(options.out_dir, seed=0) as run:
    net = run.model(Writer())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    loader = run.loader(pieces, batch_size=32)
    run.keep(net=net, optimizer=optimizer)
    for _ in run.epochs(options.epochs):
        for piece in loader:
            scores = net(piece[:, :-1])
            loss = F.cross_entropy(scores.flatten(0, 1), piece[:, 1:].flatten(), reduction="sum")
            run.backward(loss / LENGTH)  # of a piece its mean; over the pieces the sum
            run.step(optimizer)
