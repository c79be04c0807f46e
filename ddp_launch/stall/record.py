"""What torch's flight recorder noted in a rank: the collectives that it entered, and which of them have ended.

The fields are those of torch's dump, version 2 (torch/csrc/distributed/c10d/FlightRecorder.hpp). Unknown fields are
ignored, an entry with a missing field is dropped, and nothing raises.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

SOURCES = ("gloo", "nccl")
DEFAULT_GROUP = "default_pg"
UNNAMED = "undefined"
TOGETHER = ("all_reduce", "allreduce", "all_gather", "allgather", "barrier", "reduce_scatter", "all_to_all", "alltoall")
"""Collectives that end on no rank before every rank has entered them."""


@dataclass(frozen=True)
class Collective:
    """A collective that a rank has entered.

    group  (recorder, torch's name of the process group): each recorder has its own numbers
    seq    its number within the group, the same on every rank
    name   as in torch.distributed; `words`: the group's description by its author
    sizes  shapes of the inputs; `types`: their dtypes
    at_ns  when the rank entered it, nanoseconds of the wall clock
    thread that entered it, with the number that faulthandler uses
    """

    group: tuple[str, str]
    seq: int
    name: str
    sizes: tuple[tuple[int, ...], ...] = ()
    types: tuple[str, ...] = ()
    done: bool = False
    at_ns: int = 0
    thread: int = 0
    words: str = ""

    def __str__(self) -> str:
        """`all_reduce number 7 of group G`; the default group is not named."""
        where = "" if self.words in ("", UNNAMED, DEFAULT_GROUP) else f" of group {self.words}"
        if not where and self.words != DEFAULT_GROUP:
            where = f" of group {self.group[1]}"
        return f"{self.name} number {self.seq}{where}"

    @property
    def shapes(self) -> str:
        """Its inputs, for a person: `Float [20, 4]`, or `Float [20, 4] and 3 more`."""
        if not self.sizes:
            return ""
        first = f"{self.types[0] if self.types else ''} {list(self.sizes[0])}".strip()
        return first if len(self.sizes) == 1 else f"{first} and {len(self.sizes) - 1} more"


@dataclass(frozen=True)
class Record:
    """A rank's answer. `collectives`: by process group, in the order in which they were entered; `groups`: the ranks of
    each process group by name; `place`, `spent_ns`, `steps`: the bundled trainer's place, time by phase, and steps;
    `observed`: what in_rank/observer.py saw, in a run of --scaling."""

    collectives: Mapping[tuple[str, str], tuple[Collective, ...]] = field(default_factory=dict)
    groups: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    place: str = ""
    spent_ns: Mapping[str, int] = field(default_factory=dict)
    steps: int = 0
    observed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def waiting(self) -> Collective | None:
        """The collective that it has been in longest; None where all have ended."""
        going = (one for entries in self.collectives.values() for one in entries if not one.done)
        return min(going, key=lambda one: one.at_ns, default=None)

    @property
    def latest(self) -> Collective | None:
        """The collective that it entered last; None before the first."""
        return max((entries[-1] for entries in self.collectives.values()), key=lambda one: one.at_ns, default=None)

    @property
    def all_came_to(self) -> Mapping[tuple[str, str], int]:
        """Process group -> number of the last collective that ended here, of those that end only once all entered."""
        found = {
            group: max((one.seq for one in entries if one.done and one.name.startswith(TOGETHER)), default=0)
            for group, entries in self.collectives.items()
        }
        return {group: seq for group, seq in found.items() if seq}

    def after(self, came_to: Mapping[tuple[str, str], int]) -> Record:
        """This record with all collectives before these numbers marked as done, since `all_came_to` of some rank shows
        that they are: a rank that gets no CPU time notes late that a collective has ended."""
        ended = {
            group: tuple(replace(one, done=one.done or one.seq < came_to.get(group, 0)) for one in entries)
            for group, entries in self.collectives.items()
        }
        return replace(self, collectives=ended)

    def entered(self, group: tuple[str, str]) -> int:
        """The number of the last collective that it entered in a group; 0 before the first."""
        return max((one.seq for one in self.collectives.get(group, ())), default=0)


def parse(dumps: Iterable[bytes], facts: bytes) -> Record:
    """Parse a rank's answer (in_rank/torch_internals.py): the recorders' dumps and the JSON. Never raises."""
    collectives: dict[tuple[str, str], list[Collective]] = {}
    for source, dump in zip(SOURCES, dumps, strict=True):
        for entry in _entries(dump):
            with suppress(KeyError, TypeError, ValueError, IndexError):
                if (one := _collective(source, entry)) is not None:
                    collectives.setdefault(one.group, []).append(one)
    known: dict[str, Any] = {}
    with suppress(ValueError):
        known = json.loads(facts or b"{}")
    return Record(
        {group: tuple(sorted(entries, key=lambda one: one.at_ns)) for group, entries in collectives.items()},
        {name: tuple(ranks) for name, ranks in known.get("groups", {}).items()},
        known.get("place", ""),
        known.get("spent_ns", {}),
        known.get("steps", 0),
        known.get("observed", {}),
    )


def _entries(dump: bytes) -> Iterable[Mapping[str, Any]]:
    """The entries of a recorder's dump; none where it cannot be read."""
    if not dump:
        return ()
    try:
        found: Iterable[Mapping[str, Any]] = _Plain(io.BytesIO(dump)).load().get("entries", ())
        return found
    except Exception:
        return ()


class _Plain(pickle.Unpickler):
    """Reads numbers, strings and lists only, so that a dump cannot run code here."""

    def find_class(self, module: str, name: str) -> NoReturn:
        """Refuse every class. Errors: pickle.UnpicklingError."""
        raise pickle.UnpicklingError(f"{module}.{name}")


def _collective(source: str, entry: Mapping[str, Any]) -> Collective | None:
    """One entry of a dump; None for a message between two ranks, which has no number."""
    if entry.get("is_p2p"):
        return None
    name, words = entry["process_group"]
    done = entry.get("state") == "completed" or bool(entry.get("retired"))
    sizes = tuple(tuple(int(length) for length in size) for size in entry.get("input_sizes") or ())
    return Collective(
        group=(source, str(name)),
        seq=int(entry["collective_seq_id"]),
        name=str(entry["profiling_name"]).rpartition(":")[2],
        sizes=sizes,
        types=tuple(map(str, entry.get("input_dtypes") or ())),
        done=done,
        at_ns=int(entry["time_created_ns"]),
        thread=int(entry.get("thread_id") or 0),
        words=str(words),
    )
