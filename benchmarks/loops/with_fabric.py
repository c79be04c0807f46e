"""The loop with Lightning Fabric, as its guide to checkpoints shows it."""

import torch
from lightning.fabric import Fabric, seed_everything
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader

from benchmarks.loops.task import EPOCHS, OUT_DIR, PER_RANK, SAVE_EVERY, WORLD_SIZE, Patients, leave, network

fabric = Fabric(accelerator="cpu", devices=WORLD_SIZE, strategy="ddp")
fabric.launch()
seed_everything(0)
net = network()
net, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9))
loader = fabric.setup_dataloaders(DataLoader(Patients(), batch_size=PER_RANK, shuffle=True))
latest = OUT_DIR / "latest.ckpt"
state = {"net": net, "optimizer": optimizer, "epoch": 0, "done": 0}
if latest.exists():
    fabric.load(latest, state)
for epoch in range(state["epoch"], EPOCHS):
    if hasattr(loader.sampler, "set_epoch"):
        loader.sampler.set_epoch(epoch)
    total = count = 0.0
    for step, (inputs, targets) in enumerate(loader):
        if step < state["done"]:
            continue
        optimizer.zero_grad()
        loss = mse_loss(net(inputs), targets)
        fabric.backward(loss)
        optimizer.step()
        total, count = total + loss.item() * len(targets), count + len(targets)
        if (step + 1) % SAVE_EVERY == 0:
            fabric.save(latest, {**state, "epoch": epoch, "done": step + 1})
    state["done"] = 0
    sums = fabric.all_reduce(torch.tensor([total, count]), reduce_op="sum")
    fabric.print(f"loss {sums[0] / sums[1]:.4f}")
leave(net.module)
