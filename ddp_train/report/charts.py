"""Chart geometry: turns numbers over epochs into paths, ticks and labels, which a template draws as SVG. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 440.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 14.0, 12.0, 30.0
MOST_POINTS = 600
"""Most points of a curve: a screen cannot show more side by side."""
MARKED_UP_TO = 30
"""Up to this many points of a curve, each is marked by a dot."""
LOG_FROM = 50.0
"""Ratio of the largest to the smallest value above which a scale that may be logarithmic is logarithmic."""
TICKS = 5
LARGEST = 1e150

Values = Sequence[float | None]
Form = Callable[[float], str]


@dataclass(frozen=True)
class Series:
    """The data of a curve. values: one for each epoch; color: its number in the palette of the style, from 1."""

    name: str
    values: Values
    color: int = 1


@dataclass(frozen=True)
class Curve:
    """A curve as it is drawn. path: SVG path data; dots: (x, y) of each marked point; ys, texts: the values by x."""

    name: str
    color: int
    path: str
    dots: tuple[tuple[float, float], ...]
    ys: tuple[float | None, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Chart:
    """One chart. x_ticks, y_ticks: (position, label); xs: the x of each point; labels: the epoch of each point."""

    title: str
    unit: str
    summary: str
    curves: tuple[Curve, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    xs: tuple[float, ...]
    labels: tuple[str, ...]
    log: bool

    @property
    def right(self) -> float:
        """The x of the plot's right edge."""
        return WIDTH - RIGHT

    @property
    def bottom(self) -> float:
        """The y of the plot's bottom edge."""
        return HEIGHT - BOTTOM

    @property
    def hover(self) -> dict[str, object]:
        """The data that the page's script shows at a point."""
        curves = [{"name": one.name, "color": one.color, "ys": one.ys, "texts": one.texts} for one in self.curves]
        return {"xs": self.xs, "labels": self.labels, "curves": curves}


def chart(
    title: str, unit: str, epochs: Sequence[int], series: Iterable[Series], form: Form, *, may_be_log: bool = False
) -> Chart | None:
    """Lay out a chart; None where no value of any series is known. form: formats a value as text."""
    kept = positions(len(epochs))
    shown = [(one, [_drawable(one.values[at]) for at in kept]) for one in series]
    shown = [(one, values) for one, values in shown if any(value is not None for value in values)]
    known = [value for _, values in shown for value in values if value is not None]
    if not known:
        return None
    log = may_be_log and min(known) > 0 and max(known) > LOG_FROM * min(known)
    ticks = log_ticks(min(known), max(known)) if log else linear_ticks(min(0.0, *known), max(0.0, *known))
    low, high = min(ticks[0], min(known)), max(ticks[-1], max(known))
    scale = math.log10 if log else float

    def y(value: float) -> float:
        """The y of a value in the chart."""
        share = (scale(value) - scale(low)) / ((scale(high) - scale(low)) or 1.0)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    chosen = [epochs[at] for at in kept]
    first, span = chosen[0], max(1, chosen[-1] - chosen[0])
    xs = tuple(round(LEFT + (epoch - first) / span * (WIDTH - LEFT - RIGHT), 1) for epoch in chosen)
    curves = tuple(_curve(one, values, xs, y, form) for one, values in shown)
    x_ticks = tuple((xs[0] + (tick - first) / span * (WIDTH - LEFT - RIGHT), f"{tick}") for tick in _epochs(chosen))
    y_ticks = tuple((y(tick), form(tick)) for tick in ticks)
    summary = "; ".join(_in_words(one.name, values, chosen, form) for one, values in shown)
    return Chart(title, unit, summary, curves, x_ticks, y_ticks, xs, tuple(map(str, chosen)), log)


def positions(count: int, most: int = MOST_POINTS) -> list[int]:
    """Indices of the epochs to show, of `count`: all, or every k-th and the last."""
    step = max(1, -(-count // most))
    found = list(range(0, count, step))
    return [*found, count - 1] if count and found[-1] != count - 1 else found


def _drawable(value: float | None) -> float | None:
    """The value; None where it has diverged so far that it cannot be drawn."""
    return value if value is not None and abs(value) < LARGEST else None


def _curve(one: Series, values: Values, xs: Sequence[float], y: Callable[[float], float], form: Form) -> Curve:
    """Lay out one curve; an unknown value leaves a gap."""
    ys = tuple(None if value is None else y(value) for value in values)
    parts, pen = [], "M"
    for x, place in zip(xs, ys, strict=True):
        if place is None:
            pen = "M"
            continue
        parts.append(f"{pen}{x:g} {place:g}")
        pen = "L"
    there = [(x, place) for x, place in zip(xs, ys, strict=True) if place is not None]
    dots = there if len(there) <= MARKED_UP_TO else []
    texts = tuple("-" if value is None else form(value) for value in values)
    return Curve(one.name, one.color, "".join(parts), tuple(dots), ys, texts)


def _in_words(name: str, values: Values, epochs: Sequence[int], form: Form) -> str:
    """A curve's first and last known value in words, for readers who cannot see the picture."""
    known = [(epoch, value) for epoch, value in zip(epochs, values, strict=True) if value is not None]
    (first, begin), (last, end) = known[0], known[-1]
    return f"{name}: {form(begin)} in epoch {first}, {form(end)} in epoch {last}"


def linear_ticks(low: float, high: float, count: int = TICKS) -> list[float]:
    """About `count` round numbers, from at most `low` to at least `high`."""
    span = (high - low) or abs(high) or 1.0
    raw = span / count
    size = 10.0 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
    step = next((size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * 0.999), size * 10)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with their multiples by 2 and 5, or by 3, where there are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, -(-(last - first) // TICKS))
    digits = (1, 2, 5) if last - first <= 2 else (1, 3) if last - first <= 4 else (1,)
    found = [digit * 10.0**power for power in range(first, last + every, every) for digit in digits]
    below = [tick for tick in found if tick <= low] or found[:1]
    above = [tick for tick in found if tick >= high] or found[-1:]
    return [tick for tick in found if below[-1] <= tick <= above[0]]


def _epochs(epochs: Sequence[int]) -> list[int]:
    """Ticks of the epoch axis: whole numbers within its range."""
    if len(epochs) == 1:
        return [epochs[0]]
    found = linear_ticks(epochs[0], epochs[-1])
    return sorted({round(tick) for tick in found if epochs[0] <= tick <= epochs[-1]})
