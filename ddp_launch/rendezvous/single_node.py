"""The rendezvous of a single node: each store listens on one address and serves one attempt.

torch's own handlers listen on every interface without authentication, look up this machine's host name, and keep one
store over all attempts, in which the keys of failed ranks confuse the next ones.
"""

from __future__ import annotations

import socket
from datetime import timedelta

import torch
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

from ddp_core.missing_packages import older

ONE_NODE = "ddp-launch-one-node"
AGENTS_PREFIX = "agent"
READ_TIMEOUT_S = 60
BACKLOG = 1024
REACH_TIMEOUT_S = 5.0


def register() -> None:
    """Register the handler with torch under its name."""
    rendezvous_handler_registry.register(ONE_NODE, _one_node)


def listen(address: str, port: int = 0) -> TCPStore:
    """A store that listens on `address` (numeric) alone; port 0: any free one.

    Errors: OSError (port in use, or no route to the address itself).
    """
    with socket.socket(_family(address)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))
        server.listen(BACKLOG)
        port = server.getsockname()[1]
        _reach(address, port)
        # libuv's store takes no socket before torch 2.8; the older kind of store does.
        kind = {"use_libuv": False} if older(torch.__version__, (2, 8)) else {}
        # The store closes the socket.
        return TCPStore(
            address,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=READ_TIMEOUT_S),
            master_listen_fd=server.detach(),
            **kind,
        )


def _family(address: str) -> socket.AddressFamily:
    """The socket family of a numeric address."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class OneNode(RendezvousHandler):
    """This node alone: no other node to wait for, and a new store on a loopback address for each attempt."""

    def __init__(self, address: str, run_id: str) -> None:
        self._address = address
        self._run_id = run_id
        self._store: TCPStore | None = None
        self._closed = False

    def get_backend(self) -> str:
        """See the base class."""
        return ONE_NODE

    @property
    def use_agent_store(self) -> bool:
        """True: the ranks use the store that the launcher made."""
        # A store made by a rank would listen on every interface.
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """A new store for this attempt, with this node as the only member."""
        self._store = listen(self._address)
        where = RendezvousStoreInfo(self._address, self._store.port)
        return RendezvousInfo(PrefixStore(AGENTS_PREFIX, self._store), 0, 1, where)

    def is_closed(self) -> bool:
        """See the base class."""
        return self._closed

    def set_closed(self) -> None:
        """See the base class."""
        self._closed = True

    def num_nodes_waiting(self) -> int:
        """Always 0."""
        return 0

    def get_run_id(self) -> str:
        """See the base class."""
        return self._run_id

    def shutdown(self) -> bool:
        """Mark the rendezvous as closed; returns True."""
        self._closed = True
        return True


def _reach(address: str, port: int) -> None:
    """Check that the address answers: the store, as its own first client, would retry for a minute. Errors:
    ConnectionError."""
    try:
        with socket.socket(_family(address)) as probe:
            probe.settimeout(REACH_TIMEOUT_S)
            probe.connect((address, port))
    except OSError as error:
        why = error.strerror or error
        raise ConnectionError(
            f"{address} cannot be reached on this machine itself ({why}): ip link set lo up"
        ) from None


def _one_node(parameters: RendezvousParameters) -> RendezvousHandler:
    """The handler for torch's registry."""
    assert parameters.local_addr is not None
    return OneNode(parameters.local_addr, parameters.run_id)
