"""Watches the ranks of an attempt for stalls, in a thread of the launcher; shows and records what it finds.

Every half second each rank is asked for the counts of its process groups, which takes microseconds. When the counts of
a rank have not changed for `--stall-report` seconds, the stacks and collectives of all ranks are read. Only
`--stall-kill` ends anything. The ranks' answers also give the arrival times for waited_for.py.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from signal import SIGKILL

from ddp_core import rank_report
from ddp_core.rank_report import RankReport
from ddp_launch.stall import native
from ddp_launch.stall.finding import Finding, RankView, judge, rows_of
from ddp_launch.stall.in_rank import sitecustomize
from ddp_launch.stall.rank_probe import ENDED, STOPPED, RankProbe
from ddp_launch.stall.record import Record
from ddp_launch.stall.report import Reporter
from ddp_launch.stall.stacks import is_loading
from ddp_launch.stall.stacks import parse as parse_stacks
from ddp_launch.stall.waited_for import LEAST_NS, Arrivals, by_its_own_steps, shares
from ddp_train.watchdog import python_stacks

POLL_S, SOON_S = 0.5, 0.1
ANSWER_S = 0.3
NATIVE_S = 0.5
"""How long py-spy may take before the report is shown without it."""
STARVED_S = 3.0
"""How long ranks that do not get the CPU may take to answer."""
FIRST_SAMPLE_S, SAMPLE_S = 2.0, 15.0
"""When the arrival times are read: soon after the start, then less and less often."""
AGAIN = 4
"""A stall that continues is reported again once it has lasted this many times as long."""
PATIENCE = 1.5
"""A stall that ended by itself is normal for this program: later ones are reported after this many times as long."""
LOADING_S = 60.0
"""Ranks that import modules will continue: nothing is reported for this long."""
BUSY = "no rank has entered a collective, and none waits for another: all are busy with something else"
LEAVING = "all ranks have reached the end of their program, but do not end"
HOOK = str(Path(sitecustomize.__file__).parent)


@dataclass
class Watched:
    """A rank of the present attempt. `silent_s`: seconds since its counts changed; `limit_s`: how long that may be.
    `stage`: whether it has a process group, and whether its program has ended."""

    probe: RankProbe
    limit_s: float = 0.0
    error_file: Path | None = None
    code: int | None = None
    counts: tuple[bytes, bytes] = (b"", b"")
    stage: tuple[bool, bool] = (False, False)
    silent_s: float = 0.0
    record: Record | None = None


class StallWatch:
    """The watch over a run. `report_s`, `kill_s`: the options, 0 is off."""

    def __init__(self, report_s: float, kill_s: float, reporter: Reporter) -> None:
        self._kill_s, self._reporter = kill_s, reporter
        self._limit_s = min((limit for limit in (report_s, kill_s) if limit > 0), default=0.0)
        self._reported_s, self._title = 0.0, ""
        self._ranks: dict[int, Watched] = {}
        self._world_size = 0
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._arrivals = Arrivals()

    @property
    def on(self) -> bool:
        """Whether ranks are watched at all."""
        return self._limit_s > 0

    @contextmanager
    def offered(self) -> Iterator[None]:
        """A block for starting ranks that can be asked (in_rank/sitecustomize.py)."""
        outer = os.environ.get("PYTHONPATH")
        if self.on:
            os.environ["PYTHONPATH"] = HOOK + (os.pathsep + outer if outer else "")
        try:
            yield
        finally:
            if outer is not None:
                os.environ["PYTHONPATH"] = outer
            elif self.on:
                del os.environ["PYTHONPATH"]

    def begin(self, pids: Mapping[int, int], world_size: int, error_files: Mapping[int, Path]) -> None:
        """Watch the ranks of a new attempt, by their process ids."""
        self.end()
        if not self.on:
            return
        self._ranks = {
            rank: Watched(RankProbe(rank, pid), self._limit_s, error_files.get(rank)) for rank, pid in pids.items()
        }
        self._world_size = world_size
        self._arrivals = Arrivals()
        self._over.clear()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def ended(self, rank: int, code: int) -> None:
        """Note that a rank has ended. `code`: Popen's returncode."""
        if rank in self._ranks:
            self._ranks[rank].code = code

    def rest(self) -> None:
        """Stop reporting: the ranks are being ended."""
        self._over.set()

    def end(self) -> None:
        """Stop the thread and close the probes."""
        self.rest()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        for watched in self._ranks.values():
            watched.probe.close()
        self._ranks = {}

    def finish(self) -> None:
        """After the run: report the rank that held the others up, if there was one."""
        with self._lock:
            self._read_last_words()
            found, waited, seconds = self._arrivals.found(), self._arrivals.waited(), self._arrivals.seconds
            records = {rank: one.record for rank, one in self._ranks.items() if one.record is not None}
        self.end()
        if seconds * 1e9 >= LEAST_NS:
            self._reporter.waits(waited, seconds)
        if found is not None:
            each = {rank: shares(record, found.waited.get(rank, 0.0)) for rank, record in records.items()}
            found = by_its_own_steps(found, records.get(found.rank, Record()))
            self._reporter.waited_for(found, {rank: parts for rank, parts in each.items() if parts})

    def look(self) -> list[RankView]:
        """The views of all ranks now, within about a second. [] where nothing is watched."""
        with self._lock:
            return look(self._ranks)

    def _watch(self) -> None:
        """The thread's work: ask all ranks, sample full records now and then, report stalls."""
        sample_at = FIRST_SAMPLE_S
        begun = looked = time.monotonic()
        while not self._over.wait(self._pause()):
            now = time.monotonic()
            # If the launcher itself was stopped, the time between does not count.
            awake, looked = min(now - looked, 2 * POLL_S), now
            with self._lock:
                full = now - begun >= sample_at
                sample_at += min(sample_at, SAMPLE_S, max(self._limit_s / 2, POLL_S)) if full else 0.0
                self._poll(awake, full=full)
            self._report()

    def _pause(self) -> float:
        """Seconds until the ranks are asked again: POLL_S, or less where a rank reaches its limit before that."""
        left = (one.limit_s - one.silent_s for one in self._ranks.values() if one.code is None)
        return max(SOON_S, min((POLL_S, *left)))

    def _report(self) -> None:
        """Report ranks that have been silent for longer than their limit."""
        there = [one for one in self._ranks.values() if one.code is None]
        silent = max((one.silent_s for one in there if one.silent_s >= one.limit_s), default=0.0)
        if not silent:
            return
        found = self._find(silent)
        if self._over.is_set():
            return
        if found is not None and silent < LOADING_S and any(is_loading(view.frames) for view in found[1]):
            for one in there:
                one.limit_s = silent + 2 * POLL_S
            return
        for one in there:
            if one.silent_s >= silent / 2:  # part of the same stall
                one.limit_s = max(one.limit_s, AGAIN * silent if found else silent + self._limit_s)
                if silent < self._kill_s:
                    one.limit_s = min(one.limit_s, self._kill_s)
        killing = 0 < self._kill_s <= silent
        if found is not None and (killing or found[0].title != self._title or silent >= AGAIN * self._reported_s):
            self._title = found[0].title
            self._reporter.stall(*found, silent, killing=killing)
            self._reported_s = silent
            if killing:
                self._kill(*found, silent)

    def _poll(self, awake: float, *, full: bool) -> None:
        """Ask each rank for its counts or, with `full`, for its collectives."""
        asked: list[RankProbe] = []
        for one in self._ranks.values():
            if one.code is None:
                if one.probe.ask(full=full):
                    asked.append(one.probe)
                if (stage := (one.probe.has_group, one.probe.is_leaving)) != one.stage:
                    one.stage, one.silent_s = stage, 0.0  # that is progress, also of a rank that will not answer
        deadline = time.monotonic() + ANSWER_S
        # Do not wait for ranks that still have an earlier question pending.
        while any(probe.pending for probe in asked) and time.monotonic() < deadline:
            time.sleep(ANSWER_S / 60)
        records = {}
        for rank, one in self._ranks.items():
            one.silent_s += awake
            if one.code is not None or one.probe.pending or (answer := one.probe.answer()) is None:
                continue
            if answer.record is not None:
                one.record = records[rank] = answer.record
            elif (counts := (answer.gloo, answer.nccl)) != one.counts:
                if 0 < self._reported_s < one.silent_s:
                    self._limit_s = max(self._limit_s, PATIENCE * one.silent_s)
                one.counts, one.silent_s, one.limit_s = counts, 0.0, self._limit_s
        self._arrivals.add(records)

    def _find(self, silent: float) -> tuple[Finding, list[RankView]] | None:
        """What holds the ranks up, with the views; None where they do not use torch.distributed."""
        with self._lock:
            grouped = [one.probe.has_group for one in self._ranks.values()]
            if not any(grouped) and not any(one.probe.has_torch for one in self._ranks.values()):
                return None
            views = with_native_calls(look(self._ranks), {rank: one.probe.target for rank, one in self._ranks.items()})
            found = judge(views, self._world_size)
            idle = all(one.silent_s >= silent / 2 for one in self._ranks.values() if one.code is None)
        if found is None and idle and all(grouped) and sum(view.state == "running" for view in views) > 1:
            title = BUSY if not all(view.leaving for view in views if view.state == "running") else LEAVING
            found = Finding("busy", (), title, rows_of(views))
        return None if found is None else (found, views)

    def _kill(self, found: Finding, views: list[RankView], silent: float) -> None:
        """End the culprit, with a report for the summary; where it has ended already, end those that wait for it."""
        by_rank = {view.rank: view for view in views if view.state != "ended"}
        left = found.kind in ("left", "failed")
        victims = (
            [*by_rank] if left or found.kind in ("elsewhere", "busy") else [r for r in found.ranks if r in by_rank][:1]
        )
        said = f"HungRank: no progress for {silent:.1f} s (--stall-kill {self._kill_s:g}): {found.title}"
        for rank in victims:
            frames = by_rank[rank].frames
            report = RankReport(
                kind="left" if left else "hang",
                rank=found.ranks[0] if left else rank,
                messages=(said,),
                stack=tuple(python_stacks.traceback_lines([*frames])) if frames else (),
                verdict={"stopped": "stopped", "missing": "hung", "left": "left"}.get(found.kind, "locked"),
                seconds=round(silent, 1),
                at=by_rank[rank].doing,
                found=found.title,
                advice=found.advice,
            )
            watched = self._ranks[rank]
            rank_report.write(report, str(watched.error_file) if watched.error_file else None)
            with suppress(OSError):
                os.kill(watched.probe.pid, SIGKILL)

    def _read_last_words(self) -> None:
        """Read the last answers of ranks that ended by themselves."""
        for one in self._ranks.values():
            if one.code is not None and (answer := one.probe.answer()) is not None:
                one.record = answer.record or one.record
        self._arrivals.add({rank: one.record for rank, one in self._ranks.items() if one.record is not None})


