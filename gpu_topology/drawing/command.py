"""`python -m gpu_topology draw -o machine.svg`: a picture of the machine and of the selection on it."""

from __future__ import annotations

import argparse
import sys

from ddp_core.files import write_whole
from gpu_topology.cli_options import add_output, add_selection, add_source, answer
from gpu_topology.drawing.picture import layout
from gpu_topology.drawing.svg import to_svg


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m gpu_topology draw`."""
    add_source(parser)
    add_output(parser)
    add_selection(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the picture to the file, or to stdout. TopologyError naming the file when it cannot be written."""
    answers = answer(arguments)
    text = to_svg(layout(answers.topology, answers.selection))
    if arguments.output is None:
        print(text, end="")
        return 0
    write_whole(arguments.output, text)
    count = len(answers.topology.gpus)
    print(f"wrote {arguments.output}: {count} GPU{'s' * (count != 1)}", file=sys.stderr)
    return 0
