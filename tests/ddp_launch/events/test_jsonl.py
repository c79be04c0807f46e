"""The record of a run for machines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ddp_core.errors import OptionError
from ddp_launch.events.jsonl import EventLog
from ddp_launch.events.run_events import RunEvents
from ddp_launch.failure.failures import Attempt, Failure


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_event_is_there_at_once_with_its_time(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text("of an earlier run\n")
    with EventLog(str(path)) as events:
        events.write("one", text="\udcff\n", list=[1, None])
        events.write("two", time.monotonic() * 1000 - 5000)
        one, two = lines(path)
        assert one["text"] == "\udcff\n"
    assert abs(one["monotonic_ms"] - two["monotonic_ms"] - 5000) < 1000
    apart = datetime.fromisoformat(one["time"]) - datetime.fromisoformat(two["time"])
    assert abs(apart.total_seconds() - 5) < 1
    assert abs((datetime.now(UTC) - datetime.fromisoformat(one["time"])).total_seconds()) < 60


def test_a_failure(tmp_path: Path) -> None:
    log = tmp_path / "err"
    log.write_text("Traceback (most recent call last):\nRuntimeError: Connection closed by peer\n")
    victim = Failure(0, "h", 1, (log,), ended_ms=1000.0)
    failures = (victim, Failure(2, "h", -9, (), ended_ms=900.0), Failure(3, "h", -15, stopped=True), Failure(4, "h", 3))
    with EventLog(str(tmp_path / "events")) as events:
        RunEvents(events).failure(Attempt(1, failures), restarts=1)
        RunEvents(events).failure(Attempt(1), restarts=1)
    event, restart = lines(tmp_path / "events")
    assert (restart["event"], restart["attempt"], restart["restarts_left"]) == ("restart", 2, 0)
    facts = {"attempt": 1, "rank": 2, "status": 137, "exit_code": None, "signal": "SIGKILL", "monotonic_ms": 900.0}
    assert event.items() >= facts.items()
    assert (event["victims"], event["stopped"], event["failed_as_well"]) == ([0], [3], [4])


@pytest.mark.parametrize("name", ["folder", "missing/events", "pipe"])
def test_a_file_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OptionError, match=r"--json-events '.*'"):
        EventLog(str(tmp_path / name))


def test_a_full_disk_ends_the_record_and_not_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    with EventLog("/dev/full") as events:
        events.write("one")
        events.write("two")
    assert capsys.readouterr().err == "note: --json-events: No space left on device; the record ends here\n"


def test_events_are_added_to_a_second_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "events.jsonl"
    kept.write_text('{"event": "of a launcher that was kil')
    with EventLog(str(tmp_path / "asked")) as events:
        events.write("before")
        events.append_to(kept)
        events.append_to(tmp_path / "missing" / "events.jsonl")
        events.write("after")
    assert [one["event"] for one in lines(tmp_path / "asked")] == ["before", "after"]
    broken, whole = kept.read_text().splitlines()
    assert broken.endswith("kil") and json.loads(whole)["event"] == "after"
    assert capsys.readouterr().err.count("\n") == 1
    with EventLog(None) as events:
        events.append_to(Path("/dev/full"))
        events.write("one")
        events.append_to(kept)
        events.write("two")
    assert json.loads(kept.read_text().splitlines()[-1])["event"] == "two"
    assert "/dev/full: No space left on device; the record ends here" in capsys.readouterr().err


def test_a_pipe_with_a_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    got = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_text()))
    reader.start()
    deadline = time.monotonic() + 30
    while True:
        try:
            events = EventLog(str(tmp_path / "pipe"))
            break
        except OptionError:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    with events:
        events.write("one")
    reader.join(timeout=30)
    assert json.loads(got[0])["event"] == "one"


def test_an_end_for_every_error(tmp_path: Path) -> None:
    for error, status in ((OptionError("no"), 2), (KeyboardInterrupt(), 130), (SystemExit(143), 143)):
        with pytest.raises(type(error)), EventLog(str(tmp_path / "events")):
            raise error
        assert lines(tmp_path / "events")[-1]["status"] == status


def test_standard_output_by_its_name(tmp_path: Path) -> None:
    """What ranks print neither overwrites the events nor stands between them."""
    program = "import os; from ddp_launch.events.jsonl import EventLog; events = EventLog('/dev/stdout')"
    program += "; events.write('one'); os.write(1, b'of a rank' * 99); events.write('two')"
    with (tmp_path / "out").open("wb") as out:
        done = subprocess.run([sys.executable, "-c", program], stdout=out, stderr=subprocess.PIPE, timeout=60)
    assert [event["event"] for event in lines(tmp_path / "out")] == ["one", "two"]
    assert done.stderr == b"of a rank" * 99
