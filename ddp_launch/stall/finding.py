"""Which rank holds the others up: a pure function from the views of this machine's ranks to a finding.

A rank that waits in a collective waits for those members of its process group that have not entered it. A rank that is
waited for and waits for no other is the culprit; where each waits for another, they are in collectives of different
groups. Ranks that call different collectives under the same number, or one with different shapes, are named as such.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from ddp_launch.failure.failures import in_words
from ddp_launch.failure.summary import names
from ddp_launch.stall.record import Collective, Record
from ddp_launch.stall.stacks import Stacks, kept_by, place_of, seeks_store, spawned, thread_of, waits_in
from ddp_train.watchdog.python_stacks import Frame

Kind = Literal["missing", "stopped", "left", "failed", "collectives", "shapes", "locked", "elsewhere", "spawn", "busy"]

UNEVEN = ("gather", "scatter", "all_to_all", "alltoall", "all_to_allv", "coalesced")
"""Collectives to which ranks may bring tensors of different shapes."""


NATIVE_CALLS = 3
STARVED = "and the machine is too busy for it to answer"


@dataclass(frozen=True)
class RankView:
    """What the launcher sees of a rank.

    state     "running", "stopped" (by SIGSTOP) or "ended", with the returncode `code` where that is known
    stacks    its Python stacks; {} where it gave none
    record    its last answer; None before it has a process group, or without torch's recorder
    answered  its thread has just answered, so Python's lock is not held for long
    starved   it did not answer because it got no CPU time
    native    the native calls below its innermost Python call, where py-spy is installed
    moving    its thread was seen running: it does not wait, although its stack looks so
    leaving   its program has ended, and Python is closing
    gave_up   it ended with an error because it waited in vain
    """

    rank: int
    state: Literal["running", "stopped", "ended"] = "running"
    pid: int = 0
    code: int | None = None
    stacks: Stacks | None = None
    record: Record | None = None
    answered: bool = True
    starved: bool = False
    native: tuple[Frame, ...] = ()
    moving: bool = False
    leaving: bool = False
    gave_up: bool = False

    @cached_property
    def thread(self) -> int:
        """The thread whose stack shows what the rank does; 0 where that is not known."""
        known = self.record and (self.record.waiting or self.record.latest)
        return thread_of(self.stacks or {}, known.thread if known else 0)

    @property
    def frames(self) -> tuple[Frame, ...]:
        """The stack of that thread."""
        return (self.stacks or {}).get(self.thread, ())

    @property
    def waiting(self) -> Collective | None:
        """The collective that it has entered and not left; None without one."""
        if self.record is None or (self.state == "running" and not self.answered):
            return None  # the collective of its earlier answer may be over
        return self.record.waiting or (self.record.latest if self.gave_up else None)

    @property
    def blocked(self) -> str:
        """The call in which it waits for other ranks; empty where it does not wait."""
        if self.gave_up:
            return str(self.waiting or "a collective")
        if self.state != "running" or self.moving:
            return ""
        return str(self.waiting) if self.waiting else waits_in(self.frames)

    @property
    def doing(self) -> str:
        """What it is doing, in one line."""
        if self.state == "ended":
            return "ended" if self.code is None else "ended by " + in_words(self.code, meaning=False)
        where = place_of(self.frames)
        trainer = f" ({self.record.place})" if self.record and self.record.place else ""
        if self.state == "stopped":
            return "stopped (SIGSTOP), so that it cannot say where"
        if self.stacks and (thread := kept_by(self.stacks)) is not None:
            of = f" of its own: {thread}" if thread else " of its own"
            return f"its program has come to its end, and waits for a thread{of}"
        if not where and self.leaving:
            return "its program has come to its end, and Python is closing"
        if not where and self.starved:
            return "no Python stack: the machine is too busy for it to answer"
        if not where:
            return "no Python stack: in the kernel, most often for a disk, or no Python program"
        if self.blocked:
            return f"waiting in {self.blocked}{_shapes(self.waiting)}, at {where}{trainer}"
        why = STARVED if self.starved else f"in native code that holds Python's lock{_calls(self.native)}"
        return f"at {where}{trainer}" + ("" if self.answered else f", {why}")


@dataclass(frozen=True)
class Finding:
    """What holds the ranks up. `ranks`: the culprits; `title`: one line; `rows`: (ranks, what they are doing);
    `advice`: how to fix it, where that is known; `collective`: the one in which the others wait."""

    kind: Kind
    ranks: tuple[int, ...]
    title: str
    rows: tuple[tuple[tuple[int, ...], str], ...] = ()
    advice: str = ""
    collective: str = ""


def judge(views: Sequence[RankView], world_size: int | None = None) -> Finding | None:
    """The finding; None where no rank waits for another. `views`: this machine's ranks; `world_size`: of all nodes."""
    came_to: dict[tuple[str, str], int] = {}
    for view in views:
        for group, seq in (view.record.all_came_to if view.record else {}).items():
            came_to[group] = max(seq, came_to.get(group, 0))
    views = [replace(view, record=view.record.after(came_to)) if view.record else view for view in views]
    by_rank = {view.rank: view for view in views}
    found = _spawned(views) or _mismatch(by_rank)
    blocked = [view for view in views if view.blocked]
    if found is None and blocked:
        found = _stopped(views, blocked) or _missing(by_rank, blocked, world_size or len(views))
    if found is None:
        return None
    kind, ranks, title, advice = found
    first = min((view.waiting for view in blocked if view.waiting), key=lambda one: one.at_ns, default=None)
    return Finding(kind, tuple(sorted(ranks)), title, rows_of(views), advice, str(first or ""))


