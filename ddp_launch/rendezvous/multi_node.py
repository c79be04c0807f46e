"""The rendezvous of several nodes: torch's dynamic one, on one address of each node, with clear error messages.

The node that owns the endpoint holds the store in which the launchers find each other. In each round the ranks get a
new store from the first node, so that no key of an earlier attempt is left in it. Ranks follow the order of the nodes'
own ranks; torch alone would sort the nodes by address.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousTimeoutError,
    rendezvous_handler_registry,
)
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import RendezvousSettings, RendezvousTimeout

from ddp_launch.cluster.cluster import Cluster
from ddp_launch.cluster.network import NetworkError, resolve, split_endpoint
from ddp_launch.rendezvous.attendance import Attendance, Node, which_settings_differ, who_is_missing
from ddp_launch.rendezvous.remote_failures import RemoteFailures
from ddp_launch.rendezvous.single_node import listen
from ddp_launch.torch_internals import HookedRendezvous, change_join_timeout

SEVERAL_NODES = "ddp-launch-several-nodes"
LAST_PLACE = 1_000_000
"""The sort key of a node without a rank, after every node that has one."""
READ_TIMEOUT_S = 60
CONNECT_TIMEOUT_S = 1.0
RETRY_INTERVAL_S = 0.2
KEEP_ALIVE_S, KEEP_ALIVE_ATTEMPTS = 5, 3
"""A node that is silent for 15 s is lost: torch's own values. Clocks must agree to within that."""
SILENCE_S = KEEP_ALIVE_S * (KEEP_ALIVE_ATTEMPTS + 1)
FIRST_CALL_S, LATER_CALL_S = 30, 5
"""With a range of nodes: how long the least number of them waits for more. A later round begins when every node of the
earlier one has left it or is lost, so all arrive soon."""
FAREWELL_S = 2.0
"""How long the store stays up after a failed rendezvous, so that the other nodes can read why."""


class MeetingFailed(Exception):
    """The nodes did not meet, or lost each other: one line for the user."""


@dataclass(frozen=True)
class _Meeting:
    """One node's view of the meeting.

    `holds_store`: whether this node owns the endpoint; `may_restart`: whether the run continues when a node is lost;
    `deadline`: when all nodes must have joined, by the monotonic clock.
    """

    cluster: Cluster
    store: TCPStore
    holds_store: bool
    may_restart: bool
    deadline: float


class _Patience(RendezvousTimeout):
    """torch's time limits, with a shorter wait for further nodes once the run has begun."""

    has_begun = False
    asked_s: int | None = None

    @property
    def last_call(self) -> timedelta:
        """How long the least number of nodes waits for more."""
        if self.asked_s is not None:
            return timedelta(seconds=self.asked_s)
        # At most half the join limit: nodes that still wait for more at its end would give up.
        first = min(FIRST_CALL_S, self.join.total_seconds() / 2)
        return timedelta(seconds=LATER_CALL_S if self.has_begun else first)


class SeveralNodes(HookedRendezvous):
    """torch's dynamic rendezvous, between the launchers of several nodes."""

    def __init__(self, meeting: _Meeting, run_id: str) -> None:
        cluster, store = meeting.cluster, meeting.store
        assert cluster.address is not None
        self._meeting = meeting
        self._attendance = Attendance(store)
        self._patience = _Patience(join=timedelta(seconds=max(1.0, meeting.deadline - time.monotonic())))
        self._patience.asked_s = cluster.last_call_s
        self._size = 0
        self.remote = RemoteFailures(store, 0, 1)
        """The failures on the other nodes in the latest attempt."""
        rank = 0 if cluster.node_rank is None and meeting.holds_store else cluster.node_rank
        node = self.make_node(cluster.address, LAST_PLACE if rank is None else rank)
        backend = C10dRendezvousBackend(store, run_id)
        settings = RendezvousSettings(
            run_id,
            *cluster.nnodes,
            self._patience,
            keep_alive_interval=timedelta(seconds=KEEP_ALIVE_S),
            keep_alive_max_attempt=KEEP_ALIVE_ATTEMPTS,
        )
        super().__init__(settings, SEVERAL_NODES, store, backend, node)
        _notice_silence(split_endpoint(cluster.endpoint or "")[1])
        with self._explained():
            self._attendance.enter(Node(repr(node), socket.gethostname(), rank, dict(cluster.settings)))

    @property
    def use_agent_store(self) -> bool:
        """True: the ranks use the store that the launcher made."""
        # A store made by a rank would listen on every interface.
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """See the base class. Errors: MeetingFailed."""
        self.forget_store()
        with self._explained():
            info = super().next_rendezvous()
            self._compare_settings()
        self._patience.has_begun = True
        change_join_timeout(self._patience, timedelta(seconds=self._meeting.cluster.rdzv_timeout_s))
        self._size = info.world_size
        self.remote = RemoteFailures(self._meeting.store, self.round, info.world_size)
        return info

    def _compare_settings(self) -> None:
        """Errors: MeetingFailed, on every node, where the settings of the nodes differ."""
        present = {repr(node) for node in self.participants}
        if words := which_settings_differ([node for node in self._attendance.came() if node.key in present]):
            self._attendance.end(words)
            if self._meeting.holds_store:
                time.sleep(FAREWELL_S)
            raise MeetingFailed(words)

    def shutdown(self) -> bool:
        """See the base class. Waits a moment first: the store ends with this process, and others may still read it."""
        closed: bool = super().shutdown()
        if self._meeting.holds_store:
            self.remote.see_off()
        return closed

    def num_nodes_waiting(self) -> int:
        """See the base class; at least 1 if a node was lost and the run may restart: ranks may wait long for that node.

        Errors: MeetingFailed.
        """
        with self._explained():
            waiting: int = super().num_nodes_waiting()
        lost = len(self.participants) < self._size
        return max(waiting, int(lost and self._meeting.may_restart))

    def listen(self, address: str, port: int) -> TCPStore:
        """See the base class; listens on one address only."""
        return listen(address, port)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn torch's exceptions into MeetingFailed."""
        try:
            try:
                yield
            except RendezvousTimeoutError:
                raise MeetingFailed(self._give_up()) from None
            except RendezvousClosedError:
                raise MeetingFailed(self._attendance.ended() or "another node has ended the run") from None
        except (RendezvousConnectionError, RuntimeError):
            # The store itself raises RuntimeError.
            raise MeetingFailed(_store_lost(self._meeting.cluster)) from None

    def _give_up(self) -> str:
        """The line on missing nodes, also recorded for the other nodes; closes the rendezvous."""
        cluster = self._meeting.cluster
        others = [node for node in self.participants if node != self.this_node]
        present = {repr(node) for node in (self.this_node, *others)}
        words = who_is_missing(cluster.nnodes, cluster.names, self._attendance.came(), present, cluster.rdzv_timeout_s)
        self._attendance.end(words)
        with suppress(RendezvousTimeoutError):
            self.close_for_all()
        if others and self._meeting.holds_store:
            time.sleep(FAREWELL_S)
        return words


