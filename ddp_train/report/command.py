"""`python -m ddp_launch report RUN [-o FILE]`: the page of a run, written anew from what is in its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ddp_core.cli import CommandLine, exit_status
from ddp_train.report.write import write_page


def run(arguments: Sequence[str]) -> int:
    """Write the page; returns the exit status."""
    return exit_status(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    parser = CommandLine(
        prog="python -m ddp_launch report",
        description="Write the page of a run, report.html, from what is in its folder. It prints where the page is.",
    )
    parser.add_argument("run", metavar="RUN", help="a run folder of the trainer, or the --log-dir of a program")
    parser.add_argument("-o", "--output", metavar="FILE", help="where to write it (default: RUN/report.html)")
    options = parser.parse_args(arguments)
    print(write_page(Path(options.run), Path(options.output) if options.output else None))
    return 0
