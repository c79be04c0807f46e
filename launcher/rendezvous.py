"""Where ranks and nodes meet: torch's rendezvous, with stores that listen on one address and serve one attempt.

torch's own handlers listen on every interface of the machine, without authentication, name this machine by a look-up
of its host name, and keep one store over all attempts, in which the keys of failed ranks confuse the next ones.
"""

from __future__ import annotations

import socket
import time
from datetime import timedelta

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler, RendezvousTimeout

__all__ = ["ONE_NODE", "SEVERAL_NODES", "OneNode", "SeveralNodes", "listen", "register"]

ONE_NODE = "ddp-launch-one-node"
SEVERAL_NODES = "ddp-launch-several-nodes"
AGENTS_PREFIX = "agent"
JOIN_TIMEOUT_S = 600
READ_TIMEOUT_S = 60
CONNECT_TIMEOUT_S = 1.0
RETRY_INTERVAL_S = 0.2
BACKLOG = 1024


def register() -> None:
    """Make both handlers known to torch by their names."""
    rendezvous_handler_registry.register(ONE_NODE, _one_node)
    rendezvous_handler_registry.register(SEVERAL_NODES, _several_nodes)


def listen(address: str, port: int = 0) -> TCPStore:
    """A store that listens on `address` (numeric) alone; port 0: any free one. Errors: OSError (port in use)."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))
        server.listen(BACKLOG)
        port = server.getsockname()[1]
        # The store closes the socket in the end.
        return TCPStore(
            address,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=READ_TIMEOUT_S),
            master_listen_fd=server.detach(),
        )


class OneNode(RendezvousHandler):
    """This node alone: nobody to wait for, and for each attempt a store of its own on a loopback address."""

    def __init__(self, address: str, run_id: str) -> None:
        self._address = address
        self._run_id = run_id
        self._store: TCPStore | None = None
        self._closed = False

    def get_backend(self) -> str:
        return ONE_NODE

    @property
    def use_agent_store(self) -> bool:
        # A rank that made the store for the others itself would listen on every interface.
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        self._store = listen(self._address)
        where = RendezvousStoreInfo(self._address, self._store.port)
        return RendezvousInfo(PrefixStore(AGENTS_PREFIX, self._store), 0, 1, where)

    def is_closed(self) -> bool:
        return self._closed

    def set_closed(self) -> None:
        self._closed = True

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._run_id

    def shutdown(self) -> bool:
        self._closed = True
        return True


class SeveralNodes(DynamicRendezvousHandler):
    """torch's dynamic rendezvous; in each round the first node serves the ranks a new store, on its address alone."""

    def get_backend(self) -> str:
        return SEVERAL_NODES

    def next_rendezvous(self) -> RendezvousInfo:
        self._bootstrap_store_info = self._shared_tcp_store_server = None
        return super().next_rendezvous()

    def _create_tcp_store_server(self, master_addr: str, master_port: int) -> TCPStore:
        return listen(master_addr, master_port)


def _one_node(parameters: RendezvousParameters) -> RendezvousHandler:
    return OneNode(_address(parameters), parameters.run_id)


def _several_nodes(parameters: RendezvousParameters) -> RendezvousHandler:
    """`local_addr`: this node's numeric address; `is_host`: whether it serves the endpoint [where that is its address].

    `join_timeout` in seconds, for reaching the endpoint as for the nodes that are missing then.
    """
    host, _, text = parameters.endpoint.rpartition(":")
    host, port, join_s = host.strip("[]"), int(text), parameters.get_as_int("join_timeout", JOIN_TIMEOUT_S) or 0
    address = _address(parameters)
    if parameters.get_as_bool("is_host", host == address):
        store = listen(address, port)
    else:
        _await_listener(host, port, join_s)
        store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=READ_TIMEOUT_S))
    made: RendezvousHandler = SeveralNodes.from_backend(
        parameters.run_id,
        store,
        C10dRendezvousBackend(store, parameters.run_id),
        parameters.min_nodes,
        parameters.max_nodes,
        address,
        RendezvousTimeout(join=timedelta(seconds=join_s)),
    )
    return made


def _await_listener(host: str, port: int, timeout_s: float) -> None:
    """Until somebody listens there. The store's own waiting would let no signal through."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S).close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise RendezvousConnectionError(f"nobody listens at {host}:{port}: {error}") from error
            time.sleep(RETRY_INTERVAL_S)
        else:
            return


def _address(parameters: RendezvousParameters) -> str:
    assert parameters.local_addr is not None
    return parameters.local_addr
