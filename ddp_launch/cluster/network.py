"""How this node reaches the endpoint of a rendezvous: its own address and interface for that, and whether the endpoint
is this node. Asks the resolver, the routing table and the interfaces; sends nothing itself.
"""

from __future__ import annotations

import array
import dataclasses
import fcntl
import ipaddress
import queue
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterable, Mapping

from ddp_core.errors import OptionError
from ddp_launch.cluster.cluster import Cluster

LOOKUP_S = 5.0
"""How long to wait for the resolver where the answer is not essential."""
RETRY_S = 1.0
TRUST = "without password or encryption: that network must be trusted"
"""The end of a warning that each node has about its own interface."""
ANYWHERE = ("192.0.2.1", "2001:db8::1")
"""Addresses for documentation (RFC 5737, RFC 3849) that no host uses: the route to them is the default route."""
INDIRECT_DRIVERS = frozenset({"bridge", "dummy", "tun", "wireguard"})
"""Drivers of interfaces for containers, virtual machines and tunnels of this machine."""
SIOCETHTOOL, ETHTOOL_GDRVINFO, DRVINFO_SIZE = 0x8946, 0x3, 196


class NetworkError(OptionError):
    """An endpoint that this node cannot reach: one line, with the fix."""


def locate(cluster: Cluster, *, wait: bool) -> Cluster:
    """The cluster with `interface`, `address` and `hosts_store` of this node.

    `wait`: wait for a name that does not resolve yet as long as for the other nodes (a pod's name appears after the
    pod). Without it an unknown address becomes a warning. Errors: NetworkError, with `wait`.
    """
    if cluster.endpoint is None:
        return cluster
    host, port = split_endpoint(cluster.endpoint)
    own = _own_addresses()
    try:
        found = resolve(host, port, cluster.rdzv_timeout_s if wait else 0)
        address, notes = _own_end(cluster, host, found, own)
    except NetworkError as error:
        if wait:
            raise
        return dataclasses.replace(cluster, warnings=(*cluster.warnings, str(error)))
    owned = address in found or all(map(_is_loopback, found))
    return dataclasses.replace(
        cluster,
        address=address,
        interface=own.get(address),
        hosts_store=owned if cluster.first is None else cluster.first,
        warnings=(*cluster.warnings, *notes, *_mismatch(cluster, address, owned), *_trust(address, own.get(address))),
    )


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """Host and port; an IPv6 address without its brackets."""
    host, _, port = endpoint.rpartition(":")
    return host.strip("[]"), int(port)


def resolve(host: str, port: int, timeout_s: float) -> tuple[str, ...]:
    """The addresses of a host, IPv4 first. Tries at least once, and until `timeout_s` is over. Errors: NetworkError.

    The resolver runs in a thread: it may take minutes, during which no signal would be handled.
    """
    deadline = time.monotonic() + timeout_s
    said = False
    while True:
        answer = _look_up(host, port, max(LOOKUP_S, deadline - time.monotonic()))
        if isinstance(answer, tuple):
            return answer
        if time.monotonic() + RETRY_S > deadline:
            raise NetworkError(f"the endpoint's host {host!r} does not resolve on this machine ({answer})")
        if not said:
            print(f"waiting for the name {host!r}, which does not resolve yet ({answer})", file=sys.stderr, flush=True)
            said = True
        time.sleep(RETRY_S)


def external_address(host: str, port: int) -> str | None:
    """The first address of an endpoint's host at which other machines can reach it; None where its name is a loopback
    address on this machine, as Debian has it for a machine's own name. Errors: NetworkError."""
    found = resolve(host, port, 0)
    if _names_loopback(host):
        return found[0]
    return next((address for address in found if not _is_loopback(address)), None)


def _look_up(host: str, port: int, timeout_s: float) -> tuple[str, ...] | str:
    """The addresses, or the reason why there are none."""
    answers: queue.SimpleQueue[tuple[str, ...] | str] = queue.SimpleQueue()

    def ask() -> None:
        """A thread's work: ask the resolver."""
        try:
            rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            answers.put(getattr(error, "strerror", None) or str(error))
        else:
            found = dict.fromkeys(str(row[4][0]) for row in rows)
            answers.put(tuple(sorted(found, key=lambda address: ":" in address)))

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=timeout_s)
    except queue.Empty:
        return "the resolver does not answer"


