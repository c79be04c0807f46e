"""The batch finder: its answer against an exhaustive search, what it leaves behind, and a real end of memory."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ddp_core.errors import UserError
from ddp_train.tune.batch_size import Trial, choose, find_batch_size, sizes_between
from ddp_train.tune.steps import Line, fit

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")


class Device:
    """A stand-in for a device with so much memory: a step takes what a and b x batch say, and fails beyond."""

    def __init__(self, size: int, a: int, b: int, known: bool = True) -> None:
        self.size, self.a, self.b = size, a, b
        self.limit = size if known else None
        self.used, self.steps = 0, []

    def step(self, batch: int) -> None:
        self.steps.append(batch)
        if self.needs(batch) > self.size:
            raise RuntimeError("CUDA out of memory. Tried to allocate much")
        self.used = max(self.used, self.needs(batch))

    def needs(self, batch: int) -> int:
        return self.a + self.b * batch

    def reset(self) -> None:
        self.used = 0

    def peak(self) -> int | None:
        return self.used if self.limit is not None else None


def find(device: Device, **options):
    return find_batch_size(device.step, memory=device, device="cpu", **options)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("size", "a", "b"), [(10_000, 1000, 30), (1_000_000, 5, 777), (4096, 3000, 40), (999, 0, 1)])
def test_the_largest_is_within_one_size_of_an_exhaustive_search(size: int, a: int, b: int, known: bool) -> None:
    device = Device(size, a, b, known)
    found = find(device)
    allowed = 0.9 * size if known else size
    exhaustive = next(batch for batch in range(size, 0, -1) if device.needs(batch) <= allowed)
    exhaustive = exhaustive if known else max(1, int(0.9 * exhaustive))
    assert device.needs(found.largest) <= allowed
    one_size = max(1, exhaustive // 8)
    assert exhaustive - one_size <= found.largest <= exhaustive
    assert found.largest in device.steps, "confirmed by a step, not believed"
    assert found.ended == "memory"


def test_the_memory_line_is_that_of_the_device() -> None:
    found = find(Device(100_000, 3000, 50))
    assert found.memory is not None
    assert (found.memory.intercept, found.memory.slope) == pytest.approx((3000, 50))
    assert max(trial.batch for trial in found.trials) < 2 * found.largest, "no trial far beyond where the line ends"


def test_no_batch_above_the_asked_one_is_tried() -> None:
    device = Device(10**9, 0, 1)
    found = find(device, largest=100)
    assert (found.largest, found.ended, max(device.steps)) == (100, "limit", 100)


def test_a_device_without_room_is_refused() -> None:
    with pytest.raises(UserError, match="not even a batch of 4 per rank fits"):
        find(Device(100, 50, 20), smallest=4)


def test_errors_that_are_not_of_memory_pass() -> None:
    def step(batch: int) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        find_batch_size(step, device="cpu")


def test_what_cudnn_says_without_memory_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its words count where the memory of the device is nearly full."""
    monkeypatch.setattr("ddp_train.engine.oom_retry._is_nearly_full", lambda device: device == CPU)

    def step(batch: int) -> None:
        if batch > 8:
            raise RuntimeError("GET was unable to find an engine to execute this computation")

    assert find_batch_size(step, device="cpu").largest <= 8


def test_time_ends_the_search() -> None:
    found = find_batch_size(lambda batch: time.sleep(0.002 * batch), device="cpu", time_limit_s=0.5)
    assert found.ended == "time"
    assert found.largest < 128


FITS = [Trial(1, True, 10, 1.0), Trial(2, True, 20, 1.1), Trial(4, True, 40, 1.5), Trial(8, True, 80, 3.0)]


