"""All of torch's private API that the launcher uses, under public names: hooks of the elastic agent and the dynamic
rendezvous. torch has no public way to see single ranks start and end, or to order nodes by their rank.

`agent_has_hooks` checks whether this torch still has the agent's hooks; where it does not, run/agent.py uses torch's
agent as it is. tests/ddp_launch/test_torch_internals.py fails when a torch moves one of these names.
"""

from __future__ import annotations

import inspect
import os
import signal
from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any, cast

from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.agent.server.api import RunResult, Worker, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.events.api import Event, EventSource
from torch.distributed.elastic.rendezvous import RendezvousHandler
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
    DynamicRendezvousHandler,
    RendezvousBackend,
    RendezvousSettings,
    RendezvousTimeout,
    _BackendRendezvousStateHolder,
    _NodeDesc,
)

AGENT_HOOKS = ("_start_workers", "_monitor_workers", "_shutdown")


def worker_spec(*, virtual_local_rank: bool, numa_options: Any, **facts: Any) -> WorkerSpec:
    """A job as torch's agent takes it. Options that are not used are left out, since older versions lack them: torch
    2.10 is the first with virtual local ranks, 2.9 with NUMA binding."""
    newer = {"virtual_local_rank": virtual_local_rank, "numa_options": numa_options}
    return WorkerSpec(**facts, **{name: value for name, value in newer.items() if value})


def numa_options(mode: str | None) -> Any:
    """torch's options for a NUMA binding; None for no binding. The run matters more than its binding: where that fails,
    torch logs why and starts the rank unbound."""
    if mode is None:
        return None
    from torch.numa.binding import AffinityMode, NumaOptions  # since torch 2.9

    return NumaOptions(AffinityMode(mode), should_fall_back_if_binding_fails=True)


def agent_has_hooks(agent: type = LocalElasticAgent) -> bool:
    """Whether torch's agent still has the methods that HookedAgent overrides."""
    return all(callable(getattr(agent, name, None)) for name in AGENT_HOOKS)


class HookedAgent(LocalElasticAgent):
    """torch's elastic agent for one node; each method here does what torch does, for a subclass to extend."""

    def start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        """Start the ranks of an attempt; local rank -> process id."""
        pids: dict[int, Any] = super()._start_workers(worker_group)
        return pids

    def monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        """The state of the ranks; torch calls it repeatedly. A failed result makes torch end or restart them."""
        result: RunResult = super()._monitor_workers(worker_group)
        return result

    def stop_workers(self, death_sig: signal.Signals) -> None:
        """End the ranks. torch 2.11 takes no time limit here. Without `is_restart`, 2.6 and 2.7 would also end the
        run's rendezvous, which run/agent.py does itself."""
        parameters = inspect.signature(super()._shutdown).parameters
        super()._shutdown(death_sig, **({"is_restart": True} if "is_restart" in parameters else {}))

    def state_of_running_workers(self, worker_group: WorkerGroup) -> RunResult:
        """The result of `monitor_workers` for running ranks, without asking torch about them."""
        timeout = getattr(self, "_uninterruptible_state_timeout", 0.0)  # since torch 2.15
        stuck = self._check_uninterruptible_state_timeout(worker_group, timeout) if timeout > 0 else None
        return stuck or RunResult(state=WorkerState.HEALTHY)

    def close_processes(self, death_sig: signal.Signals, timeout_s: float) -> None:
        """Send the signal to the ranks, and SIGKILL after `timeout_s`. Does nothing before the first start."""
        if self._pcontext is not None:
            # Any number works, despite the annotation.
            self._pcontext.close(death_sig, cast(int, timeout_s))

    @property
    def handlers(self) -> Mapping[int, Any]:
        """Local rank -> torch's handler of its process. The handler's `proc` is a Popen."""
        return getattr(self._pcontext, "subprocess_handlers", {})

    @property
    def workers(self) -> list[Worker]:
        """The ranks of this node, by local rank."""
        return self._worker_group.workers

    def resize(self, local_world_size: int, numa_options: Any) -> None:
        """Change the number of ranks on this node, and their binding, from the next start on."""
        self._worker_group.spec.local_world_size = local_world_size
        self._worker_group.spec.numa_options = numa_options

    @property
    def rendezvous(self) -> RendezvousHandler:
        """Where the nodes of the run meet."""
        return self._worker_group.spec.rdzv_handler

    @property
    def remaining_restarts(self) -> int:
        """How many more attempts may follow; a subclass may set it to 0."""
        return int(self._remaining_restarts)

    @remaining_restarts.setter
    def remaining_restarts(self, number: int) -> None:
        self._remaining_restarts = number

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        """torch's hook; calls `start_workers`."""
        return self.start_workers(worker_group)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        """torch's hook; calls `monitor_workers`."""
        return self.monitor_workers(worker_group)

    def _shutdown(
        self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30, is_restart: bool = False
    ) -> None:
        """torch's hook; calls `stop_workers`."""
        # `timeout` is ignored: after a failure torch always passes 30 s. torch 2.7 is the last with `is_restart`.
        self.stop_workers(death_sig)

    def _construct_event(self, state: str, source: EventSource, *facts: Any, **more: Any) -> Event:
        """An empty event for torch's log."""
        # These events are not read, and torch's own look up the name of this machine for each of them.
        return Event(f"torchelastic.worker.status.{state}", source)


class HookedRendezvous(DynamicRendezvousHandler):
    """torch's dynamic rendezvous, with nodes in the order of `rank` (torch alone sorts them by address)."""

    def __init__(
        self, settings: RendezvousSettings, backend_name: str, store: TCPStore, backend: RendezvousBackend, node: Any
    ) -> None:
        super().__init__(node, settings, backend_name, store, _BackendRendezvousStateHolder(backend, settings))

    @staticmethod
    def make_node(address: str, rank: int) -> Any:
        """This process as a node. `address`: where the other nodes reach it."""
        return _NodeDesc(address, os.getpid(), rank)

    @property
    def this_node(self) -> Any:
        """This node, as `make_node` made it."""
        return self._this_node

    @property
    def participants(self) -> Collection[Any]:
        """The nodes of the present round."""
        return cast(Collection[Any], self._state_holder.state.participants)

    @property
    def round(self) -> int:
        """How many rounds there have been before: the same number on each node."""
        return int(self._state_holder.state.round)

    def forget_store(self) -> None:
        """Drop the store, so that torch creates a new one for the ranks of the next round."""
        self._bootstrap_store_info = self._shared_tcp_store_server = None

    def close_for_all(self) -> None:
        """End the rendezvous of all nodes. Errors: RendezvousTimeoutError."""
        self._close()

    def listen(self, address: str, port: int) -> TCPStore:
        """Create the store of a round on this node. A subclass may override it to choose the interface."""
        return cast(TCPStore, super()._create_tcp_store_server(address, port))

    def _get_world(self) -> tuple[int, int]:
        """This node's place among the nodes, and their number."""
        nodes = sorted(self.participants, key=lambda node: (node.local_id, node.addr, node.pid))
        return nodes.index(self._this_node), len(nodes)

    def _create_tcp_store_server(self, master_addr: str, master_port: int) -> TCPStore:
        """torch's hook; calls `listen`."""
        return self.listen(master_addr, master_port)


def change_join_timeout(timeouts: RendezvousTimeout, join: timedelta) -> None:
    """Change the time limit for nodes to join, from the next round on."""
    timeouts._set_timeouts(join=join)