def look(ranks: Mapping[int, Watched]) -> list[RankView]:
    """Ask ranks for stacks and collectives, and read the answers within about a second; within three where the machine
    is too busy to let them answer."""
    begun: dict[int, int | None] = {}
    asked: dict[int, bool] = {}
    switches = {rank: one.probe.switches for rank, one in ranks.items()}
    for rank, one in ranks.items():
        asked[rank] = one.probe.ask(full=True)
        begun[rank] = one.probe.ask_for_stacks()
    since = time.monotonic()
    # A rank with an earlier question pending is waited for less long than one that is asked now.
    late = {rank for rank, one in ranks.items() if one.probe.pending and not asked[rank]}
    scheduling = {rank: one.probe.scheduling() for rank, one in ranks.items()}
    starved: set[int] = set()
    while waiting := [rank for rank, one in ranks.items() if one.probe.pending or one.probe.writes_stacks()]:
        if (passed := time.monotonic() - since) > (ANSWER_S if late.issuperset(waiting) else 2 * ANSWER_S):
            starved = {rank for rank in waiting if scheduling[rank].starved()}
            if not starved or passed > STARVED_S:
                break
        time.sleep(ANSWER_S / 60)
    views = [_view(rank, one, begun[rank], starved=rank in starved) for rank, one in ranks.items()]
    return _without_those_that_move(views, ranks, switches, since)


