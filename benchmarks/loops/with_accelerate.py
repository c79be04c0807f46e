"""The loop with accelerate, as its guide to checkpoints shows it."""

import json

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader

from benchmarks.loops.task import EPOCHS, OUT_DIR, PER_RANK, SAVE_EVERY, Patients, leave, network

accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True))
set_seed(0)
net = network()
optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
loader = DataLoader(Patients(), batch_size=PER_RANK, shuffle=True)
net, optimizer, loader = accelerator.prepare(net, optimizer, loader)
latest = OUT_DIR / "latest"
first = done = 0
if (latest / "place.json").exists():
    accelerator.load_state(str(latest))
    first, done = json.loads((latest / "place.json").read_text())
for epoch in range(first, EPOCHS):
    loader.set_epoch(epoch)
    batches = accelerator.skip_first_batches(loader, done) if done else loader
    total = count = 0.0
    for step, (inputs, targets) in enumerate(batches, start=done):
        optimizer.zero_grad()
        loss = mse_loss(net(inputs), targets)
        accelerator.backward(loss)
        optimizer.step()
        total, count = total + loss.item() * len(targets), count + len(targets)
        if (step + 1) % SAVE_EVERY == 0:
            accelerator.save_state(str(latest))
            if accelerator.is_main_process:
                (latest / "place.json").write_text(json.dumps([epoch, step + 1]))
    done = 0
    sums = accelerator.reduce(torch.tensor([total, count]))
    accelerator.print(f"loss {sums[0] / sums[1]:.4f}")
leave(accelerator.unwrap_model(net))
accelerator.end_training()
