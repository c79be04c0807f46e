"""A small process beside the ranks of a node that ends the run when one of them hangs: `python -I -S process.py ...`.

A separate process, since a rank that is stopped, or holds the GIL, stops its own threads too. The first rank of a node
starts it (start.py), and it ends when that rank does. It reads the beats of each rank (distributed/heartbeat.py) and
/proc, and judges them (verdict.py). When a rank hangs, it writes the rank's Python stack and place to that rank's error
file (ddp_core/rank_report.py), prints them on its standard error, and ends it. No module outside the standard library
and this project is imported.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ddp_core import rank_report
from ddp_train.distributed.heartbeat import place
from ddp_train.watchdog import python_stacks
from ddp_train.watchdog.rank_probe import Rank
from ddp_train.watchdog.verdict import LEFT_S, Limits, Sight, Verdict, judge

SHORTEST_S, LONGEST_S = 0.05, 1.0
"""Bounds of the seconds between two looks, which are a twentieth of the limit."""
MEETING_S = 0.2
LET_GO_S = 0.8
"""Seconds that ranks without a connection to the culprit have to end with an error or by their launcher."""
OTHERS = 7
DETAIL = {
    "hung": "",
    "stopped": "; its process was stopped (SIGSTOP)",
    "locked": "; all ranks wait for one another, in different collectives",
    "device": "; every rank waits: a GPU, or a link between GPUs, does not answer",
}
IGNORED = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


class Watch:
    """Watches the `count` ranks of one of `nodes` nodes. They announce themselves in `folder`. `timeout_s` None: auto.

    parent: the process id of local rank 0, which may have ended before this process could ask for it.
    """

    def __init__(self, folder: Path, count: int, nodes: int, timeout_s: float | None, parent: int) -> None:
        self._folder, self._count, self._nodes = folder, count, nodes
        self._parent = parent
        self._limits = Limits(timeout_s)
        self._ranks: dict[int, Rank] = {}
        self._ready = select.poll()
        self._looked = time.monotonic()
        self._noted = False

    def run(self) -> None:
        """Look until local rank 0 is gone, or a rank hangs and the run has been ended."""
        while not self._over():
            self._ready.poll(1000 * self._interval)
            if (verdict := self._look()) is None:
                continue
            if verdict.kind not in ("locked", "device") or self._nodes == 1:
                self._end(verdict)
                return
            if not self._noted:
                self._noted = True
                waited = f"every rank of this node has waited for others for {verdict.seconds:.0f} s"
                self._tell(f"note: {waited}: look at the other nodes\n")

    @property
    def _interval(self) -> float:
        """Seconds between two looks."""
        if len(self._ranks) < self._count:
            return MEETING_S
        return min(max(self._limits.ordinary_s / 20, SHORTEST_S), LONGEST_S)

    def _over(self) -> bool:
        """Whether nothing is left to watch."""
        if os.getppid() == self._parent:
            return False
        first = next((rank for rank in self._ranks.values() if rank.pid == self._parent), None)
        # If rank 0 left early, stay for a while: the others may wait for it.
        return first is None or (first.status is not None and not first.left) or first.gone_s > 2 * LEFT_S

    def _look(self) -> Verdict | None:
        """Look at all ranks once; the verdict on a hang, if there is one."""
        if len(self._ranks) < self._count:
            self._meet()
        now = time.monotonic()
        awake, self._looked = min(now - self._looked, 2 * self._interval + SHORTEST_S), now
        for rank in self._ranks.values():
            was = rank.status
            gap = rank.look(awake)
            self._limits = Limits(self._limits.timeout_s, max(self._limits.longest_s, gap))
            if was is None and rank.status is not None:
                if rank.ending is not None:
                    self._ready.unregister(rank.ending)
                if rank.left:
                    self._tell(f"{left_line(rank.sight)}\n")
        if len(self._ranks) < self._count:
            return None
        first_step = max(rank.first_step for rank in self._ranks.values())
        for rank in self._ranks.values():
            rank.ask(self._limits.ordinary_s)
        return judge([rank.sight for rank in self._ranks.values()], self._limits, first_step)

    def _meet(self) -> None:
        """Add the ranks that have announced themselves since; remove the folder after the last of them."""
        for path in self._folder.glob("rank-*"):
            with suppress(OSError):  # it has ended and withdrawn its announcement
                pid, beats, dumps = map(int, path.read_text().split())
                number = int(path.name.removeprefix("rank-"))
                path.unlink()
                rank = self._ranks[number] = Rank(number, pid, beats, dumps)
                if rank.ending is not None:
                    self._ready.register(rank.ending, select.POLLIN)
        if len(self._ranks) == self._count:
            self.leave()

    def leave(self) -> None:
        """Remove the watchdog's files."""
        with suppress(OSError):
            for path in self._folder.iterdir():
                path.unlink()
            self._folder.rmdir()

    def _tell(self, text: str) -> None:
        """Print on the standard error of the first rank that is running and can be written to."""
        next((rank for _, rank in sorted(self._ranks.items()) if rank.status is None and rank.write(text)), None)

    def _end(self, verdict: Verdict) -> None:
        """Report which rank hangs and where, then end it, and with it the run."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        alive = {number: rank for number, rank in self._ranks.items() if rank.status is None}
        culprit = alive.get(verdict.rank) or min(alive.items())[1]
        # A signal can end what a rank waits for: if it was asked before, that earlier stack shows where it hung.
        frames = [] if verdict.kind == "left" else culprit.frames or culprit.stack()
        culprit.tell(signal.SIGSTOP)
        sights = [rank.sight for rank in self._ranks.values()]
        found = report_of(verdict, sights, frames)
        for rank in alive.values() if verdict.kind == "left" else (culprit,):
            rank_report.write(found, rank.error_file)
        text = text_of(verdict, sights, frames)
        if not culprit.write(text):
            next((rank for rank in alive.values() if rank is not culprit and rank.write(text)), None)
        culprit.tell(signal.SIGKILL)
        deadline = time.monotonic() + LET_GO_S
        while alive and (left := deadline - time.monotonic()) > 0:
            self._ready.poll(1000 * left)
            alive = {number: rank for number, rank in alive.items() if rank.is_there}
            time.sleep(SHORTEST_S / 5)
        for rank in alive.values():
            rank.tell(signal.SIGKILL)


def report_of(verdict: Verdict, sights: list[Sight], frames: list[python_stacks.Frame]) -> rank_report.RankReport:
    """The verdict as a report for the launcher."""
    sight = next(sight for sight in sights if sight.rank == verdict.rank)
    at = place(sight.epoch, sight.step, sight.phase)
    left = verdict.kind == "left"
    line = left_line(sight)
    if not left:
        line = f"HungRank: rank {verdict.rank} has made no progress for {verdict.seconds:.1f} s"
        if verdict.kind == "device":
            line = f"HungDevice: {of_gpus(sights)} answered for {verdict.seconds:.1f} s"
        line += f" (--step-timeout, {verdict.limit_s:g} s): {at}{DETAIL[verdict.kind]}"
    return rank_report.RankReport(
        kind="left" if left else "hang",
        rank=verdict.rank,
        messages=(line,),
        stack=tuple(python_stacks.traceback_lines(frames)) if frames else (),
        step=at.step,
        epoch=at.epoch,
        phase=at.phase,
        verdict=verdict.kind,
        seconds=round(verdict.seconds, 1),
    )


def of_gpus(sights: list[Sight]) -> str:
    """The subject of a sentence about the GPUs that are waited for, with "has not" or "have not"."""
    ranks = sorted(sight.rank for sight in sights if sight.phase == "device")
    if len(ranks) == 1:
        return f"the GPU of rank {ranks[0]} has not"
    return f"the GPUs of ranks {', '.join(map(str, ranks[:OTHERS]))}{', ...' * (len(ranks) > OTHERS)} have not"


def text_of(verdict: Verdict, sights: list[Sight], frames: list[python_stacks.Frame]) -> str:
    """The verdict for a person: a traceback, and where each rank was."""
    found = report_of(verdict, sights, frames)
    lines = [*found.stack, *found.messages]
    if verdict.kind != "left" and not frames:
        lines.append("  no Python stack: it waits in the kernel, most often for a disk or a network disk")
    others = [sight for sight in sights if sight.rank != verdict.rank]
    for other in others[:OTHERS]:
        lines.append(f"  rank {other.rank} meanwhile: {place(other.epoch, other.step, other.phase)}")
    if len(others) > OTHERS:
        lines.append(f"  and {len(others) - OTHERS} more")
    return "\n" + "\n".join(lines) + "\n"


def left_line(sight: Sight) -> str:
    """The message about a rank that ended with exit code 0 before the end of the run."""
    at = place(sight.epoch, sight.step, sight.phase)
    return f"RankLeft: rank {sight.rank} left early, with exit code 0, at {at}; the others were still at work"


def main(folder: str, count: str, nodes: str, timeout: str, parent: str) -> None:
    """Watch `count` ranks. `timeout`: seconds, or "auto"; `parent`: the process id of local rank 0."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    limit = None if timeout == "auto" else float(timeout)
    watch = Watch(Path(folder), int(count), int(nodes), limit, int(parent))
    os.chdir("/")
    try:
        watch.run()
    finally:
        watch.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
