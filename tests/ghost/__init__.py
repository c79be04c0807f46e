"""A CUDA that is not there: the real trainer, real values and real process groups on the CPU, while every tensor says
that it is on a GPU.

A device is a property of memory: each storage carries an `Allocation` that names its device, so that views, aliases,
gradients and DistributedDataParallel's buckets have theirs without more ado, and the bytes are given back when the
storage ends. Where the pieces are:

    memory.py        GPUs and what is allocated on them: figures as torch.cuda has them, a limit, pinned memory
    waits.py         every place at which the host waits for a device, and what was read too early
    operations.py    a dispatch mode: what CUDA refuses (two devices in one operation, orders of chance under
                     `--reproducible`, strides that fused kernels do not take) and what makes the host wait
    tensors.py       torch's functions that name a device: factories, `to`, `tolist`, `pin_memory`, pickling
    runtime.py       torch.cuda and torch.accelerator: devices, streams, events, generators; autocast
    kernels.py       what torch has for CUDA alone (batch norm over all ranks), by its formula
    collectives.py   NCCL by its name: gloo computes, a tensor on the CPU is refused, an object costs a wait
    process.py       the same in processes that a test starts: environment variables, a report at the end
    machines.py      stand-ins for libcuda and NVML of one machine, for the launcher and its ranks alike

    with ghost.cuda(Gpu(total=2**30)) as there:        # in this process
        torch.zeros(3, device="cuda") + 1
    there.waits.places()                               # [] : nothing waited

    environment = ghost_machine("h100_8x_nvswitch")    # a fixture: for launch.py, torchrun, ddp_train/main.py

What it cannot tell, and only a GPU can, is in docs/gpu.md: speed, kernels and their number formats, cuDNN's choices,
torch.compile, CUDA graphs, NCCL itself, races between streams, fragments of the real allocator.
"""

from .install import Ghost, cuda, current
from .memory import Gpu

__all__ = ["Ghost", "Gpu", "cuda", "current"]
