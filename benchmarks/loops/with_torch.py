"""The loop with torch alone."""

import torch
import torch.distributed as dist
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from benchmarks.loops.task import EPOCHS, OUT_DIR, PER_RANK, SAVE_EVERY, Patients, leave, network

dist.init_process_group("gloo")
rank = dist.get_rank()
net = DistributedDataParallel(network())
optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
data = Patients()
sampler = DistributedSampler(data, seed=0)
loader = DataLoader(data, batch_size=PER_RANK, sampler=sampler)
latest, new = OUT_DIR / "latest.pth", OUT_DIR / "latest.new"
first = done = 0
if latest.exists():
    saved = torch.load(latest)  # noqa: TID251 (its own file)
    net.module.load_state_dict(saved["net"])
    optimizer.load_state_dict(saved["optimizer"])
    first, done = saved["epoch"], saved["done"]
for epoch in range(first, EPOCHS):
    sampler.set_epoch(epoch)
    total = count = 0.0
    for step, (inputs, targets) in enumerate(loader):
        if step < done:
            continue
        optimizer.zero_grad()
        loss = mse_loss(net(inputs), targets)
        loss.backward()
        optimizer.step()
        total, count = total + loss.item() * len(targets), count + len(targets)
        if (step + 1) % SAVE_EVERY == 0 and rank == 0:
            OUT_DIR.mkdir(parents=True, exist_ok=True)
            state = {"net": net.module.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state | {"epoch": epoch, "done": step + 1}, new)
            new.replace(latest)
    done = 0
    sums = torch.tensor([total, count])
    dist.all_reduce(sums)
    if rank == 0:
        print(f"loss {sums[0] / sums[1]:.4f}")
leave(net.module)
dist.destroy_process_group()
