"""The style of all pictures: one palette, light axes, no frames.

Figures are made without pyplot: no global state, no display, no effect on a user's own matplotlib, which is imported
when something is drawn.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ddp_core.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Panels: TypeAlias = tuple[Figure, list[Axes]]

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")
"""The palette of Okabe and Ito: its colors are distinct with every common color blindness."""
INK, SOFT, GRID = "#222222", "#6B6B6B", "#E3E3E3"
DPI = 150


def literal(name: str) -> str:
    """Make matplotlib show a user's text as it is: no mathtext between two `$`, no unprintable characters."""
    return "".join(c if c.isprintable() else "\ufffd" for c in name).replace("$", r"\$")


def short(name: str, most: int = 32) -> str:
    """As `literal`, with the middle of a name of more than `most` letters cut out, so that the axes keep their room."""
    return literal(name if len(name) <= most else f"{name[: most // 2]}…{name[1 - most // 2 :]}")


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure of `width` x `height` inches (150 pixels per inch) with a bold title."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.03, hspace=0.03)
    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")
    figure.suptitle(literal(title), x=0.012, ha="left", fontsize=14, fontweight="bold", color=INK)
    return figure


def style(axes: Axes, title: str, unit: str = "", x_label: str = "") -> None:
    """A bold title on the left, the unit of the y axis in small print on the right, a light grid."""
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK)
    axes.set_title(unit, loc="right", fontsize=9, color=SOFT)
    axes.set_xlabel(x_label, fontsize=10, color=SOFT)
    axes.tick_params(which="both", colors=SOFT, labelsize=9, length=0)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(SOFT)


def legend(axes: Axes, *, loc: str = "best", ncols: int = 1, beside: bool = False) -> None:
    """Add a legend of the labelled curves; `loc` is a location as matplotlib names it. beside: right of the panel."""
    look: dict[str, Any] = {"fontsize": 9, "frameon": True, "framealpha": 0.9, "edgecolor": "none"}
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1, 1)} if beside else {"loc": loc}
    shown = axes.legend(ncols=ncols, **place, **look)
    for text in shown.get_texts():
        text.set_color(INK)


def percent_axis(axes: Axes) -> None:
    """Show the values of the y axis, fractions of 1, in percent."""
    from matplotlib.ticker import PercentFormatter

    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))


def name_ticks(axes: Axes, positions: Sequence[int], names: Sequence[str], *, size: float, turn: float) -> None:
    """Put names along the x axis, rotated by `turn` degrees (0: horizontal)."""
    turned: dict[str, Any] = {"rotation": turn, "ha": "right", "rotation_mode": "anchor"} if turn else {}
    axes.set_xticks(positions, [short(name) for name in names], fontsize=size, color=INK, **turned)


def grid_of_panels(width: float, height: float, title: str, rows: int, columns: int, count: int) -> Panels:
    """A figure and `count` panels in rows and columns; the places after the last one stay empty."""
    figure = new_figure(width, height, title)
    panels = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for panel in panels[count:]:
        panel.set_axis_off()
    return figure, panels[:count]


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Save the figure as a PNG, replacing `path`; warnings become one note. UserError when it cannot be written."""
    missing = _find_fonts(figure)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", "Glyph")  # `missing` lists these
        with replacing(path) as file:
            figure.savefig(file, format="png")
    found = list(dict.fromkeys(" ".join(str(warning.message).split()) for warning in caught))
    if missing:
        found.insert(0, f"no installed font has {missing[:10]!r} (for Chinese, Japanese and Korean: fonts-noto-cjk)")
    if found:
        print(f"note: {Path(path).name}: {'; '.join(found)}", file=sys.stderr, flush=True)


def save_if_possible(make: Callable[[], Figure], path: Path) -> list[Path]:
    """As `save`, but a picture that cannot be drawn only causes a note on stderr. Returns the files written."""
    try:
        save(make(), path)
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        print(f"note: {path.name} could not be drawn: {reason}", file=sys.stderr, flush=True)
        return []
    return [path]


def _find_fonts(figure: Figure) -> str:
    """Add fonts to all texts for characters that the usual one lacks; returns the characters that no font has."""
    from matplotlib import font_manager
    from matplotlib.text import Text

    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    usual = font_manager.get_font(font_manager.findfont(font_manager.FontProperties())).get_charmap()
    missing = {ord(c) for text in texts for c in text.get_text() if not c.isspace()} - usual.keys()
    families = []
    for entry in font_manager.fontManager.ttflist if missing else ():
        with suppress(RuntimeError, OSError):  # a font file that is damaged or gone
            font = font_manager.get_font(entry.fname)
            # Emoji fonts of fixed size cannot be drawn, and a "Last Resort" font draws boxes.
            if font.scalable and "Last Resort" not in entry.name and (known := missing & font.get_charmap().keys()):
                families.append(entry.name)
                missing -= known
    for text in texts if families else ():
        text.set_fontfamily([*text.get_fontfamily(), *families])
    return "".join(map(chr, sorted(missing)))
