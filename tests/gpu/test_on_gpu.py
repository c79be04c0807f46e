"""What only a GPU can show. Left out by default: pytest -m gpu"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ddp_train.config.options import AugmentOptions, DataOptions
from ddp_train.data import load
from ddp_train.data.augment.augmentation import Augmentation
from ddp_train.data.pipeline.build import build_pipeline, create_augmentation
from ddp_train.distributed.process_group import Ranks, gpu_uuids
from ddp_train.engine.components import Components
from ddp_train.engine.trainer import Trainer
from ddp_train.models import create_model
from ddp_train.optim import create_optimizer
from ddp_train.optim.losses import cross_entropy_sum
from ddp_train.optim.precision import Precision
from ddp_train.techniques.registry import compose
from gpu_topology.monitor import read_energy, taken
from tests.ddp_train.contexts import make_context

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).resolve().parents[2]
GPU = torch.device("cuda", 0)


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=240)


def test_the_report_names_torchs_gpu(tmp_path: Path) -> None:
    done = run(ROOT, "-m", "gpu_topology", "report", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    properties = torch.cuda.get_device_properties(0)
    gpu = next(gpu for gpu in report["gpus"] if gpu["uuid"] == f"GPU-{properties.uuid}")
    assert gpu["compute_capability"] == [properties.major, properties.minor]
    assert gpu["memory_total"] >= properties.total_memory


def test_the_energy_counter_counts_what_the_gpu_does() -> None:
    names = gpu_uuids(Ranks(), GPU)
    if not (before := read_energy(names)):
        pytest.skip("this GPU has no energy counter")
    matrix = torch.rand(4096, 4096, device=GPU)
    began = time.monotonic()
    while time.monotonic() - began < 2:
        for _ in range(50):
            matrix = (matrix @ matrix).clamp_(-1, 1)
        torch.cuda.synchronize(GPU)
    (joules,) = taken(before, read_energy(names)).values()
    assert 2 * 10 < joules < 60 * 1500


@pytest.mark.parametrize("start", [["launch.py", "--auto"], ["ddp_train/main.py"]], ids=" ".join)
def test_digits_are_learned(tmp_path: Path, start: list[str]) -> None:
    script, *options = start
    done = run(tmp_path, str(ROOT / script), *options, "--dataset", "digits", "--epochs", "15", "--out-dir", "run")
    assert done.returncode == 0, done.stderr
    history = json.loads((tmp_path / "run" / "training_history.json").read_text())
    assert history["environment"]["device"] == torch.cuda.get_device_name(0)
    assert history["best"]["test_accuracy"] > 0.97


def test_augmentation_draws_the_same_on_both_devices() -> None:
    images = torch.randint(256, (64, 32, 32, 3), dtype=torch.uint8)
    samples = torch.arange(64)
    shape, mean, std = (3, 32, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    found = [
        Augmentation("heavy", image_shape=shape, mean=mean, std=std, seed=5, device=device)(
            images.to(device), samples.to(device), epoch=3
        ).cpu()
        for device in (torch.device("cpu"), GPU)
    ]
    assert torch.equal(*found)


FURTHER = AugmentOptions(
    augment="heavy", flip="alternating", random_resized_crop=0.3, rotation=15, color_jitter=0.4, grayscale=0.3
)


@pytest.mark.parametrize("policy", ["autoaugment", "randaugment", "trivialaugment"])
def test_further_operations_are_the_same_on_both_devices_and_never_wait(policy: Any) -> None:
    dataset = load("synthetic", DataOptions(dataset="synthetic", synthetic_samples=512))
    images, samples = torch.from_numpy(dataset.train.images), torch.arange(512)
    found = []
    for device in (torch.device("cpu"), GPU):
        augmentation = create_augmentation(dataset, replace(FURTHER, augment_policy=policy), 5, device)
        there = images.to(device), samples.to(device)
        augmentation(*there, 0)  # kernels are loaded in the first call
        torch.cuda.set_sync_debug_mode("error")
        try:
            found.append((augmentation.draw(there[1], 3), augmentation(*there, 3)))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    (drawn, on_cpu), (drawn_too, on_gpu) = found
    for one, other in zip(drawn.fields, drawn_too.fields, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other.cpu())
    levels = (on_cpu - on_gpu.cpu()).abs() * torch.tensor(dataset.std).view(1, 3, 1, 1) * 255
    # A level of rounding; ahead of a threshold or between two pixels it can decide about more.
    assert float((levels > 1.5).float().mean()) < 0.01


STEPS = [
    ("off", {}),
    ("bf16", {}),
    ("bf16", {"optimizer": "adamw", "amsgrad": True}),
    ("bf16", {"optimizer": "muon", "lookahead": 3, "ema": 0.9}),
    ("off", {"sam": 0.05, "ema": 0.9, "ema_warmup": True}),
    ("bf16", {"mixup": 0.2, "cutmix": 1.0}),
]


@pytest.mark.parametrize(("amp", "chosen"), STEPS, ids=str)
def test_a_step_never_waits_for_the_gpu(amp: str, chosen: dict[str, Any]) -> None:
    options = DataOptions(dataset="synthetic", synthetic_samples=512)
    augment = AugmentOptions(augment="heavy")
    pipeline = build_pipeline(
        load("synthetic", options),
        options,
        augment,
        rank=0,
        world_size=1,
        device=GPU,
        global_batch=64,
        accumulate=2,
        seed=0,
    )
    network = create_model("small", num_classes=10).to(GPU, memory_format=torch.channels_last)
    context = replace(make_context(network, clip_grad=1.0, **chosen), device=GPU)
    optimizer = create_optimizer(network, context.config.optim, 0.05, GPU)
    trainer = Trainer(
        Components(
            ranks=Ranks(),
            device=GPU,
            network=network,
            model=network,
            ddp=None,
            pipeline=pipeline,
            loss=cross_entropy_sum(0.1),
            optimizer=optimizer,
            schedule=lambda step: 1.0,
            precision=Precision(amp, GPU),
            epochs=1,
            global_batch=64,
            techniques=compose(context)[1],
        )
    )
    windows = pipeline.train(0)
    trainer.train_step(next(windows))  # kernels are loaded and workspaces made in the first step
    torch.cuda.set_sync_debug_mode("error")
    try:
        for window in windows:
            trainer.train_step(window)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.progress.step == pipeline.steps_per_epoch


def test_formats_are_compared(tmp_path: Path) -> None:
    words = ["--dataset", "synthetic", "--model", "small", "--batch-size", "256", "--json"]
    done = run(ROOT, "-m", "ddp_train.diagnostics.precision", *words)
    assert done.returncode == 0, done.stderr
    errors = {row["format"]: row["gradient_error"] for row in json.loads(done.stdout)["formats"]}
    if torch.cuda.get_device_capability() >= (8, 0):
        assert errors["fp64"] < errors["fp32"] < errors["tf32"] < errors["bf16"]
    assert errors["fp32"] < errors["fp16"] < 1.0


@pytest.mark.parametrize("words", ["", "--optimizer muon --lookahead 3 --ema 0.9", "--sam 0.05 --optimizer adamw"])
def test_fp16_learns_with_every_sort_of_step(tmp_path: Path, words: str) -> None:
    common = "ddp_train/main.py --dataset digits --epochs 8 --amp fp16 --init-scale 1e6 --out-dir"
    done = run(ROOT, *common.split(), str(tmp_path / "run"), *words.split())
    assert done.returncode == 0, done.stderr
    history = json.loads((tmp_path / "run" / "training_history.json").read_text())
    assert history["best"]["test_accuracy"] > 0.9
