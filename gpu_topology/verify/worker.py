"""The work of one rank in verify's job: copies and sends compared bit for bit, and an all-reduce with exact sums.

The only module of this package that imports torch; only rank.py imports it, in a process that torchrun started.
Data are made on the device that needs them, by integer arithmetic that is the same everywhere, so that the transfer
under test is the only one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import timedelta
from itertools import permutations
from pathlib import Path

import torch
import torch.distributed as dist

from gpu_topology.verify.journal import Journal, Refused, Step

# Message sizes in bytes, odd so that no transfer consists of whole words. NCCL has a protocol for each range of sizes
# (LL, LL128, Simple); the last size is for the bandwidth. The all-reduce rounds up to whole floats.
SIZES = {"nccl": (1, 4099, 2**20 + 3, 2**26 + 5), "gloo": (1, 4099, 2**20 + 3, 2**22 + 5)}
REPEATS = 4
# Sums of remainders below this are exact in float32 in every order, for any number of ranks.
MODULUS = 31
# Seconds that each rank computes: enough for the clocks of a hot GPU to fall.
COMPUTE_S = 0.5
# verify stops a job that hangs; torch's own limits must not come first.
NEVER = timedelta(days=1)

Bytes = torch.Tensor


def work(journal: Journal, start: Step, folder: Path, backend: str, *, copies: bool) -> None:
    """All steps in order. Wrong data are recorded, and the work continues. Raises Refused, and what torch raises."""
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = _device(backend)
    journal.end(start)
    init = Step("init")
    journal.begin(init)
    # gloo beside NCCL keeps the ranks in step without the transfers under test.
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if backend == "nccl" else "gloo",
        store=dist.FileStore(str(folder / "worker-store"), world_size),  # type: ignore[attr-defined]
        rank=rank,
        world_size=world_size,
        timeout=NEVER,
        device_id=device if backend == "nccl" else None,
    )
    dist.all_reduce(torch.zeros(1, device=device))
    _wait(device)
    journal.end(init)
    _compute(journal, device)
    if copies and rank == 0 and torch.cuda.device_count() == world_size:
        for a, b in permutations(range(world_size), 2):
            _copy(journal, a, b, SIZES[backend])
    for a, b in permutations(range(world_size), 2):
        _meet()
        if rank in (a, b):
            _send(journal, a, b, rank, device, SIZES[backend])
    _sum(journal, rank, world_size, device, SIZES[backend])
    _meet()
    journal.end(Step("done"))


def _compute(journal: Journal, device: torch.device) -> None:
    """Matrix products on all ranks at once, so that the GPUs share power and cooling as in a training run."""
    step = Step("compute")
    journal.begin(step)
    on_gpu = device.type == "cuda"
    size, kind = (8192, torch.float16) if on_gpu else (512, torch.float32)
    factor = torch.rand(size, size, device=device, dtype=kind)
    factor @ factor
    _wait(device)
    _meet()
    products, begin = 0, time.perf_counter()
    while (seconds := time.perf_counter() - begin) < COMPUTE_S:
        for _ in range(4):
            factor @ factor
        _wait(device)
        products += 4
    journal.end(step, tflop_s=products * 2 * size**3 / seconds / 1e12)


def _device(backend: str) -> torch.device:
    """This rank's device. Errors: Refused where torch does not see the GPU."""
    if backend == "gloo":
        return torch.device("cpu")
    ordinal = int(os.environ["LOCAL_RANK"])
    if torch.cuda.device_count() <= ordinal:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise Refused(f"torch {torch.__version__} ({built}) sees {torch.cuda.device_count()} GPUs of this selection")
    torch.cuda.set_device(ordinal)
    return torch.device("cuda", ordinal)


def _meet() -> None:
    """Wait for all ranks."""
    dist.all_reduce(torch.zeros(1))


