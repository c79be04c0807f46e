"""Who does what among the ranks, where no process group is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ddp_train.distributed.process_group import Ranks, on_one_rank_per_node

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("virtual", [False, True])
def test_one_rank_per_node_also_where_each_is_local_rank_0(virtual: bool) -> None:
    """Nodes of 2 and 3 ranks; world_size 1 keeps the process group out of it."""
    acted = []
    for first, count in ((0, 2), (2, 3)):
        for local in range(count):
            ranks = Ranks(first + local, 0 if virtual else local, 1, count)
            on_one_rank_per_node(lambda first=first: acted.append(first), ranks)
    assert acted == [0, 2]


@pytest.mark.parametrize(
    ("module", "options", "said"),
    [
        ("main", ["--device", "cuda", "--dataset", "digits", "--out-dir", "{folder}/run"], "--device cuda"),
        ("evaluate", ["--checkpoint", "{folder}/none"], "cannot read {folder}/none"),
    ],
)
def test_a_mistake_keeps_its_status_whatever_the_tear_down_would_do(
    tmp_path: Path, module: str, options: list[str], said: str
) -> None:
    """torch's threads may abort an interpreter that leaves with an open process group: here one that always aborts."""
    argv = [option.format(folder=tmp_path) for option in options]
    code = (
        "import atexit, os, sys, torch.distributed as dist; atexit.register(os.abort);"
        "dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1);"
        f"from ddp_train import {module}; sys.argv[1:] = {argv};"
        f" {module}.program()"
    )
    hidden = {"CUDA_VISIBLE_DEVICES": "", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=hidden, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert said.format(folder=tmp_path) in done.stderr
    assert done.stderr.count("\n") == 1
