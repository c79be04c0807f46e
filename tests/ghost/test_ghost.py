"""What the ghost holds tensors to, each against what CUDA does."""

from __future__ import annotations

import copy
import gc
import re

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.ghost import Ghost, Gpu, cuda
from tests.ghost.operations import CHANCE

OTHER_DEVICE = "Expected all tensors to be on the same device"


def on_gpu(*shape: int) -> torch.Tensor:
    return torch.arange(float(torch.Size(shape).numel()), device="cuda").view(shape)


def test_a_device_follows_the_memory(ghost: Ghost) -> None:
    network = nn.Linear(4, 3).to("cuda")
    network(on_gpu(2, 4)).sum().backward()
    views = [on_gpu(2, 4)[1:], on_gpu(4).detach(), network.weight.data, network.weight.grad, network.bias + 1]
    assert all(one is not None and one.device == torch.device("cuda", 0) and one.is_cuda for one in views)
    assert copy.deepcopy(network).weight.device.type == "cuda"
    assert network.to("cpu").weight.device.type == "cpu"
    assert torch.empty_like(on_gpu(3), device="cpu").device.type == "cpu"
    assert torch.equal(on_gpu(3).cpu() * 2, torch.tensor([0.0, 2.0, 4.0])), "the values are those of the CPU"


@pytest.mark.parametrize(
    "use",
    [
        lambda: on_gpu(3) + torch.ones(3),
        lambda: torch.cat([on_gpu(3), torch.ones(3)]),
        lambda: nn.Linear(4, 3)(on_gpu(2, 4)),
        lambda: functional.cross_entropy(on_gpu(2, 4), torch.tensor([0, 1])),
        lambda: on_gpu(4).index_select(0, torch.tensor([1])),
        lambda: torch.from_numpy(torch.ones(3).numpy()).add_(on_gpu(3)),
        lambda: torch.stack([on_gpu(1)[0], torch.tensor(1.0)]),
    ],
)
def test_two_devices_in_one_operation_are_refused(ghost: Ghost, use) -> None:
    with pytest.raises(RuntimeError, match=OTHER_DEVICE):
        use()


def test_a_number_of_the_host_is_an_operand(ghost: Ghost) -> None:
    assert (on_gpu(3) * torch.tensor(2.0)).is_cuda
    assert on_gpu(3).masked_fill(on_gpu(3) > 1, torch.tensor(0.0)).is_cuda
    with pytest.raises(RuntimeError, match="indices should be"):
        torch.ones(3)[torch.tensor([1], device="cuda")]
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        torch.zeros(1, device="cuda:1")
    with pytest.raises(TypeError, match="can't convert cuda:0"):
        on_gpu(3).numpy()


WAITING = {
    "_local_scalar_dense": lambda: on_gpu(1).item(),
    "tolist": lambda: on_gpu(3).tolist(),
    "nonzero": lambda: on_gpu(3).nonzero(),
    "index with a mask": lambda: on_gpu(3)[on_gpu(3) > 1],
    "index with indices of the host": lambda: on_gpu(3)[torch.tensor([1])],
    "torch.tensor of values of the host": lambda: torch.tensor([1.0], device="cuda"),
    "a copy to the device, with memory that is not pinned": lambda: torch.ones(3).to("cuda", non_blocking=True),
    "a copy to the device that is waited for": lambda: torch.ones(3).pin_memory().to("cuda"),
    "a copy from the device, with memory that is not pinned": lambda: on_gpu(3).cpu(),
    "torch.cuda.synchronize": lambda: torch.cuda.synchronize(),
    "Stream.synchronize": lambda: torch.cuda.current_stream().synchronize(),
}
NOT_WAITING = {
    "arithmetic": lambda: (on_gpu(3) * 2).sum().sqrt(),
    "pinned": lambda: torch.ones(3).pin_memory().to("cuda", non_blocking=True),
    "to the host, for later": lambda: on_gpu(3).to("cpu", non_blocking=True),
    "one_hot": lambda: functional.one_hot(torch.zeros(3, dtype=torch.int64, device="cuda"), 4),
    "full": lambda: torch.full((3,), 2.0, device="cuda"),
    "known size": lambda: on_gpu(3).repeat_interleave(torch.ones(3, dtype=torch.int64, device="cuda"), output_size=3),
}


