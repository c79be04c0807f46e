"""`python -m gpu_topology draw -o machine.svg`: a picture of the machine."""

from __future__ import annotations

import argparse

from gpu_topology.options import add_output, add_selection, add_source
from gpu_topology.topology import TopologyError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m gpu_topology draw`."""
    add_source(parser)
    add_output(parser)
    add_selection(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the picture; the exit status."""
    raise TopologyError("draw is not here yet")
