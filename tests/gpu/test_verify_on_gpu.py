"""verify on real GPUs. Left out by default: pytest -m gpu. The tests of pairs need two GPUs that work together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import pytest
import torch

from gpu_topology.driver.read import read_topology
from gpu_topology.host.host import read_host
from gpu_topology.select.select import SelectionRequest, select
from gpu_topology.verify import worker
from gpu_topology.verify.check import check
from gpu_topology.verify_cache import recall

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).resolve().parents[2]
GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")

# The product's own rank, in which one byte of each copy and send to the second GPU breaks.
CORRUPT = """
import os
import torch
from gpu_topology.verify import rank as verify_rank

copy = torch.Tensor.copy_

def broken_copy(self, source, *rest):
    copy(self, source, *rest)
    if self.device.index == 1 and self.dtype == torch.uint8 and self.numel() > 4000:
        self[4000] ^= 16
    return self

torch.Tensor.copy_ = broken_copy
os._exit(verify_rank.main())
"""


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def verify(*arguments: str) -> tuple[int, dict[str, object]]:
    command = [sys.executable, "-m", "gpu_topology", "verify", "--json", "--time-limit", "120", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=400)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_one_gpu_is_right() -> None:
    status, verdict = verify("--count", "1")
    assert (status, verdict["ok"], verdict["problem"]) == (0, True, None)
    assert (verdict["backend"], verdict["ranks"], verdict["pairs"], verdict["busbw_gb_s"]) == ("nccl", 1, [], None)


@two_gpus
def test_every_pair_is_measured_both_ways() -> None:
    status, verdict = verify()
    assert (status, verdict["ok"], verdict["problem"]) == (0, True, None)
    devices = verdict["devices"]
    assert isinstance(devices, list)
    pairs = verdict["pairs"]
    assert isinstance(pairs, list)
    for way in ("copy", "nccl"):
        assert [(pair["a"], pair["b"]) for pair in pairs if pair["way"] == way] == list(permutations(devices, 2))
    assert all(pair["gb_s"] > 0.1 and pair["problem"] is None for pair in pairs)
    busbw = verdict["busbw_gb_s"]
    assert isinstance(busbw, float)
    assert busbw > 0.1


def test_the_result_is_kept_for_the_launcher() -> None:
    topology = read_topology()
    selection = select(topology, SelectionRequest(count=1))
    verdict = check(topology, selection, read_host(), time_limit_s=120)
    assert verdict.ok
    assert recall(topology, selection.uuids) == verdict


@two_gpus
def test_a_copy_that_breaks_a_byte_is_found(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(CORRUPT)
    topology = read_topology()
    selection = select(topology, SelectionRequest(count=2))
    verdict = check(topology, selection, read_host(), worker=(str(script),), time_limit_s=120)
    a, b = selection.indices
    assert verdict.problem is not None
    assert verdict.problem.startswith(f"wrong data in copy GPU {a} -> GPU {b}: byte 4000 is 0x")
    # NCCL itself is right, so that peer access is what to leave alone.
    assert [setting[:2] for setting in verdict.settings] == [("NCCL_P2P_DISABLE", "1")]


@pytest.mark.parametrize("turn", [0, 1, 6])
def test_the_data_are_the_same_on_the_gpu(turn: int) -> None:
    size = 2**20 + 3
    assert torch.equal(worker._data(size, turn, GPU).cpu(), worker._data(size, turn, CPU))
    assert torch.equal(worker._numbers(size, turn, GPU).cpu(), worker._numbers(size, turn, CPU))
