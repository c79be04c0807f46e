"""Signals: all ranks stop behind the same step, save and leave; the run that goes on ends with the same bits."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ddp_train.checkpoint import format as checkpoint_format
from tests.faults.runs import HEAVIEST, Runs

Times = Callable[[int, int], int]
References = Callable[[str], tuple[str, list[dict[str, object]]]]
MUON = HEAVIEST["muon"]
KINDS = [
    pytest.param(signal.SIGTERM, 143, id="TERM"),
    pytest.param(signal.SIGINT, 130, id="INT"),
    pytest.param(signal.SIGUSR1, 143, id="USR1"),
]


def wait_for(path: Path, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "status"), KINDS)
def test_a_signal_to_the_launcher_saves_and_ends_the_run(
    number: signal.Signals, status: int, runs: Runs, references: References, times: Times
) -> None:
    if number != signal.SIGTERM and times(0, 1) == 0:
        pytest.skip("SIGTERM stands for the others in a short run")
    # Rank 1 waits in step 13, rank 0 in the collective of that step, while the signal comes.
    accidents = [{"rank": 1, "step": 13, "what": "wait"}]
    process = runs.start("run", f"{MUON} --save-every epoch", accidents=accidents)
    plans = runs.folder / "accidents-run"
    wait_for(plans / "waiting")
    process.send_signal(number)
    began = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert time.monotonic() - began < 25, "within the grace"
    found = checkpoint_format.newest(runs.folder / "run")
    assert found.state["progress"]["step"] == 14 and found.state["progress"]["samples"] == 64  # type: ignore[index]
    assert not (runs.folder / "run" / "done.json").exists()
    assert err.count("stopped by") == 1 and "after step 14, in epoch 2" in err and "Traceback" not in err
    again, text = runs.finish("run", "--resume auto", accidents=accidents)
    assert again == 0, text
    assert runs.result("run") == references(MUON)
    assert json.loads((runs.folder / "run" / "done.json").read_text())["epoch"] == 3
    # A finished run says so, and trains no more.
    before = (runs.folder / "run" / "checkpoint-latest.pt").stat().st_mtime_ns
    status, text = runs.finish("run", "--resume auto", accidents=accidents)
    assert status == 0 and text.count("run is finished: epoch 3") == 1, text
    assert (runs.folder / "run" / "checkpoint-latest.pt").stat().st_mtime_ns == before


WRITES = [
    # what is being flushed, how it ends, the signal
    ("file", "ends", signal.SIGTERM),
    ("file", "hangs", signal.SIGTERM),
    ("folder", "ends", signal.SIGINT),
    ("folder", "hangs", signal.SIGINT),
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("what", "end", "number"), WRITES)
def test_a_signal_while_a_checkpoint_is_being_written(
    what: str, end: str, number: signal.Signals, runs: Runs, references: References, times: Times
) -> None:
    if (what, end) != ("file", "ends") and times(0, 1) == 0:
        pytest.skip("a write that ends stands for the others in a short run")
    accidents = [{"rank": 0, "step": -1, "what": "kill"}]  # it takes part, as in the run to compare with
    options, grace = f"{MUON} --technique tests.faults.slow_disk:make", 3 if end == "hangs" else 60
    process = runs.start("run", options, accidents=accidents, launch=f"--grace {grace}", SLOW_DISK=f"4 {what} {end}")
    wait_for(runs.folder / "flushing")
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130}[number], err
    assert "Traceback" not in err
    found = checkpoint_format.newest(runs.folder / "run")
    step = found.state["progress"]["step"]  # type: ignore[index]
    assert found.notes == ()
    if end == "ends":
        assert err.count("stopped by") == 1 and f"after step {step}, in epoch" in err
    else:
        assert step == 3, "the one before"
    if times(0, 1) == 0:
        return  # the test above goes on from what a signal left
    again, text = runs.finish("run", f"{options} --resume auto", accidents=accidents)
    assert again == 0, text
    assert runs.result("run") == references(MUON)
    assert list((runs.folder / "run").rglob(".*")) == []
