"""The progress display: plain lines off a terminal, a live area on one, and the text of both."""

from __future__ import annotations

import fcntl
import io
import math
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pytest
from rich.console import Console

from ddp_train.observers.console import LiveProgress, PlainProgress, create_progress, gpu_row
from ddp_train.observers.epoch_table import EpochTable, clock, duration
from ddp_train.observers.records import Best, EpochRecord, RunFacts, StepReport
from gpu_topology.monitor import Reading

_ROOT = Path(__file__).parents[3]
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal as rich finds it by itself, whatever the tests are run under."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def _facts(**changes: object) -> RunFacts:
    values: dict = {
        "name": "digits-small",
        "model": "small",
        "parameters": 164_074,
        "dataset": "digits",
        "device": "cpu",
        "world_size": 2,
        "epochs": 10,
        "steps_per_epoch": 12,
        "global_batch": 128,
        "out_dir": "runs/digits-small",
    }
    return RunFacts(**(values | changes))


def _record(epoch: int, accuracy: float, **changes: float) -> EpochRecord:
    values = {
        "train_loss": 0.5,
        "train_accuracy": 0.8125,
        "loss": 0.25,
        "accuracy": accuracy,
        "learning_rate": 0.1,
        "seconds": 1.25,
        "images_per_second": 12345.6,
    }
    return EpochRecord(epoch=epoch, global_batch=128, **(values | changes))


def _report(**changes: object) -> StepReport:
    values: dict = {
        "epoch": 3,
        "step": 6,
        "steps": 12,
        "run_step": 30,
        "images": 768,
        "loss": 0.4321,
        "accuracy": 0.875,
        "learning_rate": 0.08,
        "images_per_second": 12345.6,
    }
    return StepReport(**(values | changes))


