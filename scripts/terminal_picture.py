"""A picture of a real command in a terminal: runs it on a pseudo-terminal and exports its last screen as SVG.

    python scripts/terminal_picture.py docs/terminal.svg --columns 100 -- python launch.py --auto --dataset digits

Needs the `docs` extra (pyte, the terminal emulator that understands a live display). What scrolled off is kept.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import pty
import re
import struct
import sys
import termios
from collections.abc import Mapping
from pathlib import Path

import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

LINES = 120


def run_on_terminal(command: list[str], columns: int) -> tuple[pyte.Screen, int]:
    """The screen after `command` has ended, and its exit status."""
    screen = pyte.Screen(columns, LINES)
    stream = pyte.ByteStream(screen)
    child, terminal = pty.fork()
    if child == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, columns, 0, 0))
        os.environ["TERM"] = "xterm-256color"
        os.execvp(command[0], command)
    with contextlib.suppress(OSError):  # Linux raises this once the last process has closed its end
        while data := os.read(terminal, 1 << 16):
            stream.feed(data)
    return screen, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def as_text(screen: pyte.Screen) -> Text:
    """The screen's characters with their colours, without empty lines at the end."""
    lines = [_line(screen.buffer[row], screen.columns) for row in range(screen.lines)]
    while lines and not lines[-1].plain.strip():
        lines.pop()
    return Text("\n").join(lines)


def _line(cells: Mapping[int, pyte.screens.Char], columns: int) -> Text:
    """One line of the screen with its colours."""
    line = Text()
    for column in range(columns):
        cell = cells[column]
        line.append(cell.data, Style(color=_colour(cell.fg), bold=cell.bold, italic=cell.italics))
    line.rstrip()
    return line


def _colour(name: str) -> str | None:
    """pyte's names of the sixteen colours, or six hexadecimal digits, as rich writes them."""
    if name == "default":
        return None
    if len(name) == 6 and all(digit in "0123456789abcdef" for digit in name):
        return f"#{name}"
    return {"brown": "yellow", "brightbrown": "bright_yellow"}.get(name, name.replace("bright", "bright_"))


def main() -> int:
    """Run, export; the command's exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("svg", type=Path)
    parser.add_argument("--columns", type=int, default=100)
    parser.add_argument("--title", default="")
    parser.add_argument("--prompt", help="the command as it is shown (default: as it is run)")
    parser.add_argument("command", nargs="+", help="after --")
    arguments = parser.parse_args()
    screen, status = run_on_terminal(arguments.command, arguments.columns)
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=arguments.columns, file=nowhere, force_terminal=True)
        console.print(Text("$ " + (arguments.prompt or " ".join(arguments.command)), style="bold"))
        console.print(as_text(screen), soft_wrap=True)
        svg = console.export_svg(title=arguments.title)
    # Self-contained: any monospaced font serves, none is fetched.
    arguments.svg.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL), encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
