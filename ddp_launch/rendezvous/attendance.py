"""Records in the store which nodes have joined the rendezvous, and names the missing ones. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Protocol

SHOWN = 10
LOST = ", which came and was lost"
COUNT, ENTRY, END = "roll-call/count", "roll-call/node-", "roll-call/end"


class Store(Protocol):
    """The methods of torch's store that are used here."""

    def add(self, key: str, amount: int, /) -> int: ...
    def set(self, key: str, value: str, /) -> None: ...
    def get(self, key: str, /) -> bytes: ...
    def check(self, keys: list[str], /) -> bool: ...
    def compare_set(self, key: str, expected: str, value: str, /) -> bytes: ...


@dataclass(frozen=True)
class Node:
    """A node that joined. `key`: unique to its launcher; `rank`: its node rank, None where it was given none;
    `settings`: options that must be the same on all nodes."""

    key: str
    host: str
    rank: int | None = None
    settings: Mapping[str, str] = field(default_factory=dict)


class Attendance:
    """The records of all nodes, in the store that they share."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def enter(self, node: Node) -> None:
        """Record that this node has joined."""
        place = self._store.add(COUNT, 1)
        self._store.set(f"{ENTRY}{place}", json.dumps(asdict(node)))

    def came(self) -> list[Node]:
        """All nodes that ever joined, in order."""
        keys = [f"{ENTRY}{place}" for place in range(1, 1 + self._store.add(COUNT, 0))]
        return [Node(**json.loads(self._store.get(key))) for key in keys if self._store.check([key])]

    def end(self, words: str) -> None:
        """Record why the run ends, for nodes that find the rendezvous closed."""
        self._store.set(END, words)

    def ended(self) -> str | None:
        """Why another node has ended the run; None where none has."""
        return self._store.get(END).decode() if self._store.check([END]) else None


def which_settings_differ(nodes: Sequence[Node]) -> str | None:
    """One line on the first node whose settings differ from those of the first; None where all agree."""
    first = nodes[0].settings
    for node in nodes[1:]:
        if names := [name for name in {**first, **node.settings} if first.get(name) != node.settings.get(name)]:
            return (
                f"the nodes would train differently: {_with_settings(nodes[0], names)}, {_with_settings(node, names)};"
                " give these options on the command line, the same on each node"
            )
    return None


def _with_settings(node: Node, names: Sequence[str]) -> str:
    """A node with its values of these settings, as options."""
    words = " ".join(f"--{name.replace('_', '-')} {node.settings.get(name, 'not set')}" for name in names)
    return f"{node.host} with {words}"


def who_is_missing(
    nnodes: tuple[int, int], names: Sequence[str], came: Sequence[Node], present: Collection[str], timeout_s: int
) -> str:
    """One line on the missing nodes.

    `nnodes`: (least, most); `names`: by node rank, or empty; `present`: keys of the nodes that are present now.
    """
    least, most = nnodes
    here = [node for node in came if node.key in present]
    gone = [node for node in came if node.key not in present and _is_gone(node, here)]
    ranks = {node.rank for node in here}
    unnumbered = [f"{node.host}{LOST}" for node in gone if node.rank is None]
    # Lost nodes without a rank may be the missing ones: naming ranks too would count them twice.
    countable = None not in ranks and len(unnumbered) < least - len(here)
    words = [_in_words(rank, names, gone) for rank in range(most) if rank not in ranks] if countable else []
    words += unnumbered
    words[SHOWN:] = [f"and {len(words) - SHOWN} more"] if len(words) > SHOWN else []
    asked = f"{least}" if least == most else f"at least {least}"
    missing = f"{least - len(here)} of {asked} nodes did not come within {timeout_s} s"
    which = ": " + ", ".join(words) if words else ""
    return f"{missing}{which} (here: {', '.join(node.host for node in here[:SHOWN])})"


def _is_gone(node: Node, here: Sequence[Node]) -> bool:
    """Whether a node that came is lost and has not returned with another launcher."""
    return not any((node.rank, node.host) == (other.rank, other.host) for other in here)


def _in_words(rank: int, names: Sequence[str], gone: Sequence[Node]) -> str:
    """A missing node in words: its rank, its name if known, and whether it had joined before."""
    lost = next((node.host for node in gone if node.rank == rank), None)
    name = names[rank] if rank < len(names) else lost
    return f"node rank {rank}" + (f" ({name})" if name else "") + (LOST if lost else "")
