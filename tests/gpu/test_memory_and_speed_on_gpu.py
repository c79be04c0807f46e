"""Compiled models, CUDA graphs, attention kernels and memory on a GPU. Left out by default: pytest -m gpu"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from ddp_train import checkpoint
from ddp_train.models import create_model
from ddp_train.models.attention import chunked_attention
from ddp_train.techniques.checkpointing import checkpoint_blocks
from ddp_train.tune.release import release_memory

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
    model: dict[str, torch.Tensor] = checkpoint.load(folder / "checkpoint-latest.pt")["model"]  # type: ignore[assignment]
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
