"""The program of scripts/test_matrix.sh: rank 1 dies in the first attempt; the second attempt adds up the ranks."""

import os
import signal

import torch
import torch.distributed as dist

attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
dist.init_process_group("gloo")
if attempt == 0 and dist.get_rank() == 1:
    os.kill(os.getpid(), signal.SIGKILL)
total = torch.tensor(float(dist.get_rank()))
dist.all_reduce(total)
if dist.get_rank() == 0:
    print(f"sum {total.item()} in attempt {attempt}", flush=True)
dist.destroy_process_group()
