"""torch's private API: each use is there in this torch, and where it is not, the public way gives the same."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddp_train import torch_internals

USED = [
    "torch._disable_dynamo",
    "torch._foreach_add",
    "torch._foreach_add_",
    "torch._foreach_copy_",
    "torch._foreach_mul_",
    "torch._foreach_norm",
    "torch._amp_foreach_non_finite_check_and_unscale_",
    "torch.autograd._profiler_enabled",
    "torch.autograd.graph._engine_run_backward",
    "torch.nn.modules._functions.SyncBatchNorm",
    "torch.optim.optimizer._global_optimizer_pre_hooks",
    "torch.optim.optimizer._global_optimizer_post_hooks",
    "torch._dynamo.callback.callback_handler",
]


@pytest.fixture
def ddp() -> Iterator[DistributedDataParallel]:
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield DistributedDataParallel(nn.Linear(3, 2))
    dist.destroy_process_group()


@pytest.mark.parametrize("name", USED)
def test_this_torch_has_what_is_used(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    assert hasattr(importlib.import_module(module), attribute), f"torch {torch.__version__} has moved {name}"


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize(
    ("operation", "partners", "options"),
    [("add", True, {"alpha": 0.5}), ("add_", True, {"alpha": -2.0}), ("copy_", True, {}), ("mul_", False, {})],
)
def test_an_operation_over_all_tensors(
    operation: str, partners: bool, options: dict[str, float], private: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not private:
        monkeypatch.delattr(torch, f"_foreach_{operation}")
    torch.manual_seed(0)
    tensors, others = ([torch.randn(3), torch.randn(2, 2)] for _ in range(2))
    expected = [
        getattr(tensor.clone(), operation)(other if partners else 3.0, **options)
        for tensor, other in zip(tensors, others, strict=True)
    ]
    found = torch_internals.foreach(operation, tensors, others if partners else 3.0, **options)
    found = tensors if operation.endswith("_") else found
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("private", [True, False])
def test_norms_of_all_tensors(private: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not private:
        monkeypatch.delattr(torch, "_foreach_norm")
    tensors = [torch.tensor([3.0, 4.0]), torch.full((2, 2), 2.0)]
    assert [float(norm) for norm in torch_internals.foreach("norm", tensors)] == [5.0, 4.0]


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan, 1e38])
def test_a_number_that_is_not_finite_is_found(value: float, private: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not private:
        monkeypatch.delattr(torch, "_amp_foreach_non_finite_check_and_unscale_")
    bad, one = torch.zeros(()), torch.ones(())
    tensors = [torch.ones(4), torch.tensor([[1.0, value]])]
    for _ in range(2):  # the first call leaves nothing behind
        assert torch_internals.any_not_finite(tensors, bad, one) is (abs(value) != 1e38)
        assert not torch_internals.any_not_finite([torch.ones(3)], bad, one)
    assert tensors[0].eq(1).all() and float(bad) == 0


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("value", [torch.inf, torch.nan, 1.0])
def test_complex_and_sparse_tensors_are_looked_at_too(
    value: float, private: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not private:
        monkeypatch.delattr(torch, "_amp_foreach_non_finite_check_and_unscale_")
    bad, one = torch.zeros(()), torch.ones(())
    complex_ones = torch.tensor([complex(1.0, value)])
    numbers = torch.tensor([[1.0], [value], [1.0]])
    sparse = torch.sparse_coo_tensor([[0, 0, 2]], numbers, (5, 1), check_invariants=True)
    for tensor in (complex_ones, complex_ones.conj(), sparse):
        for _ in range(2):
            assert torch_internals.any_not_finite([torch.ones(2), tensor], bad, one) is (value != 1.0)
            assert not torch_internals.any_not_finite([torch.ones(3)], bad, one)
    assert not sparse.is_coalesced() and complex_ones.real.eq(1).all()


def test_hooks_and_the_profiler_watch_an_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    sgd = torch.optim.SGD([nn.Parameter(torch.ones(1))])
    assert not torch_internals.is_watched(sgd)
    hook = sgd.register_step_post_hook(lambda *_: None)
    assert torch_internals.is_watched(sgd)
    hook.remove()
    with torch.autograd.profiler.profile():
        assert torch_internals.is_watched(sgd)
    assert not torch_internals.is_watched(sgd)
    monkeypatch.delattr(torch.autograd, "_profiler_enabled")
    assert torch_internals.is_watched(sgd), "a torch that does not say: its own step is used"


def test_ddp_can_complete_all_reduces(ddp: DistributedDataParallel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch_internals.can_complete_allreduces(ddp), f"torch {torch.__version__} has changed DDP's reducer"
    monkeypatch.setattr(ddp, "reducer", object())
    assert not torch_internals.can_complete_allreduces(ddp)


def test_torchs_synchronised_batch_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    apply = torch_internals.sync_batch_norm()
    assert apply is not None and apply.__name__ == "apply"
    monkeypatch.delattr("torch.nn.modules._functions.SyncBatchNorm")
    assert torch_internals.sync_batch_norm() is None


def test_compilation_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.callback import callback_handler

    seen: list[str] = []
    assert torch_internals.on_compilation(lambda *_: seen.append("begin"), lambda *_: seen.append("end"))
    try:

        def double(x: Tensor) -> Tensor:
            return 2 * x

        torch.compile(double, backend="eager")(torch.ones(2))
    finally:
        callback_handler.clear()
    assert seen == ["begin", "end"]
    monkeypatch.setitem(sys.modules, "torch._dynamo.callback", None)
    assert not torch_internals.on_compilation(print, print)
