"""A small process beside the ranks of a node that ends the run when one of them hangs: `python -I -S watchdog.py ...`.

A process of its own, since a rank that is stopped, or holds Python's lock, stops its threads too. The first rank of a
node starts it (watching.py), and it goes when that rank does. It looks at the beats of each rank (heartbeat.py) and at
what /proc tells, judges (hangs.py), and when one hangs writes its Python stack and place to that rank's standard
error, where a launcher looks for a rank's last words, and ends it. Nothing but the standard library is imported.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ddp_train import stacks
from ddp_train.hangs import LEFT_S, Limits, Sight, Verdict, judge
from ddp_train.heartbeat import BEAT, DUMP_SIGNAL, PHASES, place

__all__ = ["main"]

SHORTEST_S, LONGEST_S = 0.05, 1.0
"""Between two looks: a twentieth of the limit within these."""
STACK_S = 0.4
LET_GO_S = 0.8
"""For ranks whose connection to the culprit breaks, to end with an error of their own, or by their launcher."""
ENDED, DEBUGGED = ("Z", "X", ""), "t"
WORK = ("data", "forward", "step", "evaluation")
"""Phases in which a rank waits for no other: their times tell what is usual."""
OTHERS = 7
DETAIL = {
    "hung": "",
    "stopped": "; its process was stopped (SIGSTOP)",
    "locked": "; all ranks wait for one another: in different collectives, or for a device that does not answer",
}
IGNORED = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


class Rank:
    """One rank of this node, as seen from outside. Errors: OSError where it is not there."""

    def __init__(self, number: int, pid: int, beats: int, dumps: int) -> None:
        self.number, self.pid = number, pid
        self.ending = os.pidfd_open(pid)
        file = os.open(f"/proc/{pid}/fd/{beats}", os.O_RDONLY)
        self._memory = mmap.mmap(file, BEAT.size, prot=mmap.PROT_READ)
        os.close(file)
        self._stacks = os.open(f"/proc/{pid}/fd/{dumps}", os.O_RDONLY)
        self._beat = (-1, -1, 0, 0)
        self._silent = self._stopped = self.gone_s = 0.0
        self._waits: bool | None = None
        self.frames: list[stacks.Frame] = []
        self.status: int | None = None
        """How it ended, as waitpid(2) tells it; None: it has not. -1: too late to see."""
        self.first_step = -1

    def look(self, awake: float) -> float:
        """See what it does. `awake`: seconds for which this process has run since the last look: a node that was
        suspended has not hung. Returns how long a beat of training was waited for, behind the first step."""
        if self.status is not None:
            self.gone_s += awake
            return 0.0
        state, status = _state(self.pid)
        beat, gap = BEAT.unpack_from(self._memory), 0.0
        if state in ENDED:
            self._beat, self.status = beat, status
        elif beat != self._beat:
            if 0 <= self.first_step < beat[1] and PHASES[self._beat[2]] in WORK:
                gap = self._silent
            elif self.first_step < 0:
                self.first_step = beat[1]
            self._beat, self._silent, self._waits = beat, 0.0, None
        elif state != DEBUGGED:
            self._silent += awake
        self._stopped = self._stopped + awake if state == "T" else 0.0
        return gap

    @property
    def sight(self) -> Sight:
        """What was seen."""
        epoch, step, phase, _ = self._beat
        return Sight(
            rank=self.number,
            epoch=epoch,
            step=step,
            phase="done" if self.status is not None and not self.left else PHASES[phase],
            silent_s=self._silent,
            stopped_s=self._stopped,
            waits=bool(self._waits),
            left_s=self.gone_s if self.left else None,
        )

    @property
    def left(self) -> bool:
        """Whether it has ended with status 0 before the end of the run."""
        return self.status == 0 and PHASES[self._beat[2]] not in ("done", "failed")

    def ask(self, limit: float) -> None:
        """Have a rank that has been silent for longer say, once, whether it waits for others."""
        if self.status is None and self._waits is None and self._silent > limit and not self._stopped:
            self.frames = self.stack()
            self._waits = stacks.waits(self.frames)

    def stack(self) -> list[stacks.Frame]:
        """Its Python stack, now; [] where it does not answer."""
        already = os.fstat(self._stacks).st_size
        if not self.tell(DUMP_SIGNAL):
            return []
        if self._stopped:
            self.tell(signal.SIGCONT)
        return stacks.parse(stacks.written(self._stacks, already, STACK_S))

    def tell(self, number: int) -> bool:
        """Send it a signal; whether it is there to take it."""
        with suppress(OSError):
            signal.pidfd_send_signal(self.ending, number)
            return True
        return False

    def write(self, text: str) -> bool:
        """Add to its standard error, behind all that is there; whether that could be done."""
        with suppress(OSError):
            # Without waiting: nobody may be reading at the other end.
            file = os.open(f"/proc/{self.pid}/fd/2", os.O_WRONLY | os.O_APPEND | os.O_NOCTTY | os.O_NONBLOCK)
            try:
                return os.write(file, text.encode(errors="replace")) > 0
            finally:
                os.close(file)
        return False


class Watch:
    """The `count` ranks of a node of `nodes`, which announce themselves in `folder`. `timeout_s`: None is automatic."""

    def __init__(self, folder: Path, count: int, nodes: int, timeout_s: float | None) -> None:
        self._folder, self._count, self._nodes = folder, count, nodes
        self._parent = os.getppid()
        self._limits = Limits(timeout_s)
        self._ranks: dict[int, Rank] = {}
        self._ready = select.poll()
        self._looked = time.monotonic()
        self._noted = False

    def run(self) -> None:
        """Look until local rank 0 is gone, or one hangs and the run has been ended."""
        while not self._over():
            self._ready.poll(1000 * self._interval)
            if (verdict := self._look()) is None:
                continue
            if verdict.kind != "locked" or self._nodes == 1:
                self._end(verdict)
                return
            self._note(verdict)

    @property
    def _interval(self) -> float:
        if len(self._ranks) < self._count:
            return SHORTEST_S
        return min(max(self._limits.ordinary_s / 20, SHORTEST_S), LONGEST_S)

    def _over(self) -> bool:
        if os.getppid() == self._parent:
            return False
        first = next((rank for rank in self._ranks.values() if rank.pid == self._parent), None)
        # One that has left early is waited out: the others may wait for it.
        return first is None or (first.status is not None and not first.left) or first.gone_s > 2 * LEFT_S

    def _look(self) -> Verdict | None:
        if len(self._ranks) < self._count:
            self._meet()
        now = time.monotonic()
        awake, self._looked = min(now - self._looked, 2 * self._interval + SHORTEST_S), now
        for rank in self._ranks.values():
            was = rank.status
            gap = rank.look(awake)
            self._limits = Limits(self._limits.timeout_s, max(self._limits.longest_s, gap))
            if was is None and rank.status is not None:
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
        """Take up the ranks that have announced themselves since; the folder goes with the last of them."""
        for path in self._folder.glob("rank-*"):
            pid, beats, dumps = map(int, path.read_text().split())
            number = int(path.name.removeprefix("rank-"))
            path.unlink()
            with suppress(OSError):
                rank = self._ranks[number] = Rank(number, pid, beats, dumps)
                self._ready.register(rank.ending, select.POLLIN)
        if len(self._ranks) == self._count:
            self.leave()

    def leave(self) -> None:
        """Remove the folder."""
        with suppress(OSError):
            for path in self._folder.iterdir():
                path.unlink()
            self._folder.rmdir()

    def _note(self, verdict: Verdict) -> None:
        if not self._noted:
            self._noted = True
            waited = f"every rank of this node has waited for others for {verdict.seconds:.0f} s"
            self._tell(f"note: {waited}: look at the other nodes\n")

    def _tell(self, text: str) -> None:
        """Write to the standard error of the first rank that is there."""
        next((rank for _, rank in sorted(self._ranks.items()) if rank.status is None and rank.write(text)), None)

    def _end(self, verdict: Verdict) -> None:
        """Say which rank hangs and where, then end it, and with it the run."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        alive = {number: rank for number, rank in self._ranks.items() if rank.status is None}
        culprit = alive.get(verdict.rank) or min(alive.items())[1]
        frames = [] if verdict.kind == "left" else culprit.stack()
        culprit.tell(signal.SIGSTOP)
        text = report(verdict, [rank.sight for rank in self._ranks.values()], frames)
        if not culprit.write(text):
            next((rank for rank in alive.values() if rank is not culprit and rank.write(text)), None)
        culprit.tell(signal.SIGKILL)
        deadline = time.monotonic() + LET_GO_S
        while alive and (left := deadline - time.monotonic()) > 0:
            self._ready.poll(1000 * left)
            alive = {number: rank for number, rank in alive.items() if _state(rank.pid)[0] not in ENDED}
            time.sleep(SHORTEST_S / 5)
        for rank in alive.values():
            rank.tell(signal.SIGKILL)


