"""The network between hosts, measured before a run: a timed all-reduce against the speed of the interfaces.

The job is an ordinary run of link.py with one rank on each host. Its speed is compared with what the hosts report about
their interfaces.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from ddp_core.errors import OptionError
from ddp_launch.cli.options import LaunchOptions, Program
from ddp_launch.hosts import checks, link
from ddp_launch.hosts.bring_up import Ready, Refusals, bring_up
from ddp_launch.hosts.ending import Ending
from ddp_launch.hosts.fleet import Fleet
from ddp_launch.hosts.seat import grace

SLOW = 0.5
"""Below this share of the interface's speed the network is slow. gloo and NCCL over sockets reach 70% or more."""
KEPT = ("--auto", "--gpus", "--devices", "--cpu", "--policy", "--exclude", "--allow-busy", "--wait", "--min-memory")
"""Options of the command line that the check uses too: they choose the devices."""
GBIT = 1e9


@dataclass(frozen=True)
class Interface:
    """The interface that a host's ranks use. `speed` in Mbit/s, `mtu` in bytes, None where they are not known;
    `adapters`: the nearest InfiniBand or RoCE adapter of each chosen GPU and its distance: "GPU 0: mlx5_0 (PIX)"."""

    name: str | None
    address: str
    speed: int | None
    mtu: int | None
    adapters: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What was measured. `gbit_s`: rate of an all-reduce through each interface, in each direction; `share`: its
    fraction of the slowest interface's speed, None where that is not known or NCCL does not use the interfaces."""

    problem: str | None
    gbit_s: float | None
    share: float | None
    concerns: tuple[str, ...]
    backend: str | None


def run(
    options: LaunchOptions,
    exported: Mapping[str, str],
    copied: str | None,
    console: Console,
    *,
    preflight: bool = False,
) -> int:
    """Measure and print. Returns the exit status, 1 where the hosts cannot work together. Errors: UserError.

    copied: the folder that is copied to the hosts first. preflight: this is the check before a run, and prints
    to standard error.
    """
    if len(options.hosts) < 2:
        raise OptionError("--check-hosts measures between hosts: give two or more")
    words = tuple(word for word in options.words if word.partition("=")[0] in KEPT)
    program = Program("script", str(Path(link.__file__)), ("--cpu",) if options.cpu else ())
    job = replace(
        options, program=program, words=(*words, "--nproc=1", "--stall-report=0"), dry_run=False, preflight=None
    )
    with Fleet(options.hosts) as fleet:
        fleet.capture = bytearray()
        ready = bring_up(fleet, job, exported, copied, console)
        if isinstance(ready, Refusals):
            return ready.status
        status = Ending(fleet, Console(stderr=True, quiet=True), grace(job), silent=True).run_to_end()
        verdict = judge(bytes(fleet.capture), _interfaces(ready), status)
    if status > 128 and verdict.gbit_s is None:
        return status
    interfaces = _interfaces(ready)
    if options.json:
        print(json.dumps(_as_json(verdict, interfaces), indent=1))
    else:
        _show(console if preflight else Console(), verdict, interfaces)
    return int(verdict.problem is not None)


def judge(output: bytes, interfaces: Mapping[str, Interface], status: int) -> Verdict:
    """The verdict on what the job's ranks printed. status: the job's exit status."""
    said = list(_facts(output))
    measured = next((facts for facts in said if "seconds" in facts), None)
    problem = next((facts["problem"] for facts in said if "problem" in facts), None)
    if measured is None and problem is None:
        problem = f"the job ended with status {status} and measured nothing"
    if measured is None:
        low, high = _free_ports()
        problem = (
            f"the ranks cannot connect: {problem}; they use ports that the system chooses, here {low} to"
            f" {high}: a firewall between the hosts must let them through"
        )
        return Verdict(problem, None, None, tuple(_concerns(None, interfaces)), None)
    # nccl-tests, doc/PERFORMANCE.md: with n ranks, each byte crosses the slowest link 2 (n - 1) / n times.
    moved = measured["bytes"] * 2 * (measured["ranks"] - 1) / measured["ranks"]
    gbit_s = moved * 8 / measured["seconds"] / GBIT
    speeds = [one.speed for one in interfaces.values() if one.speed is not None]
    share = gbit_s * 1000 / min(speeds) if speeds and len(speeds) == len(interfaces) else None
    if measured["backend"] == "nccl" and any(one.adapters for one in interfaces.values()):
        # NCCL uses these adapters and not the interface.
        share = None
    return Verdict(problem, gbit_s, share, tuple(_concerns(share, interfaces)), measured["backend"])


