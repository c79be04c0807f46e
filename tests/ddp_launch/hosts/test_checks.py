"""What is wrong with hosts, in words: from facts, from what ssh says, and from calls between two listeners."""

from __future__ import annotations

import json
import selectors
import socket
import time
from typing import Any

import pytest

from ddp_core.errors import OptionError
from ddp_launch.cli.host_list import Host, exported, host_list, hostfile
from ddp_launch.cli.options import parse, words_of
from ddp_launch.cli.value_types import Tee
from ddp_launch.cluster.network import external_address
from ddp_launch.hosts import checks
from ddp_launch.hosts.between import Interface, judge
from ddp_launch.hosts.checks import HostFacts
from ddp_launch.hosts.connection import in_words
from ddp_launch.hosts.ending import _knows
from ddp_launch.hosts.reach import Call, Listener


def host(name: str, ahead_s: float = 0.0, **facts: Any) -> HostFacts:
    usual = {
        "folder": None,
        "python": [3, 12, 1],
        "torch": "2.9.0+cu130",
        "project": "1.0",
        "port": 20_001,
        "free_port": 40_001,
        "caller": [],
        "addresses": [{"address": f"10.0.0.{len(name)}", "interface": "eth0", "mtu": 1500, "speed": 1000}],
    }
    return HostFacts(name, usual | facts, ahead_s, f"word of {name}")


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (host("bb", folder="No such file or directory"), "folder missing: /w (No such file or directory)"),
        (host("bb", python=[3, 11, 9]), "another Python: 3.11.9 there, 3.12.1 on a"),
        (host("bb", torch="2.8.1+cu130"), "another torch: 2.8.1+cu130 there, 2.9.0+cu130 on a"),
        (host("bb", torch=None), "no torch in the Python there"),
        (host("bb", project="0.9"), "another version of this project: 0.9 there, 1.0 here"),
        (host("bb", project=None), "neither in /p nor installed"),
        (host("bb", ahead_s=-37.2), "clocks apart: its clock is 37 s behind that of a"),
        (host("bb", listener="Address already in use"), "no port can be opened"),
        (host("bb", python=[3, 12, 7], torch="2.9.0+cu126", ahead_s=2.0), None),
    ],
)
def test_facts_in_words(second: HostFacts, words: str | None) -> None:
    found = list(checks.problems([host("a"), second], "1.0", "/p", "/w"))
    assert [name for name, _ in found] == (["bb"] if words else [])
    assert not words or words in found[0][1]


@pytest.mark.parametrize(
    ("status", "said", "words"),
    [
        (255, "me@b: Permission denied (publickey,password).", "permission denied (publickey,password): no key"),
        (255, "me@b: Permission denied (publickey).", "`ssh-copy-id b`"),
        (255, "No ED25519 host key is known for b and you have ...\nHost key verification failed.", "host key unknown"),
        (255, "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.", "differs from"),
        (255, "ssh: Could not resolve hostname b: Name or service not known", "does not resolve (Name or service"),
        (255, "ssh: connect to host b port 22: Connection timed out", "no answer within 8 s"),
        (255, "Connection timed out during banner exchange\nConnection to b port 22 timed out", "no answer within 8 s"),
        (255, "ssh: connect to host b port 22: Connection refused", "refused"),
        (255, "kex_exchange_identification: Connection closed by remote host", "the other end closed it"),
        (255, "Bad configuration option: foo", "no connection: Bad configuration option: foo"),
        (127, "bash: line 1: /x/python: No such file or directory", "no Python there at"),
        (
            126,
            "bash: line 1: /x/python: Permission denied",
            "cannot be run: bash: line 1: /x/python: Permission denied",
        ),
        (
            127,
            "/etc/profile: line 3: Connection refused\nbash: /x/python: No such file or directory",
            "no Python there",
        ),
        (1, "Could not chdir to /home/me: Permission denied\nImportError: libz.so.1", "status 1: ImportError: libz"),
        (255, "Could not chdir to /home/me: Permission denied\nConnection reset by 10.0.0.2 port 22", "closed it"),
        (None, "ssh: connect to host b port 22: Connection refused", "no connection: refused"),
        (1, "Traceback ...\nSyntaxError: invalid syntax", "ended with status 1: SyntaxError"),
    ],
)
def test_what_ssh_says_in_words(status: int, said: str, words: str) -> None:
    assert words in in_words("b", status, said.splitlines(), ready=False)


