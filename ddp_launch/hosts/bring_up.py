"""The hosts of a run, from the first connection to their plans: all are asked at once, and each problem names its host.

ssh starts a keeper (keeper.py) on each host. The keeper starts a launcher, which plans for that host (seat.py) and then
waits.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from ddp_core import __version__
from ddp_core.errors import OptionError, UserError
from ddp_launch.cli.options import LaunchOptions, words_of
from ddp_launch.cli.value_types import endpoint as checked_endpoint
from ddp_launch.cluster.network import external_address, split_endpoint
from ddp_launch.cluster.over_ssh import VARIABLE
from ddp_launch.cluster.pet import join
from ddp_launch.hosts import checks, sync, table
from ddp_launch.hosts.checks import HostFacts
from ddp_launch.hosts.ending import screen_size, streams
from ddp_launch.hosts.fleet import Fleet

ANSWER_S = 9.0
"""Time for a host's first message: a silent host is named within 10 s."""
WORK_S = 30.0
"""Time for a host's answers: its folder may be on a disk that has to be mounted first."""
PLAN_S = 120.0
"""Time for a launcher's plan: the driver of a sleeping GPU answers slowly."""
PACKAGES = Path(__file__).resolve().parents[2]
REFUSED = 2
OF_THE_SCREEN = ("TERM", "COLORTERM", "NO_COLOR", "FORCE_COLOR", "COLUMNS")
ALIKE = (
    "NCCL_",
    "GLOO_",
    "TORCH_",
    "OMP_",
    "MKL_",
    "PYTORCH_",
    "PYTHONPATH",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
)
"""Variables that ranks of one run should have in common: their names, or how these begin."""


@dataclass(frozen=True)
class Ready:
    """Hosts that are ready to start. `plans`: by host, in the order of the ranks; `notes`: on the hosts as a whole."""

    facts: Sequence[HostFacts]
    plans: Mapping[str, table.Plan]
    notes: tuple[str, ...]


def bring_up(
    fleet: Fleet, options: LaunchOptions, exported: Mapping[str, str], copied: str | None, console: Console
) -> Ready | Refusals:
    """Connect to all hosts and get their plans. Returns the plans, or the refusals, which have been printed.

    exported: variables for the ranks. copied: the folder that is copied to the hosts first.
    """
    refused = Refusals(fleet)
    facts = _facts(fleet, options, copied, refused)
    if refused.any():
        return refused
    place = _meeting_place(fleet, options, facts, refused)
    if refused.any():
        return refused
    _start(fleet, options, place, exported, console)
    plans = _plans(fleet, options, refused)
    if refused.any():
        return refused
    return Ready(facts, plans, (*options.notes, *_notes(options, exported, facts, plans)))


