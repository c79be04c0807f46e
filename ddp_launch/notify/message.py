"""Messages about a run: turns its events (events/run_events.py) into records for the receivers.

A record is plain data with the schema below; docs/notify.md lists its keys. Its `title` and `text` give the same facts
in words. Pure, except that the best epoch is read from the history in the run folder.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Container, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ddp_core.errors import one_line
from ddp_core.redaction import Secrets

SCHEMA = "ddp-launch-notification/1"
Record = dict[str, Any]
END_S = 4.0
"""How long the delivery of a run's last message may take."""
LARGEST_HISTORY = 64 * 2**20
LONGEST = 500
"""Most characters of one text in a record; a longer one is shortened."""
AT_ONCE_S = 10.0
"""A launcher that ends sooner, before any rank started, sends no message if a user started it at a terminal."""
SIGNALS = {128 + number: signal.Signals(number).name for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
LONGEST_NAME = 80
EXPLAINED = "error: "
VANISHED = "the launcher ended without reporting why: it was killed, or the machine ran out of memory"
WAITING, KILLING = "nothing was ended (--stall-kill SECONDS does that)", "the run is ended (--stall-kill)"


@dataclass(frozen=True, kw_only=True)
class Run:
    """Facts about a run that do not change. `program`: a short name; `begin_ms`: the launcher's start, by the monotonic
    clock; `attended`: whether it was started at a terminal; `hosts`: the hosts of a run over ssh."""

    program: str
    host: str
    begin_ms: float
    attended: bool = False
    hosts: tuple[str, ...] = ()


class Story:
    """Follows a run and makes its messages. `wanted`: the kinds of message that are sent (receiver.EVENTS)."""

    def __init__(self, run: Run, wanted: Container[str], secrets: Secrets) -> None:
        self._run, self._wanted, self._secrets = run, wanted, secrets
        self._number = 0
        self._facts: dict[str, Any] = dict.fromkeys(("world_size", "run_folder", "logs"))
        self._failure: dict[str, Any] | None = None
        self._signal: str | None = None
        self._started = self._begun = self._silent = False
        self.over = False
        """Whether the last event has come."""

    def hear(self, event: Mapping[str, Any]) -> Record | None:
        """The record to send for an event; None for most events."""
        match event["event"]:
            case "plan":
                self._started = True
                self._facts |= {"run_folder": event.get("run_folder"), "logs": event.get("logs")}
                # If several nodes were started one by one, only the node that owns the endpoint sends messages.
                self._silent = (event["plan"].get("cluster") or {}).get("hosts_store") is False
            case "attempt":
                self._facts["world_size"] = event["world_size"]
                # A restart has its own event. When nodes join or leave, the same attempt begins again.
                again, self._begun = self._begun, True
                return None if again else self._record("start", event)
            case "signal":
                self._signal = event["signal"]
            case "stall":
                return self._record(
                    "stall", event, stall=_some(event, "seconds", "kind", "ranks", "words", "killing", "host")
                )
            case "failure":
                self._failure = _cause(event)
            case "restart":
                facts = _some(event, "attempt", "restarts_left", "ranks", "devices", "change")
                return self._record("restart", event, restart=facts, cause=self._failure)
            case "end" if not self.over:
                self.over = True
                return self._end(event)
        return None

    def vanished(self, at_ms: float) -> Record | None:
        """The record to send if the launcher is gone without an "end" event."""
        self.over = True
        return self._end({"event": "end", "monotonic_ms": at_ms, "status": None, "message": VANISHED})

    def trial(self, at_ms: float) -> Record:
        """The record of a test message."""
        record = self._record("test", {"monotonic_ms": at_ms})
        assert record is not None
        return record

    def _end(self, event: Mapping[str, Any]) -> Record | None:
        status = event["status"]
        if not self._started:
            if self._run.attended and event["monotonic_ms"] - self._run.begin_ms < AT_ONCE_S * 1000:
                return None
            self._signal = SIGNALS.get(status)
        facts = {"status": status, "signal": self._signal, "message": event.get("message")}
        if status == 0:
            return self._record("end", event, **facts)
        stopped = self._signal is not None
        return self._record("fail", event, **facts, cause=None if stopped else self._failure)

    def _record(self, kind: str, event: Mapping[str, Any], **facts: Any) -> Record | None:
        if self._silent or (kind not in self._wanted and kind != "test"):
            return None
        self._number += 1
        empty = dict.fromkeys(("status", "signal", "message", "cause", "stall", "restart"))
        record = {
            "schema": SCHEMA,
            "number": self._number,
            "event": kind,
            "time": event.get("time") or datetime.now(UTC).isoformat(timespec="milliseconds"),
            "run": self._name,
            "host": self._run.host,
            "hosts": list(self._run.hosts) or None,
            "program": self._run.program,
            "seconds": max(0.0, round((event["monotonic_ms"] - self._run.begin_ms) / 1000, 1)),
            **self._facts,
            **empty,
            **facts,
            "best": self._best(),
        }
        plain: Record = _cleaned(record, self._secrets)
        return {**plain, "title": title(plain), "text": "\n".join(lines(plain))}

    @property
    def _name(self) -> str:
        folder = self._facts["run_folder"]
        name = one_line(self._secrets.hidden(Path(folder).name if folder else self._run.program))
        return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 3]}..."

    def _best(self) -> dict[str, Any] | None:
        """The best epoch so far of the bundled trainer: its number, the split and the accuracy there. None where it is
        not known: another program, a folder on another machine, no epoch of this run yet."""
        folder = self._facts["run_folder"]
        if folder is None:
            return None
        try:
            # The folder may hold the history of an earlier run.
            history = json.loads(_fresh(Path(folder) / "training_history.json", self._run.begin_ms))
            best = history["best"]
            split = "val" if "val_accuracy" in best else "test"
            accuracy = float(best[f"{split}_accuracy"])
            return {"epoch": int(best["epoch"]), "split": split, "accuracy": accuracy, "of": len(history["epochs"])}
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _fresh(path: Path, begin_ms: float) -> bytes:
    """A file that is not older than a moment of the monotonic clock. Errors: OSError."""
    facts = path.stat()
    age_ms = (datetime.now(UTC).timestamp() - facts.st_mtime) * 1000
    if time.monotonic() * 1000 - age_ms < begin_ms or facts.st_size > LARGEST_HISTORY:
        raise FileNotFoundError(path)
    return path.read_bytes()