def test_meeting_address_is_one_that_all_reach() -> None:
    addresses = [{"address": one, "interface": "e", "mtu": 1500, "speed": None} for one in ("172.17.0.1", "10.0.0.1")]
    # The second host was called from 10.0.0.1, which the first one has.
    hosts = [host("a", addresses=addresses), host("bb", caller=["10.0.0.1"]), host("ccc", caller=["1.2.3.4"])]
    first, *others = checks.targets(hosts, None)
    assert [(one["name"], one["port"]) for one in others] == [("a", 40_001), ("bb", 40_001), ("ccc", 40_001)]
    assert first == {"name": "a", "addresses": ["10.0.0.1", "172.17.0.1"], "port": 20_001, "word": "word of a"}
    assert checks.targets(hosts, "10.9.9.9")[0]["addresses"] == ["10.9.9.9"]

    def called(name: str, *reached: str, **why: str) -> dict[str, Any]:
        port = 20_001 if name == "a" else 40_001
        return {"name": name, "port": port, "reached": list(reached), "why": why}

    fine = [called("bb", "x"), called("ccc", "x")]
    both = [fine, [called("a", "10.0.0.1", "172.17.0.1"), called("ccc", "x")], [called("a", "172.17.0.1")]]
    assert checks.meeting_address(first, both) == "172.17.0.1"
    apart = [fine, [called("a", "10.0.0.1")], [called("a", "172.17.0.1"), called("bb", loop="no answer")]]
    assert checks.meeting_address(first, apart) is None
    assert list(checks.unreached(hosts, apart)) == [("ccc", "no route to bb at port 40001 (loop: no answer)")]


def test_unlike_hosts_are_named() -> None:
    plans = {"a": {"models": "4 x A100"}, "b": {"models": "4 x A100"}}
    assert checks.unlike(plans) is None
    line = checks.unlike(plans | {"c": {"models": "2 x RTX 4090"}})
    assert line == "different GPUs: a, b: 4 x A100; c: 2 x RTX 4090"
    large = [{"address": "10.0.0.2", "interface": "eth9", "mtu": 9000, "speed": None}]
    hosts = [host("a"), host("bb", addresses=large)]
    line = checks.mtu_mismatch(hosts, {"a": "10.0.0.1", "bb": "10.0.0.2"})
    assert line is not None
    assert line.startswith("different MTU: eth0 of a 1500, eth9 of bb 9000")
    assert checks.mtu_mismatch(hosts, {"a": "10.0.0.1", "bb": "10.0.0.9"}) is None


def test_summary_of_the_host_that_knows_most() -> None:
    own = {"failed": True, "victim": False, "own": True, "text": "x"}
    ranked = [own, own | {"own": False}, {"failed": False, "text": "error: x"}, None, {"failed": False, "text": ""}]
    assert sorted([*reversed(ranked), own | {"victim": True}], key=_knows)[:5] == ranked


def call(target: dict[str, Any], listener: Listener, *, deaf: bool = False) -> dict[str, Any]:
    """The result of one call, with both ends in this process. deaf: the listener reads nothing."""
    made, begin = Call(target), time.monotonic()
    while not made.finished() and time.monotonic() - begin < 10:
        with selectors.DefaultSelector() as ready:
            for one in listener.sockets[: 1 if deaf else None]:
                ready.register(one, selectors.EVENT_READ, (listener.serve, one))
            for one, event in made.waits_for:
                ready.register(one, event, (made.go_on, one))
            for key, _ in ready.select(0.05):
                act, one = key.data
                act(one)
    return made.result()


def test_calls_reach_the_right_host_alone() -> None:
    listener = Listener("the word")
    try:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            free = closed.getsockname()[1]
        target = {"name": "b", "addresses": ["127.0.0.1"], "port": listener.port, "word": "the word"}
        assert call(target, listener)["reached"] == ["127.0.0.1"]
        assert call({**target, "word": "another"}, listener)["why"] == {"127.0.0.1": "something else listens there"}
        assert call({**target, "port": free}, listener)["why"] == {"127.0.0.1": "Connection refused"}
        with pytest.raises(OSError, match="in use"):
            Listener("x", listener.port)
    finally:
        listener.close()


def test_large_packets_that_are_lost_are_an_mtu() -> None:
    listener = Listener("the word")
    try:
        target = {"name": "b", "addresses": ["127.0.0.1"], "port": listener.port, "word": "the word"}
        assert "MTU" in call(target, listener, deaf=True)["why"]["127.0.0.1"]
    finally:
        listener.close()


