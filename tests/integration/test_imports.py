"""What a rank must not import on its way to the first step, as each costs seconds or a good part of one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ddp_train.data.sources.cifar10 import CLASSES
from tests.integration.conftest import ROOT, Command

OPTIONS = "--device cpu --epochs 1 --batch-size 20 --amp off --model small --no-tensorboard --no-examine"


def test_a_run_imports_nothing_slow_that_it_does_not_use(command: Command, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for part, name in ((part, name) for part in ("train", "test") for name in CLASSES):
        folder = tmp_path / "data" / part / name
        folder.mkdir(parents=True)
        for number in range(2):
            pixels = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    places = ["--data-dir", str(tmp_path / "data"), "--out-dir", str(tmp_path / "run")]
    done = command("-m", "tests.integration.imports_run", *OPTIONS.split(), *places, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    first, end, wrapped, compiled = done.stdout.splitlines()
    assert first == "first batch:"
    assert end == "end: matplotlib", "of the curves"
    assert wrapped == "wrapped: matplotlib"
    assert "torch._dynamo" in compiled and "sympy" in compiled, "the check itself"
