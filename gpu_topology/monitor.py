"""`python -m gpu_topology monitor`: how the GPUs are used, live; and single readings for a progress display.

    watching/: sampler.py (the driver) -> watch.py (the loop) -> sample_file.py (JSON Lines), live.py (the screen),
    usage.py and verdict.py (the summary)

`read_gpus` is what the trainer uses: it imports none of these.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from typing import Any

from gpu_topology.driver import Driver, DriverError, session
from gpu_topology.topology import TopologyError


@dataclass(frozen=True, slots=True)
class Reading:
    """One GPU at one moment: percent, bytes, watts, degrees Celsius. None where the driver does not tell."""

    uuid: str
    utilization: int | None = None
    memory_used: int | None = None
    memory_total: int | None = None
    power_watts: float | None = None
    temperature_c: int | None = None


def read_gpus(uuids: Sequence[str]) -> list[Reading]:
    """A reading for each named GPU (UUID, or NVML index as text) that the driver knows, in the order asked.

    Never raises; [] without a driver. The driver is opened once for the life of the process: opening it is what costs.
    """
    driver = _open()
    if driver is None:
        return []
    readings = (_read(driver, uuid) for uuid in uuids)
    return [reading for reading in readings if reading is not None]


@cache
def _open() -> Driver | None:
    stack = ExitStack()
    try:
        driver = stack.enter_context(session())
    except DriverError:
        return None
    atexit.register(stack.close)
    return driver


@cache
def _handle(uuid: str) -> Any:
    driver = _open()
    if driver is None:
        return None
    if uuid.isdecimal():
        return driver.ask("nvmlDeviceGetHandleByIndex", int(uuid))
    return driver.ask("nvmlDeviceGetHandleByUUID", uuid)


def _read(driver: Driver, uuid: str) -> Reading | None:
    handle = _handle(uuid)
    if handle is None:
        return None
    rates = driver.ask("nvmlDeviceGetUtilizationRates", handle)
    memory = driver.ask("nvmlDeviceGetMemoryInfo", handle, 0x02000028) or driver.ask("nvmlDeviceGetMemoryInfo", handle)
    milliwatts = driver.ask("nvmlDeviceGetPowerUsage", handle)
    temperature = driver.ask("nvmlDeviceGetTemperatureV", handle, 0)
    if temperature is None:
        temperature = driver.ask("nvmlDeviceGetTemperature", handle, 0)
    return Reading(
        uuid=uuid,
        utilization=None if rates is None else int(rates.gpu),
        memory_used=None if memory is None else int(memory.used),
        memory_total=None if memory is None else int(memory.total),
        power_watts=None if milliwatts is None else milliwatts / 1000,
        temperature_c=temperature,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m gpu_topology monitor`."""
    from gpu_topology.options import add_json, some_names

    parser.add_argument(
        "--seconds", type=_seconds, default=0.0, metavar="S", help="how long; 0: until Ctrl-C (default)"
    )
    parser.add_argument(
        "--interval", type=_interval, default=1.0, metavar="S", help="seconds from sample to sample (default: 1)"
    )
    parser.add_argument(
        "--gpus", "--devices", type=some_names, default=(), metavar="LIST", help="only these: 0,2 or UUIDs"
    )
    parser.add_argument("--out", metavar="FILE.jsonl", help="append each sample as a line of JSON; - is stdout")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Watch until the time is over, Ctrl-C or SIGTERM, then print the summary. Exit status 0."""
    from rich.console import Console

    from gpu_topology.tables import bullets
    from gpu_topology.typeset import Screen
    from gpu_topology.watching.live import showing, usage_table
    from gpu_topology.watching.usage import usage_json
    from gpu_topology.watching.verdict import verdict
    from gpu_topology.watching.watch import watch

    gc.enable()  # this command may run for days
    if arguments.json and arguments.out == "-":
        raise TopologyError("--json and --out - both want stdout: name a file for the samples")
    # stdout carries data: with --json the summary, with --out - the samples. The display is then talk.
    console = Console(stderr=arguments.json or arguments.out == "-", highlight=False)
    with showing(console) as show:
        usage = watch(arguments.gpus, arguments.seconds, arguments.interval, arguments.out, show)
    sentences = verdict(usage)
    if arguments.json:
        import json

        print(json.dumps({**usage_json(usage), "verdict": list(sentences)}, indent=1))
        return 0
    with console.capture() as page:
        console.print(f"{usage.samples} samples in {usage.seconds:.0f} s", style="bold")
        console.print(usage_table(usage))
    screen = Screen(console.width, console.is_terminal and not console.no_color)
    bullets(screen, sentences)
    lines = [line.rstrip() for line in page.get().splitlines()]
    print("\n".join([*lines, *screen.lines]), file=console.file)
    return 0


def _seconds(text: str) -> float:
    return _number(text, least=0.0, strictly=False)


def _interval(text: str) -> float:
    return _number(text, least=0.0, strictly=True)


def _number(text: str, least: float, strictly: bool) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and (value > least if strictly else value >= least)):
        wanted = "above" if strictly else "of at least"
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds {wanted} {least:g}")
    return value
