"""A `Picture` as one self-contained SVG: no external fonts, scripts or files, readable on any background."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final
from xml.sax.saxutils import escape, quoteattr

from gpu_topology.drawing.shapes import Box, Label, Picture, Point, Wire

_FONT: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
_CORNER: Final = 8.0

# style: (fill, stroke, stroke width, corner radius)
_BOXES: Final = {
    "page": ("#ffffff", "#d5dce3", 1.0, 14.0),
    "node": ("#f3f6f9", "#c3ccd6", 1.2, 12.0),
    "node head": ("#e3e9ef", "none", 0.0, 8.0),
    "bridge": ("#dfe6ee", "#b4c0cc", 1.0, 6.0),
    "switch": ("#d3ecf1", "#86bcc8", 1.0, 6.0),
    "card plain": ("#ffffff", "#9aa7b4", 1.4, 9.0),
    "card chosen": ("#f1fae3", "#5c9400", 2.8, 9.0),
    "card left": ("#eceff2", "#c3ccd6", 1.2, 9.0),
    "card lost": ("#fdeceb", "#d5544b", 1.6, 9.0),
    "badge": ("#5c9400", "none", 0.0, 8.0),
    "slice": ("#d6dde5", "#9aa7b4", 0.8, 2.0),
    "slice chosen": ("#8cc63f", "#5c9400", 0.8, 2.0),
    "nvswitch": ("#5c9400", "none", 0.0, 8.0),
    "nvswitch idle": ("#8fa37a", "none", 0.0, 8.0),
    "nvswitch bad": ("#b9443b", "none", 0.0, 8.0),
    "pill": ("#ffffff", "#5c9400", 1.2, 9.0),
    "pill idle": ("#ffffff", "#a3b389", 1.0, 9.0),
    "pill bad": ("#ffffff", "#d5544b", 1.2, 9.0),
    "tag PIX": ("#0b7285", "none", 0.0, 7.0),
    "tag PXB": ("#0b7285", "none", 0.0, 7.0),
    "tag PHB": ("#a86400", "none", 0.0, 7.0),
    "tag NODE": ("#a86400", "none", 0.0, 7.0),
    "tag SYS": ("#8b3aa8", "none", 0.0, 7.0),
    "tag": ("#66727f", "none", 0.0, 7.0),
}
_WIRES: Final = {
    "pcie": ("#8d9aa8", ""),
    "gap": ("#ffffff", ""),
    "nvlink": ("#5c9400", ""),
    "nvlink idle": ("#b9c9a0", ""),
    "nvlink bad": ("#d5544b", "7 5"),
}
_TEXTS: Final = {
    "text": "#1c2733",
    "quiet": "#55616e",
    "reason": "#7a5200",
    "bad": "#b3261e",
    "good": "#3f6b00",
    "badge text": "#ffffff",
}
_NOT_XML: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_svg(picture: Picture) -> str:
    """The picture as SVG text, ending with a line break."""
    size = f"{_number(picture.width)} {_number(picture.height)}"
    width, height = size.split()
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" width="{width}" height="{height}" role="img" '
        f'aria-labelledby="title description" font-family={quoteattr(_FONT)}>',
        f'<title id="title">{_text(picture.title)}</title>',
        f'<desc id="description">{_text(picture.description)}</desc>',
        *(line for shape in picture.shapes for line in _draw(shape)),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _draw(shape: Box | Wire | Label) -> Iterator[str]:
    """The SVG elements of a shape."""
    if isinstance(shape, Box):
        fill, stroke, thickness, radius = _BOXES[shape.style]
        edge = "" if stroke == "none" else f' stroke="{stroke}" stroke-width="{_number(thickness)}"'
        place = " ".join(
            f'{name}="{_number(value)}"'
            for name, value in (("x", shape.x), ("y", shape.y), ("width", shape.width), ("height", shape.height))
        )
        yield f'<rect {place} rx="{_number(min(radius, shape.height / 2))}" fill="{fill}"{edge}{_hint(shape, "rect")}'
    elif isinstance(shape, Wire):
        colour, dashes = _WIRES[shape.style]
        dash = f' stroke-dasharray="{dashes}"' if dashes else ""
        yield (
            f'<path d="{_path(shape.points)}" fill="none" stroke="{colour}" '
            f'stroke-width="{_number(shape.thickness)}" stroke-linejoin="round"{dash}{_hint(shape, "path")}'
        )
    else:
        weight = ' font-weight="700"' if shape.bold else ""
        anchor = "" if shape.anchor == "start" else f' text-anchor="{shape.anchor}"'
        yield (
            f'<text x="{_number(shape.x)}" y="{_number(shape.y)}" font-size="{_number(shape.size)}" '
            f'fill="{_TEXTS[shape.style]}"{weight}{anchor}>{_text(shape.text)}</text>'
        )


def _hint(shape: Box | Wire, element: str) -> str:
    """The end of the element, with what a viewer shows on hovering and a screen reader reads."""
    words = shape.hint or shape.name
    return f"><title>{_text(words)}</title></{element}>" if words else "/>"


def _path(points: tuple[Point, ...]) -> str:
    """A path through the points, with rounded corners."""
    parts = [f"M{_pair(points[0])}"]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        radius = min(_CORNER, _distance(before, corner) / 2, _distance(corner, after) / 2)
        parts.append(
            f"L{_pair(_towards(corner, before, radius))} Q{_pair(corner)} {_pair(_towards(corner, after, radius))}"
        )
    return " ".join([*parts, f"L{_pair(points[-1])}"])


def _distance(a: Point, b: Point) -> float:
    """The distance of two points along the axes."""
    return abs(a[0] - b[0]) + abs(a[1] - b[1])  # the lines run along the axes


def _towards(start: Point, end: Point, far: float) -> Point:
    """The point `far` from `start` on the line to `end`."""
    whole = _distance(start, end)
    share = far / whole if whole else 0.0
    return start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share


def _pair(point: Point) -> str:
    """A point as `x y`."""
    return f"{_number(point[0])} {_number(point[1])}"


def _number(value: float) -> str:
    """A number with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0")


def _text(words: str) -> str:
    """Text for XML; characters that XML forbids are replaced."""
    return escape(_NOT_XML.sub("\ufffd", words))