def report(verdict: Verdict, sights: list[Sight], frames: list[stacks.Frame]) -> str:
    """What is left as the rank's last words: a traceback, and where each rank was."""
    places = {sight.rank: place(sight.epoch, sight.step, sight.phase) for sight in sights}
    at = places.pop(verdict.rank)
    if verdict.kind == "left":
        lines = [left_line(next(sight for sight in sights if sight.rank == verdict.rank))]
    else:
        lines = stacks.traceback_lines(frames) if frames else []
        head = f"HungRank: rank {verdict.rank} has made no progress for {verdict.seconds:.1f} s"
        lines.append(f"{head} (--step-timeout, {verdict.limit_s:g} s): {at}{DETAIL[verdict.kind]}")
        if not frames:
            lines.append("  it gave no Python stack: it waits in the kernel, most often for a disk or a network disk")
    shown = list(places.items())[:OTHERS]
    lines += [f"  rank {number} meanwhile: {where}" for number, where in shown]
    if len(places) > len(shown):
        lines.append(f"  and {len(places) - len(shown)} more")
    return "\n" + "\n".join(lines) + "\n"


def left_line(sight: Sight) -> str:
    """Of a rank that ended as if all were done."""
    at = place(sight.epoch, sight.step, sight.phase)
    return f"RankLeft: rank {sight.rank} left early, with exit code 0, at {at}; the others were still at work"


def _state(pid: int) -> tuple[str, int]:
    """What a process does (a letter, proc_pid_stat(5)), and its status (waitpid(2)) once it has ended; no letter and
    -1 where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return "", -1
    return fields[0].decode(), int(fields[49])


def main(folder: str, count: str, nodes: str, timeout: str) -> None:
    """Watch `count` ranks. `timeout`: seconds, or "auto"."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    watch = Watch(Path(folder), int(count), int(nodes), None if timeout == "auto" else float(timeout))
    os.chdir("/")
    try:
        watch.run()
    finally:
        watch.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