def test_each_wait_is_noted_with_its_place(ghost: Ghost) -> None:
    for kind, use in WAITING.items():
        ghost.waits.forget()
        use()
        assert {wait.kind for wait in ghost.waits.counts} == {kind}
    for name, use in NOT_WAITING.items():
        ghost.waits.forget()
        use()
        assert ghost.waits.places() == [], name
    torch.cuda.set_sync_debug_mode("error")
    with pytest.raises(RuntimeError, match="synchronizing CUDA operation"):
        on_gpu(1).item()
    torch.cuda.set_sync_debug_mode("default")


def test_an_event_is_waited_for_where_nothing_else_was_given_to_the_gpu(ghost: Ghost) -> None:
    host, event = torch.empty(3, pin_memory=True), torch.cuda.Event()
    host.copy_(on_gpu(3), non_blocking=True)
    event.record()
    with pytest.raises(RuntimeError, match="before the copy"):
        host.tolist()
    on_gpu(3) + 1
    event.synchronize()
    assert (host.tolist(), ghost.waits.places()) == ([0.0, 1.0, 2.0], [])
    event.record()
    event.synchronize()
    assert [wait.kind for wait in ghost.waits.counts] == ["Event.synchronize with nothing queued after it"]


def test_memory_is_counted_and_limited() -> None:
    with cuda(Gpu(total=2**20, used_by_others=2**18)) as there:
        kept = torch.zeros(100_000, device="cuda")
        view = kept[5:]
        assert torch.cuda.memory_allocated() == 400_384  # in blocks of 512
        with pytest.raises(torch.OutOfMemoryError, match=r"CUDA out of memory\. Tried to allocate 0\.38 MiB"):
            kept + 1
        del kept
        gc.collect()
        assert torch.cuda.memory_allocated() == 400_384, "a view keeps it"
        del view
        gc.collect()
        assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == (0, 400_384)
        assert torch.cuda.max_memory_allocated() == 400_384
        torch.cuda.empty_cache()
        assert torch.cuda.mem_get_info() == (2**20 - 2**18, 2**20)
        torch.cuda.set_per_process_memory_fraction(0.1)
        there.gpu.words.append(
            lambda operation: RuntimeError("cuDNN error") if operation == "convolution" else None  # and not `zeros`
        )
        with pytest.raises(torch.OutOfMemoryError):
            torch.zeros(100_000, device="cuda")


def test_orders_of_chance_are_those_of_torchs_list(ghost: Ghost) -> None:
    listed = torch.use_deterministic_algorithms.__doc__.split("operations will throw a")[1].split("In addition")[0]
    names = set(re.findall(r"\* :\w+:`([\w.]+)`", listed))
    elsewhere = {"torch.nn.MaxUnpool1d", "torch.Tensor.resize_"}  # by MaxUnpool2d; of quantized tensors alone
    assert set(CHANCE.values()) == names - elsewhere
    images = torch.rand(2, 3, 8, 8, device="cuda", requires_grad=True)
    torch.use_deterministic_algorithms(True)
    try:
        functional.avg_pool2d(images, 2).sum().backward()
        with pytest.raises(RuntimeError, match="adaptive_max_pool2d_backward_cuda does not have a deterministic"):
            functional.adaptive_max_pool2d(images, 1).sum().backward()
        torch.bincount(torch.tensor([1, 1], device="cuda"))
        with pytest.raises(RuntimeError, match="bincount_cuda"):
            torch.bincount(torch.tensor([1, 1], device="cuda"), torch.ones(2, device="cuda"))
    finally:
        torch.use_deterministic_algorithms(False)


def test_fused_optimizers_want_one_memory_order(ghost: Ghost) -> None:
    weight = nn.Parameter(torch.rand(4, 3, 2, 2, device="cuda").contiguous(memory_format=torch.channels_last))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9, fused=True)
    weight.grad = torch.rand_like(weight)
    optimizer.step()
    weight.grad = torch.rand(4, 3, 2, 2, device="cuda")
    with pytest.raises(RuntimeError, match="same dtype, device and strides"):
        optimizer.step()


def test_torch_is_left_as_it_was() -> None:
    def now() -> list[object]:
        of_tensors = [getattr(torch.Tensor, name) for name in ("to", "device", "tolist", "new_zeros", "__deepcopy__")]
        return [*of_tensors, torch.zeros, torch.cuda.is_available, torch.autocast, torch.UntypedStorage.device]

    before = now()
    with cuda():
        assert torch.cuda.is_available()
        assert now() != before
    assert now() == before
    assert torch.zeros(1).device.type == "cpu"
