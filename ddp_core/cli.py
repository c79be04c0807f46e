"""An argument parser whose mistakes are one line and status 2, as everywhere here."""

from __future__ import annotations

import argparse
from typing import NoReturn

from ddp_core.errors import UserError


class CommandLine(argparse.ArgumentParser):
    """argparse without abbreviations; `parse_args` raises UserError in place of printing the usage."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """One line for the user."""
        raise UserError(f"{message} (see --help)")
