"""What is wrong with the hosts of a run, in words, from what each reports about itself. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CLOCKS_S = 10.0
"""torch counts a node as lost when its last heartbeat is 15 s old by another node's clock."""


@dataclass(frozen=True)
class HostFacts:
    """What a host reports. `checked`: the answer of keeper.py and facts.py; `ahead_s`: its clock minus this machine's;
    `word`: its answer to callers."""

    name: str
    checked: Mapping[str, Any]
    ahead_s: float
    word: str = ""


def problems(hosts: Sequence[HostFacts], project: str, packages: str, folder: str) -> Iterator[tuple[str, str]]:
    """(host, problem). project: this project's version here; packages: its folder here; folder: the run's folder."""
    first = hosts[0]
    for host in hosts:
        for words in (
            *_of_folder(host, folder),
            *_of_project(host, project, packages),
            *_of_versions(host, first),
            *_of_clock(host, first),
        ):
            yield host.name, words
        if (why := host.checked.get("listener")) is not None:
            yield host.name, f"no port can be opened for the check of the routes ({why})"


def _of_folder(host: HostFacts, folder: str) -> Iterator[str]:
    """The line for a folder of the run that does not exist on the host."""
    if (why := host.checked["folder"]) is not None:
        yield f"folder missing: {folder} ({why}); make it there, or copy it with --sync {folder}"


def _of_project(host: HostFacts, project: str, packages: str) -> Iterator[str]:
    """The line for a project that is missing on the host, or has another version."""
    there = host.checked["project"]
    if there is None:
        yield f"this project is neither in {packages} nor installed in the Python there"
    elif there != project:
        yield f"another version of this project: {there} there, {project} here"


def _of_versions(host: HostFacts, first: HostFacts) -> Iterator[str]:
    """The lines for a Python or torch that differs from the first host's."""
    python, other = host.checked["python"], first.checked["python"]
    if python[:2] != other[:2]:
        yield f"another Python: {_dotted(python)} there, {_dotted(other)} on {first.name}"
    torch, others = host.checked["torch"], first.checked["torch"]
    if torch is None:
        yield "no torch in the Python there"
    elif others is not None and torch.partition("+")[0] != others.partition("+")[0]:
        yield f"another torch: {torch} there, {others} on {first.name}"


def _of_clock(host: HostFacts, first: HostFacts) -> Iterator[str]:
    """The line for a clock that is too far from the first host's."""
    apart = host.ahead_s - first.ahead_s
    if abs(apart) > CLOCKS_S:
        way = "ahead of" if apart > 0 else "behind"
        yield (
            f"clocks apart: its clock is {abs(apart):.0f} s {way} that of {first.name}, and more than 15 s counts as a"
            " lost node: synchronize both with NTP"
        )


def _dotted(version: Sequence[int]) -> str:
    """`[3, 12, 1]` as "3.12.1"."""
    return ".".join(map(str, version))


def candidates(host: HostFacts, others: Sequence[HostFacts], asked: str | None) -> list[str]:
    """Addresses at which the others may reach a host, the best first. asked: the user's choice for the first host."""
    if asked is not None:
        return [asked]
    known = [one["address"] for one in host.checked["addresses"]]
    # The machine that ssh was started on knows only its own addresses; the others saw which one the call came from.
    seen = [address for other in others for address in other.checked["caller"] if address in known]
    return list(dict.fromkeys([*seen, *known]))


def targets(hosts: Sequence[HostFacts], asked: str | None) -> list[dict[str, Any]]:
    """How the others should call each host: the first host at the rendezvous port, then every host at a port like those
    of its ranks. asked: the first host's address, where the user named it."""
    found = []
    for at, host in enumerate(hosts):
        others = [other for other in hosts if other is not host]
        one = {"name": host.name, "addresses": candidates(host, others, None if at else asked), "word": host.word}
        found += [
            {**one, "port": host.checked[port]} for port in (("port", "free_port") if at == 0 else ("free_port",))
        ]
    return found


def unreached(hosts: Sequence[HostFacts], reached: Sequence[Sequence[Mapping[str, Any]]]) -> Iterator[tuple[str, str]]:
    """(host, what is wrong) where one host does not reach another. reached: by host, the results of its calls."""
    for host, results in zip(hosts, reached, strict=True):
        for result in results:
            if not result["reached"]:
                tried = "; ".join(f"{address}: {why}" for address, why in _worth_saying(result["why"]).items())
                yield host.name, f"no route to {result['name']} at port {result['port']} ({tried})"


def meeting_address(first: Mapping[str, Any], reached: Sequence[Sequence[Mapping[str, Any]]]) -> str | None:
    """The best address of the first host (its entry in `targets`) that all others reach; None if there is none."""
    place = (first["name"], first["port"])
    calls = [set(one["reached"]) for results in reached for one in results if (one["name"], one["port"]) == place]
    return next((address for address in first["addresses"] if all(address in those for those in calls)), None)


def _worth_saying(why: Mapping[str, str]) -> Mapping[str, str]:
    """The reasons without those for loopback addresses, at which a host reaches only itself."""
    others = {address: words for address, words in why.items() if not address.startswith("127.")}
    return others or why


def unlike(plans: Mapping[str, Mapping[str, Any]]) -> str | None:
    """A line on hosts with different devices; None where they are identical. plans: host -> its report."""
    models: dict[str, list[str]] = {}
    for name, plan in plans.items():
        models.setdefault(plan["models"], []).append(name)
    if len(models) == 1:
        return None
    return "different GPUs: " + "; ".join(f"{', '.join(names)}: {model}" for model, names in models.items())


def mtu_mismatch(hosts: Sequence[HostFacts], addresses: Mapping[str, str]) -> str | None:
    """A line on interfaces of the run with different MTUs; None where they agree. addresses: host -> its address."""
    sizes = {}
    for host in hosts:
        for one in host.checked["addresses"]:
            if one["address"] == addresses.get(host.name) and one["mtu"]:
                sizes[host.name] = (one["interface"], one["mtu"])
    if len({size for _, size in sizes.values()}) < 2:
        return None
    return different_mtu(sizes)


def different_mtu(sizes: Mapping[str, tuple[str | None, int | None]]) -> str:
    """The line on interfaces with different MTUs. sizes: host -> (interface, bytes)."""
    words = ", ".join(f"{interface} of {name} {size}" for name, (interface, size) in sizes.items())
    return f"different MTU: {words}: large packets may be lost; set one size (ip link set dev NAME mtu N)"