def _facts(output: bytes) -> Iterator[dict[str, Any]]:
    """The JSON objects of link.py among the lines that the job printed."""
    for line in output.decode(errors="replace").splitlines():
        try:
            facts = json.loads(line)
        except ValueError:
            continue
        if isinstance(facts, dict) and facts.get("kind") == link.KIND:
            yield facts


def _concerns(share: float | None, interfaces: Mapping[str, Interface]) -> Iterator[str]:
    """Notes on a slow network, and on interfaces that differ in speed or MTU."""
    if share is not None and share < SLOW:
        yield (
            f"slow: {share:.0%} of the speed of the interface: other traffic, CPUs that are busy (gloo), a switch or"
            " cable that runs at less, or the wrong interface (--rdzv-endpoint ADDRESS:PORT chooses the network)"
        )
    speeds = {one.speed for one in interfaces.values() if one.speed is not None}
    if len(speeds) > 1:
        yield "interfaces of different speed: " + ", ".join(_described(name, one) for name, one in interfaces.items())
    if len({one.mtu for one in interfaces.values() if one.mtu is not None}) > 1:
        yield checks.different_mtu({name: (one.name, one.mtu) for name, one in interfaces.items()})


def _interfaces(ready: Ready) -> dict[str, Interface]:
    """Host -> the interface that its ranks use, as far as the host described it."""
    found = {}
    for host in ready.facts:
        address = ready.plans[host.name]["address"]
        known: Mapping[str, Any] = next((one for one in host.checked["addresses"] if one["address"] == address), {})
        adapters = tuple(ready.plans[host.name]["adapters"])
        found[host.name] = Interface(known.get("interface"), address, known.get("speed"), known.get("mtu"), adapters)
    return found


def _described(name: str, one: Interface) -> str:
    """One line on a host's interface: name, address, speed, MTU."""
    speed = "speed unknown" if one.speed is None else f"{one.speed / 1000:g} Gbit/s"
    return f"{name} {one.name} ({one.address}, {speed}, MTU {one.mtu or 'unknown'})"


def _free_ports() -> tuple[int, int]:
    """The range from which the system assigns free ports, ip(7)."""
    try:
        low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    except OSError:
        return 32_768, 60_999
    return int(low), int(high)


def _show(console: Console, verdict: Verdict, interfaces: Mapping[str, Interface]) -> None:
    """Print the interfaces, the measured speed, and what is wrong."""
    lines: list[Text | str] = [_described(name, one) for name, one in interfaces.items()]
    lines += [f"{name} {adapter}" for name, one in interfaces.items() for adapter in one.adapters]
    if verdict.gbit_s is not None:
        share = "" if verdict.share is None else f", {verdict.share:.0%} of the slowest interface's speed"
        lines.append(
            f"all-reduce between {len(interfaces)} hosts with {verdict.backend}: {verdict.gbit_s:.3g} Gbit/s{share}"
        )
    lines += [Text.assemble(("note: ", "yellow"), line) for line in verdict.concerns]
    if verdict.problem is not None:
        lines.append(Text.assemble(("error: ", "red"), verdict.problem))
    else:
        lines.append("all sums are correct")
    for line in lines:
        console.print(
            Text("hosts: ", style="bold").append_text(Text("") + line if isinstance(line, str) else line),
            soft_wrap=True,
        )


def _as_json(verdict: Verdict, interfaces: Mapping[str, Interface]) -> dict[str, Any]:
    """The object that `--check-hosts --json` prints."""
    hosts = [
        {
            "host": name,
            "interface": one.name,
            "address": one.address,
            "speed_mbit_s": one.speed,
            "mtu": one.mtu,
            "adapters": list(one.adapters),
        }
        for name, one in interfaces.items()
    ]
    return {
        "ok": verdict.problem is None,
        "problem": verdict.problem,
        "gbit_s": verdict.gbit_s,
        "share": verdict.share,
        "backend": verdict.backend,
        "concerns": list(verdict.concerns),
        "hosts": hosts,
    }
