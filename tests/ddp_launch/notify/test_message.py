"""What is told about a run, and what is not."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from ddp_core.redaction import Secrets
from ddp_launch.notify.message import Run, Story, duration
from ddp_launch.notify.receiver import DEFAULT_EVENTS, EVENTS

PLAN = {"event": "plan", "plan": {"cluster": {"hosts_store": None}}, "logs": "/logs", "run_folder": None}
FAILURE = {
    "event": "failure",
    "attempt": 0,
    "rank": 1,
    "host": "b",
    "status": 1,
    "words": "exit code 1",
    "error": "E: x",
}


def story(wanted: Any = EVENTS, environ: Any = None, **facts: Any) -> Story:
    return Story(Run(**{"program": "train.py", "host": "a", "begin_ms": 0.0, **facts}), wanted, Secrets(environ or {}))


def end(status: int | None, ms: float = 60_000.0, **facts: Any) -> dict[str, Any]:
    return {"event": "end", "status": status, "monotonic_ms": ms, **facts}


def attempt(number: int) -> dict[str, Any]:
    return {"event": "attempt", "attempt": number, "world_size": 4, "monotonic_ms": 1.0}


def test_a_run_that_restarts_and_ends_well() -> None:
    told = story()
    assert told.hear(PLAN) is None
    assert told.hear(attempt(0))["event"] == "start"  # type: ignore[index]
    assert told.hear(FAILURE) is None
    restart = {"event": "restart", "attempt": 1, "restarts_left": 2, "ranks": 4, "devices": "GPU 0", "change": None}
    record = told.hear({**restart, "monotonic_ms": 100_000.0})
    assert record is not None
    assert record["text"].splitlines() == [
        "rank 1 on b: E: x (exit code 1)",
        "next: attempt 2 on GPU 0; 2 more left",
        "time: 2 min since the start",
        "logs: /logs",
    ]
    assert told.hear(attempt(1)) is None
    assert told.hear(attempt(0)) is None
    record = told.hear(end(0))
    assert record is not None
    assert (record["event"], record["status"], record["cause"], record["number"]) == ("end", 0, None, 3)
    assert record["world_size"] == 4
    assert told.hear(end(1)) is None


def test_a_stall_says_whether_it_ends_the_run() -> None:
    event = {"event": "stall", "seconds": 125.0, "kind": "missing", "ranks": [1], "words": "rank 1 is not there"}
    for killing, words in ((False, "nothing was ended"), (True, "the run is ended")):
        record = story().hear({**event, "killing": killing, "monotonic_ms": 1.0})
        assert record is not None
        assert record["text"].startswith("for 2 min: rank 1 is not there\n" + words)


@pytest.mark.parametrize(
    ("name", "words"), [("SIGINT", "was ended by Ctrl-C on a"), ("SIGTERM", "was ended by SIGTERM")]
)
def test_a_signal_is_no_failure_of_a_rank(name: str, words: str) -> None:
    told = story()
    for event in (PLAN, attempt(0), FAILURE, {"event": "signal", "signal": name}):
        told.hear(event)
    record = told.hear(end(130))
    assert record is not None
    assert (record["event"], record["signal"], record["cause"]) == ("fail", name, None)
    assert words in record["title"]


def test_a_mistake_that_the_trainer_explains_has_no_other_advice() -> None:
    told = story()
    told.hear(PLAN)
    told.hear({**FAILURE, "error": "error: --lr: no", "remedy": {"advice": "buy a GPU"}})
    record = told.hear(end(2))
    assert record is not None
    assert record["text"].splitlines()[0] == "rank 1 on b: --lr: no (exit code 1)"
    assert "GPU" not in record["text"]


def test_only_what_is_wanted() -> None:
    told = story(DEFAULT_EVENTS)
    assert told.hear(PLAN) is None
    assert told.hear(attempt(0)) is None
    assert story({"fail"}).hear(end(0)) is None
    assert story({"end"}).hear(end(1)) is None


def test_a_mistake_that_is_seen_at_once_is_not_told() -> None:
    assert story(attended=True).hear(end(2, 3_000.0, message="no such file")) is None
    assert story(attended=True).hear(end(130, 3_000.0)) is None
    for told, ms in ((story(), 3_000.0), (story(attended=True), 3_600_000.0)):
        record = told.hear(end(2, ms, message="no such file"))
        assert record is not None
        assert record["text"] == "no such file\nexit status: 2"
    told = story(attended=True)
    told.hear(PLAN)
    assert told.hear(end(1, 3_000.0)) is not None


def test_of_several_nodes_the_first_one_tells() -> None:
    for hosts_store, tells in ((False, False), (True, True), (None, True)):
        told = story()
        told.hear({**PLAN, "plan": {"cluster": {"hosts_store": hosts_store}}})
        assert (told.hear(end(1)) is not None) is tells


def test_no_secret_of_command_line_or_environment() -> None:
    told = story(environ={"MY_TOKEN": "s3cret-1", "HOME": "/home/me"})
    told.hear(PLAN)
    error = "HTTPError: s3cret-1 https://me:s3cret@h/?api_key=s3cret&x=1 Bearer s3cret.s3cret hf_s3crets3crets3cret"
    told.hear({**FAILURE, "error": error, "words": "password: 's3cret'"})
    record = told.hear(end(1, message="token=s3cret"))
    assert "s3cret" not in json.dumps(record)
    assert "x=1" in json.dumps(record)


def test_the_best_epoch_of_this_run_alone(tmp_path: Path) -> None:
    history = tmp_path / "training_history.json"
    plan = {**PLAN, "run_folder": str(tmp_path)}

    def best(begin_ms: float) -> Any:
        told = story(begin_ms=begin_ms)
        told.hear(plan)
        record = told.hear(end(0, begin_ms + 1000))
        assert record is not None
        assert record["run"] == tmp_path.name
        return record["best"], record["text"].splitlines()[0]

    now_ms = time.monotonic() * 1000
    assert best(now_ms)[0] is None
    history.write_text(json.dumps({"best": {"epoch": 3, "val_accuracy": 0.9}, "epochs": [{}] * 5}))
    found = {"epoch": 3, "split": "val", "accuracy": 0.9, "of": 5}
    assert best(now_ms) == (found, "best: 90.00% validation accuracy, in epoch 3 (5 done)")
    assert best(now_ms + 10_000)[0] is None
    for broken in (
        "{",
        "[]",
        '{"best": {}, "epochs": []}',
        '{"best": {"epoch": 1, "test_accuracy": null}, "epochs": []}',
    ):
        history.write_text(broken)
        assert best(now_ms)[0] is None


def test_times() -> None:
    times = {42: "42 s", 99.4: "99 s", 150: "2 min", 3600: "1 h 00 min", 11_100: "3 h 05 min", 187_000: "2 d 3 h"}
    assert {seconds: duration(seconds) for seconds in times} == times
