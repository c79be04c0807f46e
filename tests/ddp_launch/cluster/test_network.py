"""The way to an endpoint, on this machine's own network."""

from __future__ import annotations

import socket

import pytest

from ddp_launch.cluster.cluster import Cluster
from ddp_launch.cluster.network import NetworkError, locate, resolve, split_endpoint

NOWHERE = "no-such-host.invalid"


def test_endpoint() -> None:
    assert split_endpoint("node01:29500") == ("node01", 29500)
    assert split_endpoint("[fd00::1]:5") == ("fd00::1", 5)


def test_one_node_asks_nobody() -> None:
    assert locate(Cluster(), wait=True) == Cluster()


@pytest.mark.parametrize(("endpoint", "address"), [("127.0.0.1:5", "127.0.0.1"), ("localhost:5", "127.0.0.1")])
def test_loopback_on_purpose(endpoint: str, address: str) -> None:
    made = locate(Cluster(nnodes=(2, 2), endpoint=endpoint), wait=True)
    assert (made.address, made.interface, made.hosts_store) == (address, "lo", True)
    assert any("only launchers on this machine" in warning for warning in made.warnings)


def test_rank_decides_where_it_speaks_of_the_endpoint() -> None:
    assert (
        locate(Cluster(nnodes=(2, 2), endpoint="127.0.0.1:5", node_rank=1, first=False), wait=True).hosts_store is False
    )


def test_name_that_does_not_resolve(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = Cluster(nnodes=(2, 2), endpoint=f"{NOWHERE}:5", rdzv_timeout_s=2)
    planned = locate(cluster, wait=False)
    assert (planned.address, planned.interface, planned.hosts_store) == (None, None, None)
    assert NOWHERE in planned.warnings[0]
    with pytest.raises(NetworkError, match=NOWHERE):
        locate(cluster, wait=True)
    assert "waiting for the name" in capsys.readouterr().err


def test_own_address_off_loopback() -> None:
    """The interface that holds the address, whatever other interfaces there are."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("203.0.113.1", 9))
        except OSError:
            pytest.skip("this machine has no network")
        address = probe.getsockname()[0]
    made = locate(Cluster(nnodes=(2, 2), endpoint=f"{address}:5"), wait=True)
    assert (made.address, made.hosts_store) == (address, True)
    assert made.interface not in (None, "lo")
    elsewhere = locate(Cluster(nnodes=(2, 2), endpoint="203.0.113.1:5"), wait=True)
    assert (elsewhere.address, elsewhere.interface, elsewhere.hosts_store) == (address, made.interface, False)


def test_addresses_of_a_name() -> None:
    assert resolve("127.0.0.1", 5, 0) == ("127.0.0.1",)