def _view(rank: int, one: Watched, already: int | None, *, starved: bool) -> RankView:
    """The view of one rank. `already`: the length of its stacks file before it was asked."""
    state = one.probe.state
    text = "" if already is None or state == STOPPED else one.probe.stacks(already)
    answered = not one.probe.pending
    if answered and (answer := one.probe.answer()) is not None:
        one.record = answer.record or one.record
    ended = one.code is not None or state in ENDED
    return RankView(
        rank=rank,
        pid=one.probe.pid,
        state="ended" if ended else "stopped" if state == STOPPED else "running",
        code=one.code,
        stacks=parse_stacks(text),
        record=one.record,
        answered=answered or not one.probe.has_group,
        starved=starved,
        leaving=one.probe.is_leaving,
    )


def with_native_calls(views: Sequence[RankView], pids: Mapping[int, int]) -> list[RankView]:
    """The views, with the native calls of ranks that hold Python's lock. `pids`: rank -> process."""
    held = {v.rank: (pids[v.rank], v.thread) for v in views if v.frames and not (v.answered or v.starved)}
    found = native.dump(held, NATIVE_S) if held else {}
    return [replace(view, native=found[view.rank].frames) if view.rank in found else view for view in views]


def _without_those_that_move(
    views: list[RankView], ranks: Mapping[int, Watched], switches: Mapping[int, int], since: float
) -> list[RankView]:
    """Mark ranks that run although they seem to wait: messages between ranks are in no record."""
    doubtful = [view for view in views if view.blocked and view.waiting is None and view.record is not None]
    if doubtful:
        time.sleep(max(0.0, since + ANSWER_S - time.monotonic()))
    # One switch may be chance, such as a page that was read from disk.
    moving = {view.rank for view in doubtful if ranks[view.rank].probe.switches > switches[view.rank] + 1}
    return [replace(view, moving=view.rank in moving) for view in views]
