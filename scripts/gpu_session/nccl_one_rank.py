"""Tests DistributedDataParallel and batch norm over all ranks on a group of one rank, where a run leaves them out.

python scripts/gpu_session/nccl_one_rank.py [--device cuda|cpu]

NCCL on a GPU, gloo on a CPU. The gradients with the all-reduce hook and without it, by each way of counting, and batch
norm by the kernels of the group, against the plain network. Prints JSON with the largest relative differences; exit
status 1 where one is more than rounding.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddp_train.distributed.allreduce_hook import AllreduceHook
from ddp_train.models import create_model
from ddp_train.models.sync_batch_norm import _Normalise
from ddp_train.torch_internals import bucket_count, sync_batch_norm

TOLERANCE = 1e-3
STEPS = 2


class GroupNorm(nn.BatchNorm2d):
    """Batch norm computed as for several ranks, even where there is one."""

    def forward(self, input: Tensor) -> Tensor:
        """Batch norm over the group, by torch's own kernels where there is a GPU."""
        by_torch = sync_batch_norm() if input.device.type == "cuda" else None
        if by_torch is not None:
            running = self.running_mean, self.running_var
            among = dist.group.WORLD, dist.get_world_size()
            return by_torch(input, self.weight, self.bias, *running, self.eps, self.momentum or 0.0, *among)
        output: Tensor = _Normalise.apply(input, self.weight, self.bias, self.eps)[0]
        return output


def gradients(model: nn.Module, images: Tensor) -> list[Tensor]:
    """The gradient of the mean of squares, for each parameter."""
    model.zero_grad(set_to_none=True)
    model(images).square().mean().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def difference(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest distance of two gradients, as a share of the largest entry."""
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in zip(found, wanted, strict=True))


def compare(device: torch.device) -> dict[str, dict[str, object]]:
    """The differences of each way, and how many all-reduces it has counted."""
    torch.manual_seed(0)
    network = create_model("small", num_classes=10).to(device).train()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    images = torch.randn(16, 3, 32, 32, device=device)
    wanted = gradients(network, images)
    found: dict[str, dict[str, object]] = {}
    for name in ("plain", "hook", *(("hook, counted by the group",) if device.type == "cuda" else ())):
        ddp = DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)
        hook = None if name == "plain" else AllreduceHook(ddp, by_group=name.endswith("group"))
        worst = 0.0
        gradients(ddp, images)  # the wrapper finds its buckets
        if hook is not None:
            hook.verify(lambda model=ddp: gradients(model, images))  # type: ignore[misc]
        for _ in range(STEPS):
            if hook is not None:
                hook.begin_step()
            worst = max(worst, difference(gradients(ddp, images), wanted))
        counts = None if hook is None else [hook.issued, bucket_count(ddp)]
        found[name] = {"difference": worst, "all_reduces_and_buckets": counts}
        if hook is not None and name.endswith("group"):
            found[name] |= {"by_group": hook._by_group}  # False: the group's number is not what it seems
        del ddp, hook
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = GroupNorm
    found["batch norm"] = {"difference": difference(gradients(network, images), wanted)}
    return found


def main() -> int:
    """Start the group, compare; the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    device = torch.device("cuda", 0) if parser.parse_args().device == "cuda" else torch.device("cpu")
    torch.backends.cudnn.allow_tf32 = False
    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if device.type == "cuda" else "gloo"
        # gloo: no interface needs to be found for a rank that is alone
        dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            found = compare(device)
        finally:
            dist.destroy_process_group()
    print(json.dumps({"backend": backend, **found}, indent=1))
    bad = False
    for value in found.values():
        assert isinstance(value, dict)
        issued = value.get("all_reduces_and_buckets")
        bad |= value["difference"] > TOLERANCE or (issued is not None and issued[0] != issued[1])
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
