"""The events of a run, as the launcher records them; docs/events.md explains their keys."""

from __future__ import annotations

import os
import platform
import signal
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from ddp_core import __version__
from ddp_core.redaction import redacted
from ddp_launch.events.jsonl import EventLog, Value
from ddp_launch.failure.evidence import EvidenceCollector
from ddp_launch.failure.failures import Attempt, Failure, exit_status, signal_name
from ddp_launch.plan.command import RestartPlan

SCHEMA = "ddp-launch-events/1"
LAST_LINES = 40


class RunEvents:
    """Records the events of a run, and shows its restarts on the `console`.

    evidence: finds remedies for failures; None for a run that is not recorded.
    """

    def __init__(
        self, events: EventLog, evidence: EvidenceCollector | None = None, console: Console | None = None
    ) -> None:
        self._events = events
        self._evidence = evidence
        self._console = console
        self._signalled = False

    def plan(self, plan: Mapping[str, Any], logs: Path, run_folder: Path | None) -> None:
        """Record that a run is about to start. `plan`: as --dry-run --json prints it; `run_folder`: the trainer's."""
        facts: dict[str, Value] = {
            "version": __version__,
            "versions": {"python": platform.python_version(), "torch": _torch(), "platform": platform.platform()},
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "argv": [Path(sys.argv[0]).name, *redacted(sys.argv[1:])],
            "logs": str(logs),
            "run_folder": None if run_folder is None else str(run_folder),
        }
        self._events.write("plan", schema=SCHEMA, plan=plan, **facts)

    def attempt(self, number: int, ranks: Mapping[int, int], world_size: int, logs: Path) -> None:
        """Record that the ranks of an attempt have started. `ranks`: rank -> process id, of this node."""
        pids = {str(rank): pid for rank, pid in ranks.items()}
        self._events.write("attempt", attempt=number, world_size=world_size, pids=pids, logs=str(logs))

    def rank_end(self, attempt: int, rank: int, code: int, ended_ms: float, *, stopped: bool) -> None:
        """Record the end of a rank, well or not. `code`: Popen's returncode."""
        self._events.write("rank-end", ended_ms, attempt=attempt, rank=rank, stopped=stopped, **_end(code))

    def signal(self, number: signal.Signals) -> None:
        """Record, once, that the launcher was asked to end."""
        if not self._signalled:
            self._signalled = True
            self._events.write("signal", signal=number.name)

    def stall(
        self,
        seconds: float,
        kind: str,
        ranks: Sequence[int],
        title: str,
        collective: str,
        rows: Iterable[tuple[Sequence[int], str]],
        stacks: Mapping[str, Sequence[str]],
        *,
        killing: bool,
    ) -> None:
        """Record a stall; see ddp_launch/stall/finding.py. `stacks`: rank -> lines of a traceback; `killing`: whether
        the launcher ends the run."""
        doing: list[Value] = [{"ranks": list(those), "doing": what} for those, what in rows]
        self._events.write(
            "stall",
            seconds=round(seconds, 1),
            kind=kind,
            ranks=list(ranks),
            words=title,
            collective=collective or None,
            doing=doing,
            stacks=stacks,
            killing=killing,
        )

    def waited_for(
        self, rank: int, ms_a_step: float, share: float, steps: int, shares: Mapping[int, Mapping[str, float]]
    ) -> None:
        """Record the rank that the others waited for. `share`: fraction of the time that they waited; `shares`: rank ->
        phase -> fraction of the time, for the bundled trainer."""
        ranks = {str(one): {name: round(part, 4) for name, part in parts.items()} for one, parts in shares.items()}
        facts = {"ms_a_step": round(ms_a_step, 3), "share": round(share, 4)}
        self._events.write("waited-for", rank=rank, **facts, steps=steps, ranks=ranks or None)

    def waits(self, shares: Mapping[int, float], seconds: float) -> None:
        """Record the share of these `seconds` for which each rank of this node has waited for others."""
        ranks = {str(rank): round(share, 4) for rank, share in sorted(shares.items())}
        self._events.write("waits", seconds=round(seconds, 3), ranks=ranks)

    def energy(self, joules: Mapping[int, float]) -> None:
        """Record the energy of this node's GPUs from the start of the run to its end, by NVML index; {}: no event."""
        if joules:
            gpus: list[Value] = [{"index": index, "joules": round(taken, 3)} for index, taken in joules.items()]
            self._events.write("energy", joules=round(sum(joules.values()), 3), gpus=gpus)

    def failure(self, attempt: Attempt, *, restarts: int, following: RestartPlan | None = None) -> None:
        """Record a failed attempt: its first failure, and how the other ranks ended.

        restarts: how many are left. following: the next attempt's plan, where it is known.
        """
        if (first := attempt.first) is None:
            return
        speaker = attempt.speaker or first
        remedy = self._evidence.remedy(speaker) if self._evidence else None
        others = [other for other in attempt.failures if other is not first]
        self._events.write(
            "failure",
            first.ended_ms,
            attempt=attempt.number,
            rank=first.rank,
            host=first.host,
            **_end(first.code),
            words=first.ending(),
            error=speaker.log_tail.error,
            **_where(first),
            last_lines=list(speaker.log_tail.shown(LAST_LINES)),
            logs=[str(log) for log in first.logs],
            victims=_ranks(other for other in others if other.victim),
            failed_as_well=_ranks(other for other in others if not other.victim and not other.stopped),
            stopped=_ranks(other for other in others if not other.victim and other.stopped),
            remedy=None
            if remedy is None
            else {"name": remedy.name, "meaning": remedy.meaning, "advice": remedy.advice},
        )
        if restarts:
            self._restart(attempt, first, restarts, following)

    def _restart(self, attempt: Attempt, first: Failure, restarts: int, following: RestartPlan | None) -> None:
        """Record and show the next attempt: its number, the reason, its devices."""
        self._events.write(
            "restart",
            attempt=attempt.number + 1,
            restarts_left=restarts - 1,
            ranks=None if following is None else following.job.nproc_per_node,
            devices=None if following is None else following.devices,
            change=None if following is None else following.change or None,
        )
        if self._console is None:
            return
        why = first.log_tail.error or first.ending(meaning=False)
        line = f"rank {first.rank} on {first.host} failed: {why}; attempt {attempt.number + 2} starts"
        if following is not None:
            ranks = f"{following.job.nproc_per_node} rank{'s' * (following.job.nproc_per_node != 1)}"
            line += f" with {ranks} on {following.devices}" + (f" ({following.change})" if following.change else "")
        title = (f"restart {attempt.number + 1} of {attempt.number + restarts}: ", "yellow")
        self._console.print(Text.assemble(title, line), soft_wrap=True)


def _torch() -> str | None:
    """The version of torch, which is not imported yet."""
    try:
        return version("torch")
    except PackageNotFoundError:
        return None


def _where(failure: Failure) -> dict[str, Value]:
    """Where the rank was, and how it hung; null for what is unknown."""
    place, hang = failure.place, failure.hang
    return {
        "place": None if place is None else {"step": place.step, "epoch": place.epoch, "phase": place.phase},
        "hang": None
        if hang is None
        else {"seconds": hang.seconds, "stopped": hang.verdict == "stopped", "stack": list(hang.stack)},
        "left_early": failure.left,
        "at": failure.at or None,
        "found": failure.found or None,
        "held_up": failure.held_up,
    }


def _end(code: int) -> dict[str, Value]:
    """The parts of a returncode: `exit_code` or `signal` is null; `status` is the shell's."""
    return {
        "status": exit_status(code),
        "exit_code": code if code >= 0 else None,
        "signal": signal_name(code) if code < 0 else None,
    }


def _ranks(failures: Iterable[Failure]) -> list[int]:
    """The ranks of these failures, in order."""
    return sorted(failure.rank for failure in failures)