def exported(asked: Iterable[str], environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that are sent to the hosts, with their values. Errors: OptionError."""
    found = {}
    for word in asked:
        name, equals, value = word.partition("=")
        if not equals and name not in environ:
            raise OptionError(f"--export {name}: not set here; give its value as in --export {name}=VALUE")
        found[name] = value if equals else environ[name]
    return found


class Refusals:
    """Hosts that cannot take part, each reported immediately in one line. `status`: the run's exit status then."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._said: dict[str, str] = {}
        self.status = REFUSED

    @property
    def words(self) -> str:
        """All refusals in one line."""
        return "; ".join(f"{name}: {words}" for name, words in self._said.items())

    def say(self, name: str, words: str) -> None:
        """Report that a host cannot take part."""
        self._said.setdefault(name, words)
        print(f"error: {name}: {words}", file=sys.stderr, flush=True)

    def any(self) -> bool:
        """Whether the run cannot start. Hosts that were lost meanwhile are reported too."""
        for host in self._fleet.hosts:
            if host.lost is not None and host.name not in self._said:
                self.say(host.name, host.lost)
        return bool(self._said)


def _facts(fleet: Fleet, options: LaunchOptions, copied: str | None, refused: Refusals) -> list[HostFacts]:
    """What the hosts report about themselves; problems are printed."""
    folder, port = _current_folder(), None
    if options.rdzv_endpoint is not None:
        _, port = split_endpoint(checked_endpoint(options.rdzv_endpoint))
    ahead: dict[int, float] = {}
    words = [secrets.token_hex(16) for _ in fleet.hosts]

    def answer(host: Any, message: Mapping[str, Any]) -> None:
        """Check the Python of a new host, then ask for its facts."""
        if message["kind"] == "hello" and message["python"][:2] != list(sys.version_info[:2]):
            there, here = (".".join(map(str, version)) for version in (message["python"], sys.version_info[:3]))
            host.lost = f"another Python: {there} there, {here} here"
        elif message["kind"] == "hello":
            ahead[host.rank] = message["clock"] - datetime.now(UTC).timestamp()
            host.channel.send(
                "check",
                packages=str(PACKAGES),
                folder=folder,
                make=copied,
                word=words[host.rank],
                meeting=host.rank == 0,
                port=port,
            )

    fleet.on_message = answer
    fleet.gather("hello", ANSWER_S)
    checked = fleet.gather("checked", WORK_S)
    if any(host.lost is not None for host in fleet.hosts):
        return []
    if copied is not None:
        for name, why in sync.copy(copied, fleet.hosts):
            refused.say(name, why)
        fleet.send("folder", folder=folder, packages=str(PACKAGES))
        for message, entered in zip(checked, fleet.gather("entered", WORK_S), strict=False):
            message |= entered | {"kind": message["kind"]}
    hosts = [HostFacts(one.name, checked[one.rank], ahead[one.rank], words[one.rank]) for one in fleet.hosts]
    for name, why in checks.problems(hosts, __version__, str(PACKAGES), folder):
        refused.say(name, why)
    return hosts


def _current_folder() -> str:
    """The folder of the run, the same on all hosts. Errors: UserError where it is gone."""
    try:
        return str(Path.cwd())
    except OSError as error:
        raise UserError(f"--hosts: the current folder cannot be read ({error.strerror}): change to the run's") from None


def _meeting_place(fleet: Fleet, options: LaunchOptions, facts: Sequence[HostFacts], refused: Refusals) -> str | None:
    """HOST:PORT of a rendezvous that every host can reach; None for a single host."""
    if len(facts) == 1:
        return None
    asked = None
    if options.rdzv_endpoint is not None:
        asked = external_address(*split_endpoint(options.rdzv_endpoint))
    targets = checks.targets(facts, asked)
    for host in fleet.hosts:
        host.channel.send("reach", targets=[one for one in targets if one["name"] != host.name])
    reached = [message["results"] for message in fleet.gather("reached", WORK_S)]
    if any(not host.is_open for host in fleet.hosts):
        return None
    for name, why in checks.unreached(facts, reached):
        refused.say(name, why)
    address = checks.meeting_address(targets[0], reached)
    if address is None:
        if not refused.any():
            refused.say(facts[0].name, "the others reach it at different addresses: --rdzv-endpoint ADDRESS:PORT")
        return None
    return join(address, targets[0]["port"])


def _start(
    fleet: Fleet, options: LaunchOptions, place: str | None, exported: Mapping[str, str], console: Console
) -> None:
    """Start the launcher of each host; it plans, and waits."""
    seat = {
        "fd": "FD",  # filled in by the keeper
        "names": [host.name for host in fleet.hosts],
        "endpoint": place,
        "run_id": options.rdzv_id or time.strftime("%Y%m%d-%H%M%S"),
        "width": console.width,
        "colour": console.is_terminal and not console.no_color,
        "dry_run": options.dry_run,
    }
    screen = {name: os.environ[name] for name in OF_THE_SCREEN if name in os.environ}
    timeout = [] if options.rdzv_timeout is None else [f"--rdzv-timeout={options.rdzv_timeout}"]
    terminals, one_place = streams()
    for host in fleet.hosts:
        first = host.rank == 0
        host.channel.send(
            "start",
            argv=[*fleet.inbox["checked"][host.rank]["launcher"], *timeout, *options.words, *words_of(options.program)],
            environment={**screen, **exported},
            variable=VARIABLE,
            seat=json.dumps({**seat, "rank": host.rank, "slots": host.slots}),
            terminals=terminals if first else (False, False),
            one_place=first and one_place,
            rows_columns=screen_size(),
        )


def _plans(fleet: Fleet, options: LaunchOptions, refused: Refusals) -> dict[str, table.Plan]:
    """Host name -> its plan; problems are printed."""
    limit_s = PLAN_S if options.wait is None else options.wait + PLAN_S
    fleet.on_message = lambda host, message: None
    plans = fleet.gather("plan", limit_s)
    said: dict[tuple[str, int], list[str]] = {}
    for host in fleet.hosts:
        if (message := fleet.inbox.get("refused", {}).get(host.rank)) is not None:
            said.setdefault((message["line"], message["status"]), []).append(host.name)
        elif host.code is not None and host.rank not in fleet.inbox["plan"]:
            line = f"its launcher ended before it had a plan, with status {host.code}"
            said.setdefault((line, REFUSED), []).append(host.name)
    for (line, status), names in said.items():
        refused.say(", ".join(names), line)
        refused.status = status
    if refused.any():
        return {}
    found: dict[str, table.Plan] = {host.name: plan for host, plan in zip(fleet.hosts, plans, strict=True)}
    backends = {plan["plan"]["backend"]: name for name, plan in found.items()}
    if len(backends) > 1:
        refused.say(
            backends["gloo"], f"it would run on the CPU, and {backends['nccl']} on GPUs: --cpu runs all on the CPU"
        )
    return found


def _notes(
    options: LaunchOptions, exported: Iterable[str], facts: Sequence[HostFacts], plans: Mapping[str, table.Plan]
) -> Iterable[str]:
    """Notes for the user on the hosts as a whole."""
    if (line := checks.unlike(plans)) is not None:
        yield line
    if (line := checks.mtu_mismatch(facts, {name: plan["address"] for name, plan in plans.items()})) is not None:
        yield line
    if len({one.checked["torch"] for one in facts}) > 1:
        builds = ", ".join(f"{one.checked['torch']} on {one.name}" for one in facts)
        yield f"different builds of torch: {builds}"
    mine = {name for name in os.environ if name.startswith(ALIKE)} - {*exported}
    elsewhere = sorted(name for name in mine if any(name not in one.checked["variables"] for one in facts))
    if elsewhere and len(facts) > 1:
        yield f"set here and not on the other hosts: {', '.join(elsewhere)} (--export {','.join(elsewhere)})"
    if options.program.kind == "trainer" and len(facts) > 1:
        yield (
            "each host reads the images at --data-dir itself, from its own disk or a shared one, and they must be the"
            " same on all hosts; each host downloads what it lacks"
        )
