"""Wrapped text and tables for a terminal, in the few styles of the report.

Not rich, which draws the live screens: importing it takes longer than the whole report.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TextIO

Piece = tuple[str, str]
"""Text and its style: words of `_CODES`, "" for none."""
Content = str | Piece | list[Piece]

_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "magenta": "35", "cyan": "36"}
"""Style -> parameter of Select Graphic Rendition (ECMA-48, 8.3.117)."""
_WIDTH = 80
"""Width in characters where no terminal reports its own."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table. Widths in characters; a column that does not wrap is as wide as its widest cell."""

    title: str = ""
    right: bool = False
    wraps: bool = False
    least: int = 1
    most: int | None = None
    style: str = "bold"
    """Style of the title."""


class Screen:
    """Lines of at most `width` characters, as `lines`; with escape sequences for the styles where `colour` is set."""

    def __init__(self, width: int = _WIDTH, colour: bool = False, rule: str = "─") -> None:
        self.width, self.colour, self.rule = width, colour, rule
        self.lines: list[str] = []

    @classmethod
    def of(cls, stream: TextIO, environ: Mapping[str, str]) -> Screen:
        """As wide as COLUMNS or the terminal; coloured if `stream` is a terminal, by NO_COLOR, FORCE_COLOR and TERM."""
        obeys = stream.isatty() and environ.get("TERM") not in ("dumb", "unknown")
        colour = bool((obeys or environ.get("FORCE_COLOR")) and not environ.get("NO_COLOR"))
        utf = (getattr(stream, "encoding", None) or "").lower().startswith("utf")
        return cls(_terminal_width(environ), colour, "─" if utf else "-")

    def text(self, content: Content, indent: int = 0, margin: int = 0) -> None:
        """Add text with `indent` spaces before each line, and at least `margin` after it."""
        for line in _wrapped(_pieces(content), max(1, self.width - indent - margin)):
            self.lines.append((" " * indent + self._drawn(line)).rstrip())

    def table(
        self, columns: Sequence[Column], rows: Sequence[Sequence[Content]], *, left: int = 1, gap: int = 2
    ) -> None:
        """Add rows of cells, below titles and a rule if any column has a title. `left`, `gap`: spaces before, between.

        In a table wider than the screen, the widest of the columns that wrap are made narrower.
        """
        cells = [[_pieces(cell) for cell in row] for row in rows]
        widths = self._widths(columns, cells, left + gap * (len(columns) - 1))
        if any(column.title for column in columns):
            titles = [[(column.title, column.style)] for column in columns]
            self._row(columns, titles, widths, left, gap)
            self.lines.append(self.rule * (left + sum(widths) + gap * (len(columns) - 1)))
        for row in cells:
            self._row(columns, row, widths, left, gap)

    def _widths(self, columns: Sequence[Column], rows: Sequence[Sequence[list[Piece]]], between: int) -> list[int]:
        """The width of each column: columns that wrap shrink until the table fits."""
        widths = []
        for at, column in enumerate(columns):
            found = max([display_width(column.title), column.least, *(_widest(row[at]) for row in rows)])
            widths.append(min(found, column.most or found))
        excess = between + sum(widths) - self.width
        while excess > 0:
            shrinking = [at for at, column in enumerate(columns) if column.wraps and widths[at] > column.least]
            if not shrinking:
                break
            widths[max(shrinking, key=lambda at: widths[at])] -= 1
            excess -= 1
        return widths

    def _row(
        self, columns: Sequence[Column], cells: Sequence[list[Piece]], widths: Sequence[int], left: int, gap: int
    ) -> None:
        """Add a row; its cells may have several lines."""
        wrapped = [list(_wrapped(cell, width)) for cell, width in zip(cells, widths, strict=True)]
        for lines in zip_longest(*wrapped, fillvalue=()):
            parts = []
            for column, width, line in zip(columns, widths, lines, strict=True):
                blank = " " * (width - sum(display_width(text) for text, _ in line))
                parts.append(blank + self._drawn(line) if column.right else self._drawn(line) + blank)
            self.lines.append((" " * left + (" " * gap).join(parts)).rstrip())

    def _drawn(self, pieces: Sequence[Piece]) -> str:
        """A line as text, with escape sequences where the screen has colour."""
        if not self.colour:
            return "".join(text for text, _ in pieces)
        return "".join(
            f"\x1b[{';'.join(_CODES[word] for word in style.split())}m{text}\x1b[0m" if style and text else text
            for text, style in pieces
        )


def display_width(text: str) -> int:
    """Columns of a terminal that `text` takes: two for wide characters, none for combining ones (UAX #11)."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(one) else 2 if east_asian_width(one) in "WF" else 1 for one in text)


def _terminal_width(environ: Mapping[str, str]) -> int:
    """COLUMNS, or the width of whichever of stdin, stdout and stderr is a terminal."""
    columns = environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns) > 0:
        return int(columns)
    for descriptor in range(3):
        try:
            return os.get_terminal_size(descriptor).columns or _WIDTH
        except OSError:
            continue
    return _WIDTH


def _pieces(content: Content) -> list[Piece]:
    """The content as pieces, with control characters (in a name, say) replaced: a terminal would obey them."""
    pieces = [(content, "")] if isinstance(content, str) else [content] if isinstance(content, tuple) else content
    return [(_harmless(text), style) for text, style in pieces]


def _harmless(text: str) -> str:
    """The text with control characters replaced, except line breaks."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one == "\n" else "\N{REPLACEMENT CHARACTER}" for one in text)


def _widest(pieces: Sequence[Piece]) -> int:
    """The display width of the widest line."""
    return max(map(display_width, "".join(text for text, _ in pieces).split("\n")))


def _wrapped(pieces: Sequence[Piece], width: int) -> Iterator[list[Piece]]:
    """The pieces of each line."""
    start = 0
    for line in "".join(text for text, _ in pieces).split("\n"):
        for begin, end in _lines(line, width):
            yield _part(pieces, start + begin, start + end)
        start += len(line) + 1


def _lines(line: str, width: int) -> Iterator[tuple[int, int]]:
    """Where each line begins and ends: between words; inside a word that is wider than a line, after a comma or "=" if
    possible."""
    begin, room = 0, width
    for word in re.finditer(r"\S+\s*|\s+", line) if display_width(line) > width else ():
        at, end = word.start(), word.end()
        needed = display_width(word[0].rstrip())
        if needed > room and at > begin:
            yield begin, at
            begin, room = at, width
        while needed > room:
            many = 1
            while display_width(line[at : at + many + 1]) <= room:
                many += 1
            # NAME=one,two: break after the last comma that fits, else after the last "=".
            ends = [line.rfind(sign, at, at + many) + 1 - at for sign in ",="]
            many = next((end for end in ends if end > 0), many)
            yield at, at + many
            at = begin = at + many
            room = width
            needed = display_width(line[at:end].rstrip())
        room -= display_width(line[at:end])
    yield begin, len(line)


def _part(pieces: Sequence[Piece], begin: int, end: int) -> list[Piece]:
    """The characters from `begin` up to `end`, with their styles, without trailing spaces."""
    found, at = [], 0
    for text, style in pieces:
        found.append((text[max(0, begin - at) : max(0, end - at)], style))
        at += len(text)
    while found and not found[-1][0].rstrip():
        found.pop()
    return [*found[:-1], (found[-1][0].rstrip(), found[-1][1])] if found else []