@pytest.mark.parametrize(
    ("trials", "target", "expected", "words"),
    [
        # 4 / 1.5 = 2.67 and 8 / 3 = 2.67: the smaller one
        (FITS, None, 4, "within 3% of the best throughput: a larger batch buys nothing"),
        ([*FITS[:3], Trial(8, True, 80, 2.8)], None, 8, "and the largest that was timed"),
        ([*FITS[:3], Trial(8, False, 80, 2.8)], None, 4, "within 3%"),
        ([Trial(1, True, 1, 1.0, 30.0), Trial(2, True, 1, 1.0, 86.0), Trial(4, True, 1, 1.0, 99.0)], 85, 2, "driver"),
        ([Trial(1, True, 1, 1.0, 30.0), Trial(2, True, 1, 1.5, 40.0)], 85, 2, "none reaches 85%"),
        (FITS, 50, 4, "stands for utilisation"),
        ([Trial(1, True), Trial(2, True)], None, 2, "no time to measure"),
    ],
)
def test_the_choice(trials: list[Trial], target: float | None, expected: int, words: str) -> None:
    chosen, reason = choose(trials, target, Line(1.0, 0.27))
    assert chosen == expected
    assert words in reason


def test_sizes_are_eighths() -> None:
    assert sizes_between(64, 128) == [72, 80, 88, 96, 104, 112, 120]
    assert sizes_between(2, 4) == [3]
    assert sizes_between(1, 2) == []


def test_a_line_needs_two_places() -> None:
    assert fit([(1, 3.0), (1, 4.0)]) is None
    line = fit([(1, 3.0), (3, 7.0)])
    assert line is not None
    assert (line.intercept, line.slope, line(10)) == (1.0, 2.0, 21.0)


def test_nothing_of_the_trials_remains() -> None:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 2))
    network[2].eval()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    fresh = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(fresh, 1)

    def step(batch: int) -> None:
        network.train()
        network(torch.randn(batch, 8) * random.random() + np.random.rand()).sum().backward()
        optimizer.step()
        fresh.step()
        scheduler.step()

    step(4)
    fresh.state.clear()
    network[2].eval()

    def state() -> tuple:
        tensors = [*network.state_dict().values(), *(p.grad for p in network.parameters())]
        tensors += [v for p in network.parameters() for v in optimizer.state[p].values()]
        draws = (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())
        modes = [module.training for module in network.modules()]
        rates = [group["lr"] for group in (*optimizer.param_groups, *fresh.param_groups)]
        return [t.clone() for t in tensors], draws, modes, rates, len(fresh.state), scheduler.state_dict()

    before, gradients = state(), [p.grad for p in network.parameters()]
    find_batch_size(step, device="cpu", smallest=2, largest=32, keep=[network, optimizer, fresh, scheduler])
    after = state()
    assert all(torch.equal(one, other) for one, other in zip(before[0], after[0], strict=True))
    assert before[1:] == after[1:]
    assert all(p.grad is kept for p, kept in zip(network.parameters(), gradients, strict=True))
    step(4)  # and it did change something
    assert not all(torch.equal(one, other) for one, other in zip(before[0], state()[0], strict=True))


LIMITED = """
import resource
import torch
from torch import nn
from ddp_train.tune.batch_size import find_batch_size
from ddp_train.tune.memory import HostMemory

torch.set_num_threads(1)
weight = nn.Parameter(torch.ones(2**17))

def step(batch):
    (weight * torch.ones(batch, 1)).sin().sum().backward()  # a few times half a MiB a sample
    weight.grad = None

step(1)
size = next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith("VmSize:"))
resource.setrlimit(resource.RLIMIT_AS, (size + 110 * 2**20,) * 2)

def fits(batch):
    memory.reset()
    try:
        step(batch)
    except RuntimeError as error:
        assert "can't allocate memory" in str(error), error
        return False
    return memory.peak() <= 0.9 * memory.limit

memory = HostMemory()
found = find_batch_size(step, device="cpu", memory=memory, time_limit_s=100)
print(found.largest, found.ended)
print(next(batch for batch in range(1, 1024) if not fits(batch + 1)))
assert not fits(512)
"""


def test_a_limit_of_the_allocator_on_the_cpu() -> None:
    # glibc keeps freed tensors below a growing threshold in its heap, which would blur what a step takes.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", LIMITED]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    largest, ended, exhaustive = done.stdout.split()
    assert ended == "memory"
    assert abs(int(largest) - int(exhaustive)) <= max(2, int(exhaustive) // 8), done.stdout  # one size is an eighth
