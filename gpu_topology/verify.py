"""A real collective over the chosen GPUs, under a time limit."""

from __future__ import annotations

import argparse

from gpu_topology.options import add_json, add_selection
from gpu_topology.topology import TopologyError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m gpu_topology verify`."""
    add_json(parser)
    add_selection(parser)


def run(arguments: argparse.Namespace) -> int:
    """Exit status 0 when a collective gives right answers in time, 1 when not."""
    raise TopologyError("verify is not here yet")