def _wait(device: torch.device) -> None:
    """Wait until the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _copy(journal: Journal, a: int, b: int, sizes: tuple[int, ...]) -> None:
    """One process copies from GPU a to GPU b, as DataParallel, device_map and pipelines do."""
    step = Step("copy", a, b)
    journal.begin(step)
    source, target = torch.device("cuda", a), torch.device("cuda", b)
    problem = None
    for size, turn in _messages(sizes, a, b):
        sent, received, expected = _data(size, turn, source), _data(size, turn ^ 1, target), _data(size, turn, target)
        _wait(source)
        _wait(target)
        received.copy_(sent)
        _wait(source)
        _wait(target)
        problem = problem or _difference(received, expected)
    begin = time.perf_counter()
    for _ in range(REPEATS):
        received.copy_(sent)
    _wait(source)
    _wait(target)
    journal.end(step, problem, _gb_s(REPEATS * size, time.perf_counter() - begin))


def _send(journal: Journal, a: int, b: int, rank: int, device: torch.device, sizes: tuple[int, ...]) -> None:
    """Rank a sends, rank b receives and compares."""
    step = Step("send", a, b)
    journal.begin(step)
    problem = None
    for size, turn in _messages(sizes, a, b):
        data = _data(size, turn if rank == a else turn ^ 1, device)
        _wait(device)
        _transfer(data, a, b, rank, device)
        if rank == b:
            problem = problem or _difference(data, _data(size, turn, device))
    begin = time.perf_counter()
    for _ in range(REPEATS):
        _transfer(data, a, b, rank, device)
    seconds = time.perf_counter() - begin
    # Only the receiver, which can compare the data, reports the speed.
    journal.end(step, problem, _gb_s(REPEATS * size, seconds) if rank == b else None)


def _transfer(data: Bytes, a: int, b: int, rank: int, device: torch.device) -> None:
    """One send, in a batch: without one NCCL would set up a communicator for each pair of ranks."""
    operation = dist.P2POp(dist.isend, data, b) if rank == a else dist.P2POp(dist.irecv, data, a)
    for request in dist.batch_isend_irecv([operation]):
        request.wait()
    _wait(device)


def _sum(journal: Journal, rank: int, world_size: int, device: torch.device, sizes: tuple[int, ...]) -> None:
    """All-reduce small whole numbers, so that every sum is exact."""
    step = Step("sum")
    journal.begin(step)
    problem, seconds = None, 0.0
    counts = [-(-size // 4) for size in sizes]
    for turn, count in enumerate((*counts, *[counts[-1]] * REPEATS)):
        taken, wrong = _sum_once(count, rank, world_size, device)
        problem = problem or wrong
        # Only the repeats are timed: the first all-reduce of a size sets up what the others use.
        seconds += taken if turn >= len(counts) else 0.0
    # nccl-tests, doc/PERFORMANCE.md: in the best all-reduce each byte crosses a link 2 (n - 1) / n times.
    moved = REPEATS * 4 * counts[-1] * 2 * (world_size - 1) / world_size
    journal.end(step, problem, _gb_s(moved, seconds) if world_size > 1 else None)


def _sum_once(count: int, rank: int, world_size: int, device: torch.device) -> tuple[float, str | None]:
    """One all-reduce of `count` floats: its seconds, and what is wrong with the sums."""
    values, expected = _numbers(count, rank, device), torch.zeros(count, device=device)
    for other in range(world_size):
        expected += _numbers(count, other, device)
    _wait(device)
    _meet()
    begin = time.perf_counter()
    dist.all_reduce(values)
    _wait(device)
    seconds = time.perf_counter() - begin
    if torch.equal(values, expected):
        return seconds, None
    at = int((values != expected).nonzero()[0])
    return seconds, f"sum {at} of {count} is {values[at].item():g} and should be {expected[at].item():g}"


def _messages(sizes: tuple[int, ...], a: int, b: int) -> Iterator[tuple[int, int]]:
    """(size, turn) of each message; no turn comes twice, and an odd one is the even one with each bit flipped."""
    first = (1000 * a + b) * len(sizes)
    for number, size in enumerate(sizes, first):
        yield size, 2 * number
        yield size, 2 * number + 1


def _data(size: int, turn: int, device: torch.device) -> Bytes:
    """uint8 [size] with values that depend on the place and on the turn."""
    words = torch.arange(-(-size // 4), dtype=torch.int32, device=device)
    # A multiplicative hash of place and turn, twice; int32 wraps around alike on every device.
    words.mul_(-1640531535).add_(_signed(turn // 2 * 0x2545F491))
    words.bitwise_xor_(words >> 15).mul_(-2048144777).bitwise_xor_(words >> 13)
    if turn % 2:
        words.bitwise_not_()
    return words.view(torch.uint8)[:size]


def _signed(number: int) -> int:
    """The low 32 bits as a signed int32."""
    return (number + 2**31) % 2**32 - 2**31


def _numbers(count: int, rank: int, device: torch.device) -> torch.Tensor:
    """float32 [count]: whole numbers from 0 to MODULUS - 1, different on each rank."""
    return ((torch.arange(count, device=device) * 7 + rank * 13) % MODULUS).float()


def _difference(found: Bytes, expected: Bytes) -> str | None:
    """Where the first byte differs and how many do, in words; None where all are equal."""
    if torch.equal(found, expected):
        return None
    wrong = found != expected
    at = int(wrong.nonzero()[0])
    first = f"byte {at} is {int(found[at]):#04x} and should be {int(expected[at]):#04x}"
    return f"{first}, {int(wrong.sum())} of {found.numel()} bytes are wrong"


def _gb_s(size: float, seconds: float) -> float:
    """GB/s for `size` bytes in `seconds`."""
    return size / seconds / 1e9