Found = tuple[Kind, Iterable[int], str, str]


def rows_of(views: Sequence[RankView]) -> tuple[tuple[tuple[int, ...], str], ...]:
    """What each rank is doing; ranks that do the same share a row."""
    rows: dict[str, list[int]] = {}
    for view in views:
        rows.setdefault(view.doing, []).append(view.rank)
    return tuple((tuple(ranks), doing) for doing, ranks in rows.items())


def _spawned(views: Sequence[RankView]) -> Found | None:
    """Ranks without a process group that wait for processes that they started; None without such a rank."""
    by = {view.rank: how for view in views if view.record is None and (how := spawned(view.frames))}
    if not by:
        return None
    how = next(iter(by.values()))
    title = f"{names(by)} {'waits' if len(by) == 1 else 'wait'} for processes started with {how}"
    advice = (
        "the launcher already starts one process per rank, so each of them started a whole group of its own, and the"
        " groups collide: call the function itself, with RANK, LOCAL_RANK and WORLD_SIZE from the"
        " environment; or run the script with plain python"
    )
    return "spawn", by, title, advice


def _mismatch(views: Mapping[int, RankView]) -> Found | None:
    """The first number at which a group's ranks differ in collective or shapes, while a rank waits in that group."""
    records = {rank: view.record for rank, view in views.items() if view.record}
    for group in sorted({group for record in records.values() for group in record.collectives}):
        if not any(one and one.group == group for one in (record.waiting for record in records.values())):
            continue
        entered = {
            rank: {one.seq: one for one in record.collectives.get(group, ())} for rank, record in records.items()
        }
        for seq in sorted({seq for entries in entered.values() for seq in entries}):
            calls = {rank: entries[seq] for rank, entries in entered.items() if seq in entries}
            if len({call.name for call in calls.values()}) > 1:
                text = _each({rank: f"{call.name}{_shapes(call)}" for rank, call in calls.items()})
                title = f"the ranks are in different collectives: number {seq}{_of_group(calls)} is {text}"
                return "collectives", _odd({r: call.name for r, call in calls.items()}), title, SAME_ORDER
            names_of = next(iter(calls.values())).name
            differ = len({call.sizes for call in calls.values()}) > 1 and not all(c.done for c in calls.values())
            if differ and names_of not in UNEVEN:
                text = _each({rank: call.shapes for rank, call in calls.items()})
                title = f"the ranks call {names_of} number {seq}{_of_group(calls)} with different shapes: {text}"
                return "shapes", _odd({r: call.shapes for r, call in calls.items()}), title, SAME_SHAPE
    return None


SAME_ORDER = "every rank of a group must call the same collectives in the same order: look for a branch on the rank"
LINKS = "python -m gpu_topology verify tests the GPUs and the links between them in a minute"
OWN_STORE = (
    "leave MASTER_ADDR, MASTER_PORT, init_method and world_size to the launcher: a program that sets its own points"
    " torch to a place where nothing listens, or waits for ranks that there are not; between nodes, a firewall may be"
    " in the way"
)
SAME_SHAPE = (
    "every rank must bring the same shape: look for a last batch, or a list, whose length differs between ranks"
)


def _stopped(views: Sequence[RankView], blocked: Sequence[RankView]) -> Found | None:
    """The ranks that SIGSTOP has stopped while others wait; None without such a rank."""
    stopped = [view.rank for view in views if view.state == "stopped"]
    if not stopped:
        return None
    is_or_are = "is" if len(stopped) == 1 else "are"
    title = f"{names(stopped)} {is_or_are} stopped (SIGSTOP), and {_wait_for(blocked, stopped)}"
    pids = " ".join(str(view.pid) for view in views if view.state == "stopped")
    return "stopped", stopped, title, f"kill -CONT {pids} lets {'it' if len(stopped) == 1 else 'them'} continue"


