"""torch's private names that the launcher builds on: each of these fails, by its name, when a new torch moves it."""

from __future__ import annotations

import inspect
import pickle
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch._C import _distributed_c10d
from torch.distributed import distributed_c10d
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.rendezvous import dynamic_rendezvous
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler, RendezvousTimeout
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from ddp_launch import torch_internals
from ddp_launch.stall.in_rank.sitecustomize import HOOK
from ddp_launch.stall.in_rank.torch_internals import RECORDERS, batch_size, exposed_ns
from ddp_launch.torch_internals import (
    AGENT_HOOKS,
    HookedAgent,
    HookedRendezvous,
    agent_has_hooks,
    change_join_timeout,
    numa_options,
    worker_spec,
)


@pytest.mark.parametrize("name", AGENT_HOOKS)
def test_torchs_agent_calls_the_hook(name: str) -> None:
    own = vars(HookedAgent)[name]
    sources = "".join(inspect.getsource(kind) for kind in LocalElasticAgent.__mro__[:-1] if kind.__module__ != "abc")
    assert f"self.{name}(" in sources, f"torch's agent no longer calls {name}"
    theirs = inspect.signature(getattr(LocalElasticAgent, name)).parameters
    # torch's own arguments fit ours.
    assert len(theirs) <= len(inspect.signature(own).parameters)


@pytest.mark.parametrize("name", ["_worker_group", "_remaining_restarts", "_pcontext"])
def test_torchs_agent_has_the_field(name: str) -> None:
    sources = "".join(inspect.getsource(kind) for kind in LocalElasticAgent.__mro__[:-1] if kind.__module__ != "abc")
    assert f"self.{name}" in sources


def test_an_agent_without_hooks_is_noticed() -> None:
    class Other:
        """An agent of a later torch."""

    assert agent_has_hooks()
    assert not agent_has_hooks(Other)


def test_what_older_torch_does_not_know_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_internals, "WorkerSpec", lambda **facts: facts)
    assert worker_spec(role="rank", virtual_local_rank=False, numa_options=None) == {"role": "rank"}
    assert numa_options(None) is None
    whole = worker_spec(virtual_local_rank=True, numa_options=numa_options("node"))
    assert whole["virtual_local_rank"] is True and whole["numa_options"].should_fall_back_if_binding_fails


@pytest.mark.parametrize("name", ["_get_world", "_create_tcp_store_server", "_close"])
def test_torchs_rendezvous_calls_the_hook(name: str) -> None:
    source = inspect.getsource(DynamicRendezvousHandler)
    assert f"self.{name}(" in source
    assert callable(getattr(HookedRendezvous, name))


@pytest.mark.parametrize("name", ["_state_holder", "_this_node", "_bootstrap_store_info", "_shared_tcp_store_server"])
def test_torchs_rendezvous_has_the_field(name: str) -> None:
    assert f"self.{name}" in inspect.getsource(DynamicRendezvousHandler)


def test_a_node_is_ordered_by_its_rank() -> None:
    node = HookedRendezvous.make_node("10.0.0.1", 3)
    assert (node.addr, node.local_id) == ("10.0.0.1", 3)
    assert hasattr(dynamic_rendezvous, "_BackendRendezvousStateHolder")


def test_the_join_timeout_changes() -> None:
    timeouts = RendezvousTimeout(join=timedelta(seconds=9))
    change_join_timeout(timeouts, timedelta(seconds=77))
    assert timeouts.join == timedelta(seconds=77)


def test_what_the_stall_report_reads_of_torch() -> None:
    """The hook, the recorders and the names of groups in the ranks (ddp_launch/stall/in_rank)."""
    assert f"{HOOK}(default_pg)" in inspect.getsource(distributed_c10d.init_process_group)
    assert all(callable(getattr(_distributed_c10d, name)) for name in RECORDERS[:1])
    assert {"pg_names", "pg_group_ranks"} <= {name for name in dir(distributed_c10d._world) if name.startswith("pg_")}
    assert pickle.loads(_distributed_c10d._dump_fr_trace(True, False, False))["version"]  # noqa: S301


def test_ddp_has_its_own_times_and_iterations_their_batch_size() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrapper = DistributedDataParallel(torch.nn.Linear(4, 4))
        assert exposed_ns(wrapper) is not None, f"torch {torch.__version__} has changed DDP's statistics"
        for _ in range(3):
            wrapper(torch.ones(2, 4)).sum().backward()
        assert 0 <= (exposed_ns(wrapper) or 0) < 1e9
    finally:
        dist.destroy_process_group()
    assert exposed_ns(object()) is None
    loader = DataLoader(TensorDataset(torch.ones(8, 2)), batch_size=4)
    assert [batch_size(one) for one in (loader, iter(loader), object())] == [4, 4, 0]
