"""The few shapes that a picture is made of, and text that is sure to fit: pure data, in pixels, y pointing down.

`style` names a look that svg.py defines ("card plain", "card chosen", ...); a layout never names colours.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, takewhile
from typing import Literal, TypeAlias

Anchor = Literal["start", "middle", "end"]
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle with round corners. `name` says what it represents ("GPU 3"), `hint` is shown on hovering."""

    x: float
    y: float
    width: float
    height: float
    style: str
    name: str = ""
    hint: str = ""

    @property
    def right(self) -> float:
        """The x of its right edge."""
        return self.x + self.width

    @property
    def bottom(self) -> float:
        """The y of its lower edge."""
        return self.y + self.height

    @property
    def middle(self) -> float:
        """The x of its middle."""
        return self.x + self.width / 2


@dataclass(frozen=True, slots=True)
class Wire:
    """A line through `points` with round corners, `thickness` pixels wide."""

    points: tuple[Point, ...]
    style: str
    thickness: float = 1.5
    name: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Label:
    """One line of text; (x, y) is the anchor on the base line."""

    x: float
    y: float
    text: str
    size: float
    style: str = "text"
    anchor: Anchor = "start"
    bold: bool = False

    @property
    def left(self) -> float:
        """The x where the text begins at its widest."""
        return self.x - text_width(self.text, self.size, self.bold) * {"start": 0, "middle": 0.5, "end": 1}[self.anchor]

    @property
    def right(self) -> float:
        """The x where the text ends at its widest."""
        return self.left + text_width(self.text, self.size, self.bold)


Shape: TypeAlias = Box | Wire | Label


@dataclass(frozen=True, slots=True)
class Picture:
    """Shapes in painting order on a canvas; `title` and `description` are for readers who cannot see it."""

    width: float
    height: float
    title: str
    description: str
    shapes: tuple[Shape, ...]


# Advance widths of DejaVu Sans, the widest font that a viewer may have, as fractions of the font size, rounded up.
_WIDTHS = {" ijlI.,:;'|": 0.34, "-frtJ!()[]/": 0.42, "kcsvxyz": 0.6, "mwMW%@…": 1.0}
_LOWER, _UPPER, _OTHER = 0.64, 0.79, 1.0
_BOLD = 1.1


def text_width(text: str, size: float, bold: bool = False) -> float:
    """An upper bound of the width of a line of text in any usual sans-serif font."""
    return sum(map(_letter_width, text)) * size * (_BOLD if bold else 1.0)


@cache
def _letter_width(letter: str) -> float:
    """A letter's width as a share of the font size."""
    for letters, width in _WIDTHS.items():
        if letter in letters:
            return width
    return _OTHER if ord(letter) > 0x17F else _UPPER if letter.isupper() else _LOWER


def shorten(text: str, width: float, size: float, bold: bool = False) -> str:
    """The text, cut with "…" where it would be wider than `width`."""
    if text_width(text, size, bold) <= width:
        return text
    room = width - text_width("…", size, bold)
    widths = accumulate(text_width(letter, size, bold) for letter in text)
    return text[: sum(1 for _ in takewhile(lambda so_far: so_far <= room, widths))].rstrip(" ,:;.-") + "…"


def wrap(text: str, width: float, size: float, most: int, bold: bool = False) -> tuple[str, ...]:
    """The text in at most `most` lines of `width`, cut with "…" where it does not fit."""
    lines = list(_fill(text.split(), width, size, bold))
    if len(lines) > most:
        lines = [*lines[: most - 1], " ".join(lines[most - 1 :])]
    return tuple(shorten(line, width, size, bold) for line in lines)


def _fill(words: Iterable[str], width: float, size: float, bold: bool) -> Iterable[str]:
    """The words in lines no wider than `width`, a longer word alone on its line."""
    line = ""
    for word in words:
        longer = f"{line} {word}".strip()
        if line and text_width(longer, size, bold) > width:
            yield line
            line = word
        else:
            line = longer
    if line:
        yield line
