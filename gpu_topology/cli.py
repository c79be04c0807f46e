"""`python -m gpu_topology report | snapshot | select | env | draw | monitor | verify`.

Data goes to stdout, messages to stderr. A user's mistake is one line beginning `error:` and exit status 2. The driver
is read first, by a child process, while this process imports the rest of the program (commands.py). So this module
imports only what the child needs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from gpu_topology.driver.child_process import InChild, begin
from gpu_topology.topology import Topology

READING = ("report", "snapshot", "select", "env", "draw", "verify")
"""The commands that read the machine once, in a child process. `monitor` reads repeatedly, in the main process."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit status: the command's own, 2 for a user's mistake, 130 after Ctrl-C."""
    if sys.stdout is None:  # closed by the caller (`>&-`), who may want only the exit status
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    given = _with_command(sys.argv[1:] if argv is None else list(argv))
    elsewhere = any(word.startswith("--from") or word in ("-h", "--help") for word in given)
    try:
        with begin() if given[0] in READING and not elsewhere else nullcontext() as reading:
            return _status(given, reading)
    except KeyboardInterrupt:  # Ctrl-C outside of `exit_status`
        return 130


def _status(given: list[str], reading: InChild[Topology] | None) -> int:
    """Run the command; its exit status."""
    from ddp_core.cli import cannot_write, exit_status

    def run() -> int:
        """Parse the options and run the command; its exit status."""
        from gpu_topology.commands import parse

        arguments = parse(given)
        arguments.reading = reading
        status: int = arguments.run(arguments)
        return status

    try:
        return exit_status(run)
    except OSError as error:  # stdout is a file on a full disk
        return cannot_write(error)


def _with_command(argv: list[str]) -> list[str]:
    """The arguments, with `report` as the default command: what users of nvidia-smi expect."""
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help", "--version")):
        return ["report", *argv]
    return argv
