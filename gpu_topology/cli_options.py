"""The options that several commands share, and what they yield: a topology, and a selection on it.

A command's module declares them with `add_...(parser)` and gets its answers with `read_source` or `answer`.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddp_core.cli import memory_size
from gpu_topology.select.from_environment import from_environment, read_inherited
from gpu_topology.select.select import POLICIES, Selection, SelectionError, SelectionRequest, select
from gpu_topology.topology import Topology

if TYPE_CHECKING:
    from gpu_topology.verify_cache import Verdict


@dataclass(frozen=True, slots=True)
class Answers:
    """The input of a command that works on a selection. `environ` is the caller's environment."""

    topology: Topology
    request: SelectionRequest
    selection: Selection
    environ: Mapping[str, str]

    @property
    def verdict(self) -> Verdict | None:
        """The result of `verify` on these GPUs; None for fewer than two GPUs, or where it has not run."""
        if len(self.selection.indices) < 2:
            return None
        from gpu_topology.verify_cache import recall

        return recall(self.topology, self.selection.uuids)


def add_source(parser: argparse.ArgumentParser) -> None:
    """--from FILE: a saved snapshot instead of this machine."""
    parser.add_argument("--from", dest="source", metavar="FILE", help="a saved snapshot instead of this machine")


def add_json(parser: argparse.ArgumentParser) -> None:
    """--json."""
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def add_output(parser: argparse.ArgumentParser) -> None:
    """-o FILE."""
    parser.add_argument("-o", "--output", metavar="FILE", help="write here instead of stdout")


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Which GPUs: --count, --policy, --gpus, --exclude, --allow-busy, --min-memory."""
    parser.add_argument("--count", "--nproc", type=int, metavar="N", help="how many GPUs (default: all of the group)")
    parser.add_argument("--policy", choices=POLICIES, default="largest", help="which group (default: largest)")
    parser.add_argument(
        "--gpus", "--devices", type=some_names, default=(), metavar="LIST", help="exactly these: 0,2 or UUIDs"
    )
    parser.add_argument("--exclude", type=names, default=(), metavar="LIST", help="never these: indices or UUIDs")
    parser.add_argument("--allow-busy", action="store_true", help="also GPUs that others use")
    parser.add_argument(
        "--min-memory", type=memory, default=0, metavar="SIZE", help="least memory of a GPU, as in 20GB or 20GiB"
    )


def names(text: str) -> tuple[str, ...]:
    """ "0,2" or UUIDs with commas between, as a tuple."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def some_names(text: str) -> tuple[str, ...]:
    """Like `names`, with at least one name: an empty `--gpus "$MINE"` would otherwise select every GPU."""
    if found := names(text):
        return found
    raise argparse.ArgumentTypeError(f"{text!r} names no GPU: expected indices or UUIDs as in 0,2")


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not re.fullmatch("0*[1-9][0-9]{0,8}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def memory(text: str) -> int:
    """Bytes from "24G", "800M", "24GiB", as `launch.py` reads them too."""
    size = memory_size(text)
    if size is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 24G or 800M")
    return size


def read_source(arguments: argparse.Namespace) -> Topology:
    """The snapshot that --from names, else this machine's topology (`arguments.reading`: a read in progress, if any).
    TopologyError when the file is not a snapshot."""
    if arguments.source is not None:
        from gpu_topology import snapshot

        return snapshot.load(arguments.source)
    from gpu_topology.driver.read import read_or_explain

    return read_or_explain(getattr(arguments, "reading", None))


def answer(arguments: argparse.Namespace) -> Answers:
    """The topology and the selection that the options ask for. SelectionError when they cannot be met."""
    topology = read_source(arguments)
    environ = dict(os.environ)  # os.environ decodes a name and its value at each access
    request = SelectionRequest(
        count=arguments.count,
        policy=arguments.policy,
        gpus=arguments.gpus,
        exclude=arguments.exclude,
        allow_busy=arguments.allow_busy,
        min_memory=arguments.min_memory,
    )
    # This machine's processes and libcuda say nothing about the machine of a snapshot.
    live = arguments.source is None
    inherited = read_inherited(topology, environ) if live else from_environment(environ)
    request = inherited.completes(request)
    return Answers(topology, request, select(topology, request), environ)


def insist(selection: Selection) -> None:
    """Raise SelectionError for an empty selection; print the selection's warnings on stderr."""
    if not selection.indices:
        raise SelectionError(selection.reason)
    for warning in selection.warnings:
        print(f"warning: {warning}", file=sys.stderr)
