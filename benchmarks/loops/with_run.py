"""The loop with ddp_train.Run."""

import torch
from torch.nn.functional import mse_loss

from benchmarks.loops.task import EPOCHS, GLOBAL_BATCH, OUT_DIR, SAVE_EVERY, Patients, leave, network
from ddp_train import Run

with Run(OUT_DIR, save_every=SAVE_EVERY, step_timeout=20) as run:
    net = run.model(network())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    loader = run.loader(Patients(), batch_size=GLOBAL_BATCH)
    run.keep(net=net, optimizer=optimizer)
    for _ in run.epochs(EPOCHS):
        total = count = 0.0
        for inputs, targets in loader:
            loss = mse_loss(net(inputs), targets, reduction="sum")
            run.backward(loss)
            run.step(optimizer)
            total, count = total + loss.item(), count + len(targets)
        run.print(f"loss {run.mean(total, count):.4f}")
leave(net)
