"""The front of all measurements.

python -m benchmarks list                       # what there is
python -m benchmarks step_overhead [...]        # one of them, with its own options (or: run step_overhead)
python -m benchmarks report [-o FILE.md]        # the kept results as a page of tables
python -m benchmarks pictures [-o DIR]          # and as pictures
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.catalogue import CATALOGUE, find
from benchmarks.machine import ROOT
from ddp_core.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measurements, one command each.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="what can be measured")
    run = commands.add_parser("run", help="measure: run NAME [options of that measurement]", add_help=False)
    run.add_argument("name")
    run.add_argument("options", nargs=argparse.REMAINDER)
    report = commands.add_parser("report", help="the kept results as tables")
    report.add_argument("-o", "--out", type=Path, metavar="FILE", help="write a Markdown page (default: to stdout)")
    pictures = commands.add_parser("pictures", help="the kept results as pictures")
    pictures.add_argument("-o", "--out", type=Path, metavar="DIR", default=ROOT / "docs" / "pictures", help="folder")
    words = list(sys.argv[1:] if argv is None else argv)
    if words and find(words[0]) is not None:
        words.insert(0, "run")
    arguments = parser.parse_args(words)
    if arguments.command == "pictures":
        return _pictures(arguments.out)
    if arguments.command == "list":
        return _list()
    if arguments.command == "report":
        return _report(arguments.out)
    return _run(arguments.name, arguments.options)


def _list() -> int:
    width = max(len(entry.name) for entry in CATALOGUE)
    for entry in CATALOGUE:
        print(f"{entry.name:{width}}  {entry.question}" + (f" (needs {entry.needs})" if entry.needs else ""))
    return 0


def _run(name: str, options: list[str]) -> int:
    entry = find(name)
    if entry is None:
        known = ", ".join(found.name for found in CATALOGUE)
        print(f"error: run {name}: no such measurement; known are {known}", file=sys.stderr)
        return 2
    return int(importlib.import_module(entry.module).main(options))


def _pictures(folder: Path) -> int:
    from benchmarks.pictures import draw
    from benchmarks.report import read_results

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in draw(read_results(), folder):
            print(path)
    except (OSError, UserError) as error:
        print(f"error: -o {folder}: {error}", file=sys.stderr)
        return 2
    return 0


def _report(out: Path | None) -> int:
    from benchmarks.report import page

    text = page()
    if out is None:
        print(text, end="")
        return 0
    try:
        out.write_text(text)
    except OSError as error:
        print(f"error: -o {out}: {error.strerror or error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
