"""`python -m gpu_topology monitor`: how the GPUs are used, live.

sampler.py (the driver) -> loop.py (the loop) -> sample_file.py (JSON Lines), live.py (the screen),
usage.py and assessment.py (the summary)
"""

from __future__ import annotations

import argparse
import gc
import math

from ddp_core.errors import TopologyError

_LONGEST_INTERVAL_S = 86_400


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m gpu_topology monitor`."""
    from gpu_topology.cli_options import add_json, some_names

    parser.add_argument(
        "--seconds", type=_seconds, default=0.0, metavar="S", help="how long; 0: until Ctrl-C (default)"
    )
    parser.add_argument(
        "--interval",
        type=_interval,
        default=1.0,
        metavar="S",
        help="seconds from sample to sample, at most a day (default: 1)",
    )
    parser.add_argument(
        "--gpus", "--devices", type=some_names, default=(), metavar="LIST", help="only these: 0,2 or UUIDs"
    )
    parser.add_argument("--out", metavar="FILE.jsonl", help="append each sample as a line of JSON; - is stdout")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Watch until the time is over, Ctrl-C or SIGTERM, then print the summary. Exit status 0."""
    from rich.console import Console

    from gpu_topology.monitor.assessment import verdict
    from gpu_topology.monitor.live import showing, usage_table
    from gpu_topology.monitor.loop import watch
    from gpu_topology.monitor.usage import usage_json
    from gpu_topology.report.tables import bullets
    from gpu_topology.report.terminal_table import Screen

    gc.enable()  # this command may run for days
    if arguments.json and arguments.out == "-":
        raise TopologyError("--json and --out - both want stdout: name a file for the samples")
    # stdout carries data: with --json the summary, with --out - the samples. The display then goes to stderr.
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


def _interval(text: str) -> float:
    """The seconds from sample to sample. Errors: ArgumentTypeError."""
    value = _seconds(text, zero=False)
    if value > _LONGEST_INTERVAL_S:  # sigtimedwait(2) has a limit too, but of centuries
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds up to {_LONGEST_INTERVAL_S} (a day)")
    return value


def _seconds(text: str, *, zero: bool = True) -> float:
    """A number of seconds; zero: whether 0 is allowed. Errors: ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and (value >= 0 if zero else value > 0)):
        wanted = "of at least" if zero else "above"
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds {wanted} 0")
    return value
