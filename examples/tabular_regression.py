"""Regression on a table: scikit-learn's diabetes data (442 patients, 10 numbers each).

PYTHONPATH=. python examples/tabular_regression.py                              # one process
PYTHONPATH=. torchrun --nproc-per-node 2 examples/tabular_regression.py          # the same weights, on two
PYTHONPATH=. python launch.py --auto examples/tabular_regression.py --epochs 40  # on the best GPUs
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_diabetes
from torch import nn
from torch.utils.data import TensorDataset

from ddp_train import Run

parser = argparse.ArgumentParser()
parser.add_argument("--out-dir", default="runs/tabular")
parser.add_argument("--epochs", type=int, default=20)
options = parser.parse_args()

inputs, targets = (torch.tensor(part, dtype=torch.float32) for part in load_diabetes(return_X_y=True))
inputs, targets = inputs / inputs.std(0), (targets - targets.mean()) / targets.std()
train, test = TensorDataset(inputs[:380], targets[:380]), TensorDataset(inputs[380:], targets[380:])

with Run(options.out_dir, seed=0) as run:
    net = run.model(nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 1), nn.Flatten(0)))
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    loader, held_out = run.loader(train, batch_size=37), run.loader(test, batch_size=64, shuffle=False)
    run.keep(net=net, optimizer=optimizer)
    for _ in run.epochs(options.epochs):
        for table, wanted in loader:
            run.backward(F.mse_loss(net(table), wanted, reduction="sum"))
            run.step(optimizer)
        squares = count = 0.0
        with torch.no_grad():
            for table, wanted in held_out:
                squares += F.mse_loss(net(table), wanted, reduction="sum").item()
                count += len(wanted)
        error = run.mean(squares, count)  # over all ranks, each patient once
        run.log(test_error=error)
        run.best(error, net, lowest=True)
