"""`python -m ddp_launch compare RUN RUN ... [--json] [-o FILE]`: what differs between runs, and what came out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ddp_core.cli import CommandLine, exit_status, print_json
from ddp_core.errors import OptionError
from ddp_core.files import write_text
from ddp_train.compare.comparison import compare, to_json
from ddp_train.report.read_run import RunRecord, read_run


def run(arguments: Sequence[str]) -> int:
    """Compare runs as the arguments say; returns the exit status."""
    return exit_status(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    parser = CommandLine(
        prog="python -m ddp_launch compare",
        description="What differs between runs, and what came out of them. Runs that differ in the seed alone are one"
        " group, with mean and standard deviation; groups are compared with that of the first run.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run folders of the trainer, or --log-dir of a program")
    parser.add_argument("--json", action="store_true", help="print it as JSON, see docs/compare.md")
    parser.add_argument("-o", "--output", metavar="FILE", help="write an HTML page, too")
    parser.add_argument("--target", metavar="ACCURACY", type=_accuracy, help="compare the time to it [the runs' own]")
    options = parser.parse_args(arguments)
    comparison = compare(_read(options.runs), options.target)
    if options.output is not None:
        from ddp_train.compare.page import page

        write_text(options.output, page(comparison))
    if options.json:
        print_json(to_json(comparison))
    else:
        from ddp_train.compare.table import show

        show(comparison)
    return 0


def _accuracy(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise OptionError(f"--target {text!r}: expected an accuracy above 0 and at most 1, as in 0.94")
    return value


def _read(names: Sequence[str]) -> list[RunRecord]:
    """Read the runs, each folder once. Errors: UserError."""
    found: dict[Path, RunRecord] = {}
    for name in names:
        record = read_run(Path(name))
        found.setdefault(record.folder.resolve(), record)
    if len(found) < 2:
        raise OptionError(f"{names[0]!r} is one run: expected two or more to compare")
    return list(found.values())
