"""Failures on the other nodes of a run, exchanged through the launchers' common store. Imports no torch.

A rank that loses its connection to another node knows only that its peer is gone; that node's launcher knows why.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ddp_core import rank_report
from ddp_launch.failure.failures import Failure
from ddp_launch.failure.log_tail import LogTail
from ddp_launch.rendezvous.attendance import Store

WAIT_S = 2.0
"""How long a node with only victims waits for another node's report, and the node with the store for its readers."""
LOOK_S = 0.05
LINES = 40


class RemoteFailures:
    """The reports that the nodes of one attempt exchange. Nothing raises, although the store may be gone at any time.

    `attempt`: its number, the same on each node; `nodes`: how many take part.
    """

    def __init__(self, store: Store, attempt: int, nodes: int) -> None:
        self._store = store
        self._word, self._left = f"failures/{attempt}/first", f"failures/{attempt}/left"
        self._compared = False
        self.nodes = nodes

    def tell(self, first: Failure | None) -> None:
        """Report the first failure of this node, unless it is a victim. The first report of all nodes is kept."""
        if self.nodes > 1 and first is not None and not first.victim:
            with suppress(RuntimeError):
                self._store.compare_set(self._word, "", _encode(first))

    def compare(self, first: Failure | None) -> Failure | None:
        """After the ranks of this node have ended: the failure that another node reported, if the first one here is a
        victim. Waits up to WAIT_S for it; None if no node reports a failure, or if the failure here is the cause.
        """
        self.tell(first)
        cause = None
        with suppress(RuntimeError):
            if first is not None and first.victim and self._within(lambda: self._store.check([self._word])):
                cause = _decode(self._store.get(self._word))
            self._compared = True
            self._store.add(self._left, 1)
        return cause

    def see_off(self) -> None:
        """On the node with the store, after a failure: wait a moment until the others have compared too."""
        with suppress(RuntimeError):
            if self._compared:
                self._within(lambda: self._store.add(self._left, 0) >= self.nodes)

    def _within(self, condition: Callable[[], bool]) -> bool:
        """Poll the condition for at most WAIT_S; whether it became true."""
        deadline = time.monotonic() + WAIT_S
        while self.nodes > 1 and time.monotonic() < deadline:
            if condition():
                return True
            time.sleep(LOOK_S)
        return False


def _encode(failure: Failure) -> str:
    """A failure as JSON, with the end of its log."""
    facts = {
        "rank": failure.rank,
        "host": failure.host,
        "code": failure.code,
        "left": failure.left,
        "logs": [str(log) for log in failure.logs],
        "lines": failure.log_tail.shown(LINES),
        "source": str(failure.log_tail.source or ""),
        "report": failure.report.to_json() if failure.report else None,
    }
    return json.dumps(facts)


def _decode(data: bytes) -> Failure:
    """A failure from `_encode`; `remote` holds the log's end and the report."""
    facts = json.loads(data)
    report = rank_report.from_json(facts["report"]) if facts["report"] else None
    source = Path(facts["source"]) if facts["source"] else None
    tail = LogTail(tuple(facts["lines"]), source, report.messages if report else ())
    logs = tuple(map(Path, facts["logs"]))
    return Failure(facts["rank"], facts["host"], facts["code"], logs, left=facts["left"], remote=(tail, report))