@contextmanager
def _terminal(columns: int) -> Iterator[tuple[TextIO, io.BytesIO]]:
    """A real terminal of this width: the stream to write to, and what arrived, complete once the block is left."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    arrived = io.BytesIO()
    with os.fdopen(writer, "w") as stream:
        yield stream, arrived
        stream.flush()
        os.set_blocking(reader, False)
        while True:
            try:
                arrived.write(os.read(reader, 1 << 16))
            except BlockingIOError:
                break
    os.close(reader)


# Off a terminal


def test_off_a_terminal_each_epoch_is_one_aligned_line() -> None:
    stream = io.StringIO()
    progress = create_progress(stream)
    progress.on_start(_facts(notes=("no network: training on digits",)))
    progress.on_step(_report())
    progress.on_epoch(_record(1, 0.9))
    progress.on_epoch(_record(2, 0.85, learning_rate=1.234e-5, seconds=185.0))
    progress.on_epoch(_record(3, math.nan, loss=math.nan))
    progress.on_epoch(_record(4, 1.0, images_per_second=1_234_567.8, seconds=7500.0))
    progress.on_end(Best(epoch=4, accuracy=1.0))
    progress.close()
    lines = stream.getvalue().splitlines()
    assert lines[:-1] == [
        "no network: training on digits",
        "small, 164,074 parameters, on digits",
        "2 ranks on cpu, global batch 128, 12 steps per epoch, 10 epochs",
        "  epoch  train loss train acc  test loss  test acc        lr   images/s    time",
        "   1/10      0.5000    81.25%     0.2500    90.00%*      0.1     12,346   1.2 s",
        "   2/10      0.5000    81.25%     0.2500    85.00%  1.23e-05     12,346   3m05s",
        "   3/10      0.5000    81.25%          -         -       0.1     12,346   1.2 s",
        "   4/10      0.5000    81.25%     0.2500   100.00%*      0.1  1,234,568   2h05m",
    ]
    assert re.fullmatch(r"best test accuracy 100\.00% in epoch 4; \d\.\d s; files in runs/digits-small", lines[-1])


def test_each_line_is_flushed_at_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("w", buffering=1 << 16) as stream:
        progress = create_progress(stream)
        progress.on_start(_facts())
        assert len(path.read_text().splitlines()) == 3
        progress.on_epoch(_record(1, 0.9))
        assert len(path.read_text().splitlines()) == 4


def test_a_resumed_run_says_where_it_goes_on_and_what_is_to_be_beaten() -> None:
    stream = io.StringIO()
    progress = create_progress(stream)
    progress.on_start(_facts(start_epoch=4, world_size=1, best=(0.9, -0.25)))
    progress.on_epoch(_record(4, 0.9))
    assert "*" not in stream.getvalue()
    progress.on_epoch(_record(5, 0.91))
    assert "91.00%*" in stream.getvalue()
    assert "1 rank on cpu, global batch 128, 12 steps per epoch, epochs 4 to 10" in stream.getvalue()


def test_colour_forced_for_other_programs_makes_no_terminal_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    assert isinstance(create_progress(io.StringIO()), PlainProgress)


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    with _terminal(80) as (stream, _):
        assert isinstance(create_progress(stream), LiveProgress)
        monkeypatch.setenv("TERM", "dumb")
        assert isinstance(create_progress(stream), PlainProgress)


def test_rich_is_imported_only_for_a_terminal() -> None:
    code = (
        "import sys\n"
        "from ddp_train.observers.console import create_progress\n"
        "assert create_progress().__class__.__name__ == 'PlainProgress'\n"
        "assert not {'rich', 'torch', 'matplotlib'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


# On a terminal


def _run_on_terminal(columns: int) -> str:
    with _terminal(columns) as (stream, arrived):
        progress = create_progress(stream)
        try:
            progress.on_start(_facts(notes=("no network: training on digits",)))
            progress.on_step(_report(epoch=1))
            time.sleep(0.7)  # the display's own thread redraws twice a second
            progress.on_epoch(_record(1, 0.9))
            progress.on_end(Best(epoch=1, accuracy=0.9))
        finally:
            progress.close()
    return arrived.getvalue().decode()


def test_a_terminal_gets_the_facts_the_rows_the_bars_and_its_cursor_back() -> None:
    output = _run_on_terminal(80)
    text = _CONTROL.sub("", output)
    assert "no network: training on digits" in text
    assert "small, 164,074 parameters, on digits" in text
    assert "   1/10      0.5000    81.25%     0.2500    90.00%*      0.1     12,346   1.2 s" in text
    assert re.search(r"epoch 1/10 +━+[╸╺]?━* +6/12 +loss 0\.4321  accuracy 87\.50%", text)
    assert re.search(r"run +━+[╸╺]?━* +\d+:\d\d left +12,346 images/s  lr 0\.08", text)
    assert "best test accuracy 90.00% in epoch 1" in text
    assert "\x1b[3" in output, "colours"
    shows, hides = output.rfind("\x1b[?25h"), output.rfind("\x1b[?25l")
    assert shows > hides
    widths = [len(line) for line in text.replace("\r", "\n").split("\n")]
    assert max(widths) <= 80


def test_the_cursor_is_back_already_while_the_display_runs() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    progress = LiveProgress(console)
    progress.on_start(_facts())
    try:
        output = console.file.getvalue()  # type: ignore[attr-defined]
    finally:
        progress.close()
    assert "\x1b[?25l" in output, "rich itself hides it"
    assert output.rfind("\x1b[?25h") > output.rfind("\x1b[?25l")


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    output = _run_on_terminal(80)
    colours = [code for code in re.findall(r"\x1b\[([0-9;]*)m", output) if set(code.split(";")) - {"", "0", "1", "2"}]
    assert colours == []
    assert "1/10" in output


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_the_live_area_fits_the_terminal(columns: int) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=columns, record=True)
    progress = LiveProgress(console)
    console.print(progress.render())
    progress.on_start(_facts(epochs=1000, steps_per_epoch=10_000))
    progress.close()
    for report in (
        None,
        _report(),
        _report(epoch=1000, step=10_000, steps=10_000, loss=12345.6789, accuracy=1.0, images_per_second=9_999_999.0),
        _report(loss=math.nan, accuracy=math.nan, images_per_second=math.inf, learning_rate=1.2345e-10),
    ):
        if report is not None:
            progress.on_step(report)
        console.print(progress.render())
    lines = console.export_text().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= min(80, columns)
    if columns >= 80:
        assert (
            sum("loss" in line and ("accuracy" in line or "acc " in line) for line in lines) >= 4
        )  # the heading and three reports
        assert any("testing" in line for line in lines)


def test_the_bars_go_on_from_the_epoch_that_is_recorded() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    progress = LiveProgress(console)
    progress.on_start(_facts())
    progress.close()
    progress.on_step(_report(epoch=3, step=12))
    progress.on_epoch(_record(3, 0.9))
    with console.capture() as captured:
        console.print(progress.render())
    text = _CONTROL.sub("", captured.get())
    assert "epoch 4/10" in text
    assert "0/12" in text


def test_a_gpus_row_has_what_the_driver_tells() -> None:
    full = Reading(
        "GPU-a", utilization=87, memory_used=12 << 30, memory_total=24 << 30, power_watts=211.6, temperature_c=61
    )
    label, bar, busy, rest = gpu_row(0, full)
    assert (label, busy, rest) == ("GPU 0", "87%", "12.0/24.0 GiB  212 W  61 °C")
    assert (bar.completed, bar.total) == (87, 100)  # type: ignore[union-attr]
    assert gpu_row(1, Reading("MIG-b", memory_used=1 << 29, memory_total=5 << 30))[2:] == ("-", "0.5/5.0 GiB")
    assert gpu_row(2, Reading("GPU-c"))[2:] == ("-", "")


def test_gpus_that_no_driver_knows_make_no_rows() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    progress = LiveProgress(console)
    progress.on_start(_facts(gpu_uuids=("GPU-00000000-0000-0000-0000-000000000000",)))
    progress.close()
    with console.capture() as captured:
        console.print(progress.render())
    assert "epoch 1/10" in captured.get()
    assert "GPU" not in captured.get()


# The text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1m00s"),
        (3599.4, "59m59s"),
        (3599.6, "1h00m"),
        (360_000.0, "100h00m"),
        (math.nan, "-"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (3661.0, "1:01:01")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_every_row_is_as_wide_as_the_heading() -> None:
    table = EpochTable(200)
    records = [_record(1, 0.1), _record(200, 1.0, train_loss=123.4567, learning_rate=1e-10, seconds=359_999.0)]
    assert {len(table.row(record)[0]) for record in records} == {len(table.heading())} == {79}


# Within an epoch, off a terminal


def test_a_log_has_a_line_for_each_report_where_asked_for_and_after_a_silence_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    streams = io.StringIO(), io.StringIO()
    each, seldom = create_progress(streams[0], each=True), create_progress(streams[1])
    expected = "   3/10  step 6/12: loss 0.4321, accuracy 87.50%, lr 0.08, 12,346 images/s\n"
    for progress in (each, seldom):
        progress.on_start(_facts())
    before = [len(stream.getvalue()) for stream in streams]
    for seconds in (1.0, 30.0, 1.0, 15.0, 15.0):
        now += seconds
        each.on_step(_report())
        seldom.on_step(_report())
    assert streams[0].getvalue()[before[0] :] == expected * 5
    assert streams[1].getvalue()[before[1] :] == expected * 2
    now += 100.0
    each.on_step(_report(step=12))
    assert streams[0].getvalue()[before[0] :] == expected * 5, "the epoch has a line of its own"


def test_an_epoch_of_unknown_length() -> None:
    """As of a loop over a stream: a line for each report, and no time left before an epoch is done."""
    stream = io.StringIO()
    progress = create_progress(stream, each=True)
    progress.on_start(_facts(steps_per_epoch=0))
    progress.on_step(_report(steps=0, step=4321))
    last = "   3/10  step 4,321: loss 0.4321, accuracy 87.50%, lr 0.08, 12,346 images/s"
    assert stream.getvalue().splitlines()[-1] == last
    console = Console(file=io.StringIO(), width=80)
    live = LiveProgress(console)
    live.on_start(_facts(steps_per_epoch=0))
    live.close()
    for epoch, left in ((1, "- left"), (3, "0:00 left")):
        live.on_step(_report(epoch=epoch, steps=0, step=4321))
        console.file = io.StringIO()
        console.print(live.render())
        text = console.file.getvalue()
        assert "step 4321" in text and left in text and "testing" not in text


def test_the_time_at_the_end_is_that_of_all_attempts() -> None:
    stream = io.StringIO()
    progress = PlainProgress(stream)
    progress.on_start(_facts(start_epoch=4, seconds_before=3600.0))
    progress.on_end(Best(epoch=4, accuracy=1.0))
    assert "in epoch 4; 1h00m; files in" in stream.getvalue()


def test_the_balanced_accuracy_is_shown_where_it_says_more() -> None:
    from ddp_train.observers.epoch_table import summary

    assert summary(Best(2, 0.9, "val", 0.75), 1.0, "r").startswith("best val accuracy 90.00% (balanced 75.00%) in")
    for balanced in (None, -1.0, math.nan, 0.9):
        assert summary(Best(2, 0.9, "val", balanced), 1.0, "r").startswith("best val accuracy 90.00% in epoch 2")