def _some(event: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: event.get(name) for name in names}


def _cause(failure: Mapping[str, Any]) -> dict[str, Any]:
    """The rank that failed first, from its event."""
    facts = _some(failure, "attempt", "rank", "host", "status", "words", "error", "place")
    error = str(failure.get("error") or "")
    if error.startswith(EXPLAINED):
        # The bundled trainer has said what is wrong and what to do.
        return {**facts, "error": error.removeprefix(EXPLAINED), "advice": None}
    return {**facts, "advice": (failure.get("remedy") or {}).get("advice")}


def _cleaned(value: Any, secrets: Secrets) -> Any:
    """The value with every text in it on one line, not too long, and without secrets."""
    if isinstance(value, str):
        text = one_line(secrets.hidden(value))
        return text if len(text) <= LONGEST else f"{text[: LONGEST - 100]} [...] {text[-90:]}"
    if isinstance(value, dict):
        return {name: _cleaned(one, secrets) for name, one in value.items()}
    return [_cleaned(one, secrets) for one in value] if isinstance(value, list) else value


def title(record: Record) -> str:
    """What happened, in a few words."""
    run, host, after = record["run"], record["host"], duration(record["seconds"])
    match record["event"]:
        case "test":
            return f"a test from {host}: messages of --notify arrive here"
        case "start":
            return f"{run} has started on {host}"
        case "end":
            return f"{run} has ended well on {host} after {after}"
        case "stall":
            return f"{run} makes no progress on {host}"
        case "restart":
            restart = record["restart"]
            return f"{run} has failed on {host} and starts again (attempt {restart['attempt'] + 1})"
    if record["signal"] is not None:
        word = "by Ctrl-C" if record["signal"] == "SIGINT" else f"by {record['signal']}"
        return f"{run} was ended {word} on {host} after {after}"
    return f"{run} has failed on {host} after {after}"


def lines(record: Record) -> list[str]:
    """The facts, a line each."""
    found = [*_what(record)]
    if (best := record["best"]) is not None:
        split = {"val": "validation", "test": "test"}[best["split"]]
        found.append(f"best: {best['accuracy']:.2%} {split} accuracy, in epoch {best['epoch']} ({best['of']} done)")
    if record["event"] in ("stall", "restart"):
        found.append(f"time: {duration(record['seconds'])} since the start")
    if record["hosts"]:
        found.append(f"hosts: {', '.join(record['hosts'])}")
    if record["status"] and record["cause"] is None:
        found.append(f"exit status: {record['status']}")
    if record["run_folder"]:
        found.append(f"folder: {record['run_folder']}")
    elif record["logs"] and record["event"] != "end":
        found.append(f"logs: {record['logs']}")
    return found


def _what(record: Record) -> list[str]:
    found = []
    if (cause := record["cause"]) is not None:
        words = f"{cause['error']} ({cause['words']})" if cause["error"] else cause["words"]
        found.append(f"rank {cause['rank']} on {cause['host']}: {words}")
        if cause["advice"]:
            found.append(f"to do: {cause['advice']}")
    if record["message"]:
        found.append(record["message"])
    if (stall := record["stall"]) is not None:
        found += [f"for {duration(stall['seconds'])}: {stall['words']}", KILLING if stall["killing"] else WAITING]
    if (restart := record["restart"]) is not None:
        devices = f" on {restart['devices']}" if restart["devices"] else ""
        change = f" ({restart['change']})" if restart["change"] else ""
        found.append(f"next: attempt {restart['attempt'] + 1}{devices}{change}; {restart['restarts_left']} more left")
    return found


def duration(seconds: float) -> str:
    """A time for a person: `42 s`, `12 min`, `3 h 05 min`, `2 d 4 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
