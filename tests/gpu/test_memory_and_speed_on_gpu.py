"""Compiled models, CUDA graphs, attention kernels and memory on a GPU. Left out by default: pytest -m gpu"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from ddp_train.checkpoint import format as checkpoint_format
from ddp_train.models import create_model
from ddp_train.models.vit import chunked_attention
from ddp_train.techniques.checkpointing import checkpoint_blocks
from ddp_train.tune.preserve import release_memory

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).resolve().parents[2]
GPU = torch.device("cuda", 0)
RUN = "--dataset synthetic --synthetic-samples 520 --batch-size 64 --epochs 2 --amp off --lr 0.001 --no-tensorboard"
"""The last of nine steps has 8 samples: a second shape."""


def train(folder: Path, options: str) -> dict[str, torch.Tensor]:
    """The weights at the end of a run in a process of its own."""
    command = [sys.executable, str(ROOT / "ddp_train" / "main.py"), *f"{RUN} {options}".split(), "--out-dir"]
    done = subprocess.run([*command, str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    model: dict[str, torch.Tensor] = checkpoint_format.load(folder / "checkpoint-latest.pt")["model"]  # type: ignore[assignment]
    return model


@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune"])
def test_a_compiled_run_is_the_plain_one(tmp_path: Path, mode: str) -> None:
    plain = train(tmp_path / "plain", "--model small")
    compiled = train(tmp_path / "compiled", f"--model small --compile --compile-mode {mode}")
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, atol=2e-3, rtol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_kernels_agree_with_the_reference(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(4, 8, 256, 64, device=GPU, dtype=dtype, requires_grad=True) for _ in range(3)]
    outputs = [functional.scaled_dot_product_attention(*inputs), chunked_attention(*inputs)]
    gradients = [torch.autograd.grad(output.square().sum(), inputs) for output in outputs]
    near = {"atol": 3e-2, "rtol": 3e-2} if dtype is torch.bfloat16 else {"atol": 1e-4, "rtol": 1e-3}
    torch.testing.assert_close(outputs[0], outputs[1], **near)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, **near)


def test_checkpointing_lowers_the_peak() -> None:
    def peak(save: bool) -> int:
        release_memory()
        torch.manual_seed(0)
        network = create_model("resnet18", num_classes=10).to(GPU)
        if save:
            checkpoint_blocks(network)
        before = torch.cuda.memory_allocated()
        network(torch.randn(256, 3, 32, 32, device=GPU)).sum().backward()
        return torch.cuda.max_memory_allocated() - before

    assert peak(True) < 0.7 * peak(False)


def test_memory_is_given_back_between_trials() -> None:
    release_memory()
    before = torch.cuda.memory_reserved()
    trial = {"weights": torch.zeros(2**28, device=GPU)}
    trial["itself"] = trial  # type: ignore[assignment]
    del trial
    assert torch.cuda.memory_reserved() >= before + 2**30
    release_memory()
    assert torch.cuda.memory_reserved() <= before


def test_the_report_of_a_run_with_expandable_segments(tmp_path: Path) -> None:
    train(tmp_path / "run", "--model resnet18 --memory-report --expandable-segments")
    document = json.loads((tmp_path / "run" / "memory.json").read_text())
    (peaks,) = document["ranks"]
    assert document["of"] == "allocated by torch on the GPU"
    weights = 4 * 11_173_962
    assert all(peaks[phase] > weights for phase in ("forward", "backward", "step", "evaluation"))
    assert peaks["backward"] >= peaks["kept"] + weights


def test_the_batch_finder_agrees_with_an_exhaustive_search(tmp_path: Path) -> None:
    """Within a limit that torch's allocator holds, in a process of its own."""
    script = """
import time, torch
from torch import nn
from ddp_train.tune.batch_size import find_batch_size
from ddp_train.tune.memory import GpuMemory
device = torch.device("cuda", 0)
torch.cuda.set_per_process_memory_fraction(4 * 2**30 / torch.cuda.get_device_properties(0).total_memory)
network = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1)).to(device)
optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
def step(batch):
    network(torch.ones(batch, 3, 64, 64, device=device)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
before = [p.clone() for p in network.parameters()]
torch.cuda.synchronize(); allocated = torch.cuda.memory_allocated()
begun = time.monotonic()
found = find_batch_size(step, device=device, keep=[network, optimizer])
seconds = time.monotonic() - begun
assert all(torch.equal(a, b) for a, b in zip(before, network.parameters())) and not optimizer.state
assert torch.cuda.memory_allocated() == allocated, (torch.cuda.memory_allocated(), allocated)
memory, limit = GpuMemory(device), found.limit
def fits(batch):
    memory.reset()
    try:
        step(batch)
    except torch.OutOfMemoryError:
        return False
    return memory.peak() <= 0.9 * limit
step_of_sizes = max(1, found.largest // 16)
sizes = {t.batch for t in found.trials} | set(range(found.largest // 2, 2 * found.largest, step_of_sizes))
print(found.largest, max(s for s in sizes if fits(s)), seconds)
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    largest, exhaustive, seconds = map(float, done.stdout.split())
    assert abs(largest - exhaustive) <= exhaustive / 8, done.stdout
    assert seconds < 30