def register() -> None:
    """Register the handler with torch under its name."""
    rendezvous_handler_registry.register(SEVERAL_NODES, _make)


def parameters(cluster: Cluster, *, may_restart: bool) -> RendezvousParameters:
    """The cluster as parameters for torch's registry of rendezvous handlers."""
    made = RendezvousParameters(SEVERAL_NODES, cluster.endpoint or "", cluster.run_id, *cluster.nnodes, cluster.address)
    made.config |= {"cluster": cluster, "may_restart": may_restart}
    return made


def _make(given: RendezvousParameters) -> RendezvousHandler:
    """The handler for torch's registry. Errors: MeetingFailed."""
    cluster: Cluster = given.config["cluster"]
    made: RendezvousHandler = SeveralNodes(_meet(cluster, given.config["may_restart"]), given.run_id)
    return made


def _meet(cluster: Cluster, may_restart: bool) -> _Meeting:
    """Open the store, or connect to the node that holds it. Errors: MeetingFailed."""
    assert cluster.endpoint is not None
    assert cluster.address is not None
    deadline = time.monotonic() + cluster.rdzv_timeout_s
    host, port = split_endpoint(cluster.endpoint)
    if cluster.hosts_store:
        try:
            return _Meeting(cluster, listen(cluster.address, port), True, may_restart, deadline)
        except OSError as error:
            # Judged by address, every launcher on this machine owns the endpoint, and another one may hold the store.
            if error.errno != errno.EADDRINUSE or cluster.first:
                why = "the port is in use" if error.errno == errno.EADDRINUSE else error.strerror or error
                raise MeetingFailed(f"cannot listen at {cluster.address}, port {port}: {why}; choose another") from None
    address = _await_listener(cluster, host, port, deadline)
    try:
        store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=READ_TIMEOUT_S))
    except RuntimeError:
        raise MeetingFailed(
            f"another program listens at {cluster.endpoint}, not a rendezvous: choose another port"
        ) from None
    return _Meeting(cluster, store, False, may_restart, deadline)


def _await_listener(cluster: Cluster, host: str, port: int, deadline: float) -> str:
    """The address of the endpoint, once a store listens there. Waiting inside the store would block signals."""
    while True:
        addresses: tuple[str, ...] = ()
        why = ""
        try:
            addresses = resolve(host, port, 0)
        except NetworkError as error:
            why = str(error)
        for address in addresses:
            try:
                with socket.create_connection((address, port), timeout=CONNECT_TIMEOUT_S):
                    return address
            except TimeoutError:
                why = "no answer"
            except OSError as error:
                why = error.strerror or str(error)
        if time.monotonic() > deadline:
            raise MeetingFailed(
                f"1 of {cluster.nnodes[1]} nodes did not come within {cluster.rdzv_timeout_s} s: {cluster.name(0)},"
                f" at whose endpoint {cluster.endpoint} nobody listens ({why})"
            )
        time.sleep(RETRY_INTERVAL_S)


def _notice_silence(port: int) -> None:
    """Make this process's connections to the store break when the other end is silent for SILENCE_S.

    The store waits in native code, where no signal is handled; by the kernel's limits it would wait 15 minutes.
    """
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        if not _is_socket(int(name)):
            # Skip files: closing a copy of a file's descriptor drops this process's locks on it (claims, the run's).
            continue
        with suppress(OSError), socket.socket(fileno=os.dup(int(name))) as end:
            inet = end.family in (socket.AF_INET, socket.AF_INET6)
            if inet and end.type == socket.SOCK_STREAM and port in (end.getsockname()[1], end.getpeername()[1]):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEP_ALIVE_S)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEP_ALIVE_S)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEP_ALIVE_ATTEMPTS)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_S * 1000)


def _is_socket(descriptor: int) -> bool:
    """Whether the descriptor of this process is a socket."""
    try:
        return stat.S_ISSOCK(os.fstat(descriptor).st_mode)
    except OSError:  # the descriptor of the listing itself
        return False


def _store_lost(cluster: Cluster) -> str:
    """The line for a rendezvous whose store no longer answers."""
    return (
        f"the rendezvous at {cluster.endpoint} is gone: the launcher of the first node has ended or was lost, and the"
        " other nodes cannot continue without it; see its own output"
    )
