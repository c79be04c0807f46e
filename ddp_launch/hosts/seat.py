"""A launcher's side of a run over ssh: what it was given, its plan for the common table, and how its part ended.

The keeper that started it holds the other end of a socket; the messages are those of channel.py.
"""

from __future__ import annotations

import io
import json
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console

from ddp_core import missing_packages
from ddp_core.errors import UserError
from ddp_launch.cli.options import LaunchOptions
from ddp_launch.cluster.over_ssh import VARIABLE
from ddp_launch.failure.failures import Outcome
from ddp_launch.failure.remedies import Remedy
from ddp_launch.failure.summary import show
from ddp_launch.notify.notifier import TOLD, brief
from ddp_launch.plan.plain import to_json
from ddp_launch.plan.plan import LaunchPlan
from ddp_launch.plan.show import in_parts
from gpu_topology.host.nics import nic_distances

GRACE_S = 7
"""Short enough that nothing runs anywhere 10 s after a Ctrl-C. A longer --grace is the user's choice."""
LEVELS = ("PIX", "PXB", "PHB", "NODE", "SYS")
"""From near to far, as `nvidia-smi topo -m` names them."""


def grace(options: LaunchOptions) -> int:
    """Seconds for the ranks to end after a signal or a failure."""
    return GRACE_S if options.grace is None else options.grace


@dataclass(frozen=True, kw_only=True)
class Seat:
    """This launcher's place in the run. `rank`: this host's rank; `slots`: number of its ranks, if --hosts or the
    hostfile gives it; `width`, `colour`: of the screen where the run was started; `way`: the socket to the keeper."""

    name: str
    rank: int
    slots: int | None
    width: int
    colour: bool
    dry_run: bool
    way: socket.socket

    @staticmethod
    def taken(environ: Mapping[str, str]) -> Seat | None:
        """The seat that the environment describes; None for a launcher that was started by hand."""
        if VARIABLE not in environ:
            return None
        given = json.loads(environ[VARIABLE])
        # The ranks must not inherit the socket: it has to close when this process ends.
        os.set_inheritable(int(given["fd"]), False)
        way = socket.socket(fileno=int(given["fd"]))
        way.setblocking(True)
        facts = {name: given[name] for name in ("rank", "slots", "width", "colour", "dry_run")}
        return Seat(name=given["names"][given["rank"]], way=way, **facts)

    def adapted(self, options: LaunchOptions) -> LaunchOptions:
        """The options for this host: only the first host shows a rank and records events."""
        first = self.rank == 0
        return replace(
            options,
            nproc=options.nproc or self.slots,
            tee=replace(options.tee, first=first),
            dry_run=self.dry_run,
            json_events=options.json_events if first else None,
            notify=(),
            grace=grace(options),
        )

    def meet(self, plan: LaunchPlan) -> None:
        """Report the plan and wait for the start. Errors: UserError (a package is missing, or the run was given up)."""
        if not self.dry_run:
            missing_packages.need("torch", "psutil")
        self._send("plan", plan=to_json(plan), adapters=_adapters(plan), **in_parts(plan))
        if not self.dry_run:
            with self.way.makefile("rb") as answers:
                if not answers.readline():
                    raise UserError("the run was given up before it began")

    def logs(self, folder: str) -> None:
        """Report where the logs of this host's ranks are."""
        self._send("logs", folder=folder)

    def refused(self, line: str, status: int) -> None:
        """Report that this host cannot take part, or cannot continue. `line`: without "error: "."""
        self._send("refused", line=line, status=status)

    def hear(self, event: Mapping[str, Any]) -> None:
        """Report an event to the launcher that was started by hand, if its messages to the user may need it."""
        if event["event"] in TOLD and event["event"] != "end":
            self._send("event", facts=brief(event))

    def ended(self, outcome: Outcome, remedy: Remedy | None) -> None:
        """Report how this host's part ended, with the summary as the screen would show it."""
        text = io.StringIO()
        show(Console(file=text, width=self.width, force_terminal=self.colour), outcome, remedy, host=self.name)
        first = outcome.first
        facts: dict[str, Any] = {"failed": first is not None}
        if first is not None:
            facts |= {"victim": first.victim, "own": first.remote is None}
        self._send("outcome", status=outcome.status, text=text.getvalue(), **facts)

    def _send(self, kind: str, **facts: object) -> None:
        """Send a message to the keeper."""
        # An error means that the keeper is gone, and this process about to be killed.
        with suppress(OSError):
            self.way.sendall(json.dumps({"kind": kind, **facts}).encode() + b"\n")


def _adapters(plan: LaunchPlan) -> list[str]:
    """The nearest InfiniBand or RoCE adapter of each chosen GPU, where there is one: "GPU 0: mlx5_0 (PIX)"."""
    chosen = {index: plan.topology.gpu(index).pci_bus_id for index in plan.selection.indices}
    # The driver's domain has eight digits, the kernel's four.
    places = {index: bus_id.lower()[-12:] for index, bus_id in chosen.items() if bus_id is not None}
    distances = nic_distances([*places.values()])
    lines = []
    for at, index in enumerate(places):
        near = [(LEVELS.index(level), name) for name, levels in distances.items() if (level := levels[at]) is not None]
        if near:
            steps, adapter = min(near)
            lines.append(f"GPU {index}: {adapter} ({LEVELS[steps]})")
    return lines
