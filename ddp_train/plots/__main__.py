"""`python -m ddp_train.plots COMMAND ... -o FILE.png`; a mistake is one line on stderr and status 2."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from ddp_core.cli import CommandLine, exit_status
from ddp_core.errors import UserError

# Command -> what it draws. Each is a module of this package with add_arguments(parser) and run(arguments).
COMMANDS = {
    "augment": "a contact sheet: what each option of augmentation does to the same images",
    "history": "loss, accuracy, learning rate and throughput of a run over its epochs",
    "gradient_flow": "mean and largest gradient of each layer over a run",
    "schedules": "the learning rate over a run, for every scheduler",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return exit_status(lambda: _draw(argv))


def _draw(argv: Sequence[str] | None) -> None:
    """Parse the command line and draw."""
    parser = CommandLine(prog="python -m ddp_train.plots", description="Pictures of training.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, about in COMMANDS.items():
        command = commands.add_parser(name, help=about, description=about)
        command.add_argument("-o", "--output", metavar="FILE.png", required=True, help="where the picture goes")
        importlib.import_module(f"ddp_train.plots.{name}").add_arguments(command)
    arguments = parser.parse_args(argv)
    if Path(arguments.output).suffix.lower() not in ("", ".png"):
        raise UserError(f"--output takes a name that ends in .png, not {arguments.output!r}")
    importlib.import_module(f"ddp_train.plots.{arguments.command}").run(arguments)


if __name__ == "__main__":
    sys.exit(main())