def test_hosts_of_all_spellings(tmp_path: Any) -> None:
    assert host_list("a, me@b:4,[fe80::1%eth0]:2,fe80::2") == (
        Host("a"),
        Host("me@b", 4),
        Host("fe80::1%eth0", 2),
        Host("fe80::2"),
    )
    file = tmp_path / "hosts"
    file.write_text("# comment\n\nworker-1 slots=4 # eight\nworker-2   slots=2 max_slots=8\nw3:1\n")
    assert hostfile(str(file)) == (Host("worker-1", 4), Host("worker-2", 2), Host("w3", 1))
    # As Windows' Notepad writes it.
    file.write_bytes(b"\xef\xbb\xbfworker-1 slots=4\r\nworker-2\r\n")
    assert hostfile(str(file)) == (Host("worker-1", 4), Host("worker-2", None))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--hosts", "a,-oProxyCommand=x"], "'-oProxyCommand=x' is no host"),
        (["--hosts", "a,b c"], "'b c' is no host"),
        (["--hosts", "a,,b"], "'' is no host"),
        (["--hosts", "a,b,a:2"], "duplicate host a"),
        (["--hosts", "a:0"], "'0' slots of a: expected a whole number from 1 to 1024"),
        (["--hosts", "me@a:22022"], "'22022' slots of me@a: expected a whole number from 1 to 1024 (a port belongs in"),
        (["--hostfile", "/nowhere/x"], "--hostfile '/nowhere/x': No such file or directory"),
        (["--hosts", "a,b", "--nnodes", "2"], "leave out --nnodes"),
        (["--hosts", "a,b", "--doctor"], "--doctor looks at one machine"),
        (["--sync", "."], "--sync belongs to --hosts"),
        (["--export", "X"], "--export belongs to --hosts"),
        (["--hosts", "a,b", "--export", "1X=secret"], "--export '1X': expected names"),
    ],
)
def test_mistakes_are_one_line(argv: list[str], words: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse([*argv, "train.py"])
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


def test_words_of_a_host_are_the_users_without_the_way_there() -> None:
    way = ["--hosts", "a,b", "--export", "X=1,Y", "--sync", ".", "--dry-run"]
    options = parse([*way, "--cpu", "--nproc=2", "-m", "pkg.train", "--lr", "1", "--", "--hosts", "z"])
    assert options.words == ("--cpu", "--nproc=2")
    assert words_of(options.program) == ("-m", "pkg.train", "--lr", "1", "--", "--hosts", "z")
    assert options.export == ("X=1,Y",)
    assert exported("X, Y") == ("X", "Y")
    assert words_of(parse(["--hosts", "a,b", "--epochs", "2"]).program) == ("--epochs", "2")
    assert words_of(parse(["--hosts=a,b", "--tee", "all", "--", "t.py", "x"]).program) == ("--", "t.py", "x")


def test_other_hosts_show_what_is_teed_alone() -> None:
    assert Tee(first=False).shown(4, 0)[0] == 0
    assert Tee(3, first=False).shown(4, 0) == (3, "[rank 4] ")


def test_verdict_on_the_network() -> None:
    def interfaces(*speeds: int | None) -> dict[str, Interface]:
        return {f"h{at}": Interface("eth0", f"10.0.0.{at}", speed, 1500) for at, speed in enumerate(speeds)}

    # Of 3 ranks each byte crosses a link 4/3 times: 30 MB in 0.4 s are 0.8 Gbit/s.
    line = json.dumps({"kind": "ddp-launch-link", "backend": "gloo", "ranks": 3, "bytes": 30_000_000, "seconds": 0.4})
    verdict = judge(b"a banner\n" + line.encode(), interfaces(1000, 1000, 1000), 0)
    assert (verdict.problem, verdict.concerns) == (None, ())
    assert verdict.gbit_s == pytest.approx(0.8)
    assert verdict.share == pytest.approx(0.8)
    slow = judge(line.encode(), interfaces(10_000, 1000, 2000), 0)
    assert slow.share == pytest.approx(0.8)
    assert "different speed" in slow.concerns[0]
    assert judge(line.encode(), interfaces(10_000, 10_000), 0).concerns[0].startswith("slow: 8% of")
    assert judge(line.encode(), interfaces(1000, None), 0).share is None
    failed = json.dumps({"kind": "ddp-launch-link", "backend": None, "problem": "timed out", "rank": 1})
    verdict = judge(failed.encode(), interfaces(1000, 1000), 1)
    assert verdict.problem is not None
    assert "the ranks cannot connect: timed out" in verdict.problem
    assert "firewall" in verdict.problem
    assert judge(b"", interfaces(1000, 1000), 137).problem is not None


@pytest.mark.parametrize(
    ("name", "addresses", "chosen"),
    [
        ("gpu01", ("127.0.1.1",), None),
        ("gpu01", ("127.0.1.1", "10.0.0.1"), "10.0.0.1"),
        ("gpu01", ("10.0.0.1", "10.0.1.1"), "10.0.0.1"),
        # The user means this machine alone.
        ("localhost", ("127.0.0.1", "::1"), "127.0.0.1"),
        ("127.0.1.1", ("127.0.1.1",), "127.0.1.1"),
    ],
)
def test_own_name_that_is_loopback_is_no_endpoint(
    monkeypatch: pytest.MonkeyPatch, name: str, addresses: tuple[str, ...], chosen: str | None
) -> None:
    rows = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 29_500)) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: rows)
    assert external_address(name, 29_500) == chosen
