"""The command line of all measurements.

python -m benchmarks list                       # what there is
python -m benchmarks step_overhead [...]        # one of them, with its own options (or: run step_overhead)
python -m benchmarks report [-o FILE.md]        # the kept results as a page of tables
python -m benchmarks pictures [-o DIR]          # and as pictures
python -m benchmarks check [NAME ...]           # has anything fallen behind its kept result?
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.catalogue import CATALOGUE, find
from benchmarks.machine import ROOT
from benchmarks.report import read_results
from ddp_core.cli import CommandLine, exit_status
from ddp_core.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    return exit_status(lambda: _run(list(sys.argv[1:] if argv is None else argv)))


def _run(words: list[str]) -> int:
    """Parse the words and run the command that they name."""
    parser = CommandLine(prog="python -m benchmarks", description="Measurements, one command each.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="what can be measured")
    run = commands.add_parser("run", help="measure: run NAME [options of that measurement]", add_help=False)
    run.add_argument("name")
    run.add_argument("options", nargs=argparse.REMAINDER)
    report = commands.add_parser("report", help="the kept results as tables")
    report.add_argument("-o", "--out", type=Path, metavar="FILE", help="write a Markdown page (default: to stdout)")
    pictures = commands.add_parser("pictures", help="the kept results as pictures")
    pictures.add_argument("-o", "--out", type=Path, metavar="DIR", default=ROOT / "docs" / "pictures", help="folder")
    checking = commands.add_parser("check", help="short forms against the kept ratios; status 1 if one fell behind")
    checking.add_argument("names", nargs="*", metavar="NAME", help="of measurements [all that have ratios]")
    if words and find(words[0]) is not None:
        words.insert(0, "run")
    arguments = parser.parse_args(words)
    if arguments.command == "run":
        if (entry := find(arguments.name)) is None:
            known = ", ".join(found.name for found in CATALOGUE)
            raise UserError(f"run {arguments.name}: no such measurement; known are {known}")
        return int(importlib.import_module(entry.module).main(arguments.options))
    if arguments.command == "list":
        width = max(len(entry.name) for entry in CATALOGUE)
        for entry in CATALOGUE:
            print(f"{entry.name:{width}}  {entry.question}" + (f" (needs {entry.needs})" if entry.needs else ""))
        return 0
    if arguments.command == "check":
        from benchmarks.check import check

        return check(read_results(), arguments.names)
    from benchmarks import pictures as drawing
    from benchmarks import report as reporting

    try:
        if arguments.command == "pictures":
            arguments.out.mkdir(parents=True, exist_ok=True)
            for path in drawing.draw(read_results(), arguments.out):
                print(path)
        elif arguments.out is None:
            print(reporting.page(), end="")
        else:
            arguments.out.write_text(reporting.page())
    except OSError as error:
        raise UserError(f"-o {arguments.out}: {error.strerror or error}") from None
    return 0


if __name__ == "__main__":
    sys.exit(main())