def _missing(views: Mapping[int, RankView], blocked: Sequence[RankView], world_size: int) -> Found | None:
    """The ranks that others wait for and that do not wait themselves."""
    waits_for = {view.rank: _absent(view, views, world_size) for view in blocked}
    culprits = {rank for absent in waits_for.values() for rank in absent if rank not in waits_for}
    here = sorted(rank for rank in culprits if rank in views)
    if not culprits:
        if all(seeks_store(view.frames) for view in blocked):
            return "locked", waits_for, f"{names(waits_for)} cannot reach the store where the ranks meet", OWN_STORE
        if len({view.blocked for view in blocked}) == 1:
            return "locked", waits_for, f"all ranks are in {blocked[0].blocked}, and it does not end", LINKS
        each = _each({view.rank: view.blocked for view in blocked})
        return "locked", waits_for, f"the ranks wait for one another: {each}", SAME_ORDER
    if not here:
        title = f"{names(waits_for)} {'waits' if len(waits_for) == 1 else 'wait'} for ranks on other nodes"
        return "elsewhere", (), title, "the launcher of their node names the rank"
    ended = [rank for rank in here if views[rank].state == "ended"]
    if ended:
        code = views[ended[0]].code
        kind: Kind = "left" if code in (0, None) else "failed"
        how = f"left early, with exit code {code}" if kind == "left" and code is not None else "ended"
        return kind, ended, f"{names(ended)} {how}, and {_wait_for(blocked, ended)}", ""
    waited = next((view for view in blocked if set(here) & waits_for[view.rank]), blocked[0])
    title = f"{names(here)} {'has' if len(here) == 1 else 'have'} not come to {waited.blocked}, in which"
    return "missing", here, f"{title} {names(waits_for)} {'waits' if len(waits_for) == 1 else 'wait'}", ""


def _absent(view: RankView, views: Mapping[int, RankView], world_size: int) -> set[int]:
    """The ranks that this rank waits for."""
    one = view.waiting
    if one is None or view.record is None:
        # Only its stack shows the wait: for a message, a store, or the start. Any rank that does not wait may be meant.
        return {rank for rank, other in views.items() if rank != view.rank and not other.blocked}
    members = view.record.groups.get(one.group[1], tuple(range(world_size)))
    come = {rank for rank in members if (o := views.get(rank)) and o.record and o.record.entered(one.group) >= one.seq}
    absent = {*members} - come - {view.rank}
    # All ranks entered the collective, but it does not end: a rank that is no longer in it has left it unfinished.
    return absent or {rank for rank in come if rank != view.rank and not views[rank].blocked}


def _odd(by_rank: Mapping[int, str]) -> list[int]:
    """The ranks that differ from the majority; all ranks where there is no majority."""
    (common, most), *others = Counter(by_rank.values()).most_common()
    return [rank for rank, what in by_rank.items() if what != common or most == others[0][1]]


def _each(by_rank: Mapping[int, str]) -> str:
    """`barrier on rank 0, all_reduce on ranks 1, 2`."""
    ranks: dict[str, list[int]] = {}
    for rank, what in sorted(by_rank.items()):
        ranks.setdefault(what, []).append(rank)
    return ", ".join(f"{what} on {names(those)}" for what, those in ranks.items())


def _of_group(calls: Mapping[int, Collective]) -> str:
    """` of group NAME`, as the collective names its group; empty for the default group."""
    return str(next(iter(calls.values()))).partition(f"number {next(iter(calls.values())).seq}")[2]


def _wait_for(blocked: Sequence[RankView], culprits: Sequence[int]) -> str:
    """`ranks 0, 1 wait for it in all_reduce number 7`."""
    those = [view.rank for view in blocked]
    wait = "waits" if len(those) == 1 else "wait"
    return f"{names(those)} {wait} for {'it' if len(culprits) == 1 else 'them'} in {blocked[0].blocked}"


def _calls(native: Sequence[Frame]) -> str:
    """`: sleep, clock_nanosleep (libc.so.6)`."""
    shown = ", ".join(frame.function for frame in native[-NATIVE_CALLS:])
    return f": {shown} ({native[-1].file.rpartition('/')[2]})" if native else ""


def _shapes(one: Collective | None) -> str:
    """` (Float [20, 4])`, or nothing."""
    return f" ({one.shapes})" if one is not None and one.shapes else ""