def _own_end(
    cluster: Cluster, host: str, found: tuple[str, ...], own: Mapping[str, str]
) -> tuple[str, tuple[str, ...]]:
    """This node's address for an endpoint whose host has the addresses `found`, and notes for the plan."""
    owned = [address for address in found if address in own and not _is_loopback(address)]
    if owned:
        return owned[0], ()
    if all(map(_is_loopback, found)):
        if _names_loopback(host):
            return found[0], ()
        # Debian maps a machine's own name to 127.0.1.1, where no other machine reaches it.
        address = _address_for_others(cluster, host, own)
        return address, (f"{host} is {found[0]} on this machine: listening on {address} ({own[address]}) instead",)
    return _towards(host, found), ()


def _address_for_others(cluster: Cluster, host: str, own: Mapping[str, str]) -> str:
    """The address at which other nodes reach this one: by the route to them, else by the default route, else the only
    address there is. Errors: NetworkError."""
    others = (name for name in cluster.names if name != host)
    addresses = (answer for name in others if isinstance(answer := _look_up(name, 0, LOOKUP_S), tuple))
    for there in (*(one for answer in addresses for one in answer), *ANYWHERE):
        if (here := _source(there)) is not None and not _is_loopback(here) and here in own:
            return here
    usable = [a for a in own if not _is_loopback(a) and not ipaddress.ip_address(a).is_link_local]
    running = _running()
    direct = [a for a in usable if own[a] in running and _driver(own[a]) not in INDIRECT_DRIVERS]
    for candidates in (direct, usable):
        if len(candidates) == 1:
            return candidates[0]
    known = ", ".join(f"{address} ({own[address]})" for address in direct or usable) or "none"
    raise NetworkError(
        f"{host!r} is a loopback address on this machine: give --rdzv-endpoint the address that others reach it at,"
        f" one of: {known}"
    )


def _towards(host: str, found: Iterable[str]) -> str:
    """This machine's source address for packets to the first of these addresses that has a route. Errors:
    NetworkError."""
    for there in found:
        if (here := _source(there)) is not None:
            return here
    raise NetworkError(f"no route from this machine to the endpoint's host {host!r} ({', '.join(found)})")


def _source(there: str) -> str | None:
    """The source address of packets to `there`; None without a route. Connecting a UDP socket sends nothing."""
    family = socket.AF_INET6 if ":" in there else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((there, 9))
            return str(probe.getsockname()[0])
    except OSError:
        return None


def _own_addresses() -> dict[str, str]:
    """Address -> interface, for this machine."""
    import psutil

    families = (socket.AF_INET, socket.AF_INET6)
    return {
        entry.address.partition("%")[0]: name
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family in families
    }


def _running() -> frozenset[str]:
    """Interfaces that are up and connected."""
    import psutil

    return frozenset(name for name, state in psutil.net_if_stats().items() if state.isup)


def _driver(interface: str) -> str | None:
    """The kernel driver of an interface, as `ethtool -i` shows it; None where it is not reported."""
    answer = array.array("B", struct.pack("I", ETHTOOL_GDRVINFO) + bytes(DRVINFO_SIZE - 4))
    request = struct.pack("16sP16x", interface.encode()[:15], answer.buffer_info()[0])
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, SIOCETHTOOL, request)
    except OSError:
        return None
    return answer[4:36].tobytes().split(b"\0")[0].decode(errors="replace")


def _mismatch(cluster: Cluster, address: str, owned: bool) -> Iterable[str]:
    """Warnings where the node rank and the owner of the endpoint contradict each other."""
    if cluster.first is False and owned and not _is_loopback(address):
        yield f"this is node rank {cluster.node_rank}, but the endpoint is an address of this node: node 0 must own it"
    if cluster.first and not owned:
        yield f"the endpoint is not an address of this node, which listens on {address}: it must lead there"


def _trust(address: str, interface: str | None) -> Iterable[str]:
    """The warning about the network between the nodes, or that only this machine can join."""
    if _is_loopback(address):
        yield "the endpoint is a loopback address: only launchers on this machine can join"
    else:
        yield f"the nodes meet and the ranks talk on {interface} ({address}) {TRUST}"


def _is_loopback(address: str) -> bool:
    """Whether a numeric address is a loopback address; an IPv6 zone is ignored."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _names_loopback(host: str) -> bool:
    """Whether the loopback address was given on purpose."""
    try:
        return _is_loopback(host)
    except ValueError:
        return host == "localhost"
