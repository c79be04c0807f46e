"""The geometry of a chart: numbers over the epochs to paths, ticks and labels, which a template draws as SVG. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 440.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 14.0, 12.0, 30.0
MOST_POINTS = 600
"""Of a curve: more than a screen shows side by side."""
MARKED_UP_TO = 30
"""Points up to which each is marked by a dot."""
LOG_FROM = 50.0
"""From this ratio of the largest to the smallest value on, a scale that may be logarithmic is."""
TICKS = 5
LARGEST = 1e150

Values = Sequence[float | None]
Form = Callable[[float], str]


@dataclass(frozen=True)
class Series:
    """A curve. values: one for each epoch; color: from 1, of the style's palette."""

    name: str
    values: Values
    color: int = 1


@dataclass(frozen=True)
class Curve:
    """A curve as it is drawn. path: of an SVG; dots: (x, y) where each point is marked; texts: a value for each x."""

    name: str
    color: int
    path: str
    dots: tuple[tuple[float, float], ...]
    ys: tuple[float | None, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Chart:
    """One chart. x_ticks, y_ticks: (place, label); xs: the place of each point; labels: its epoch."""

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
        """Where the plot ends."""
        return WIDTH - RIGHT

    @property
    def bottom(self) -> float:
        """Where the plot ends."""
        return HEIGHT - BOTTOM

    @property
    def hover(self) -> dict[str, object]:
        """What the page's script shows at a point."""
        curves = [{"name": one.name, "color": one.color, "ys": one.ys, "texts": one.texts} for one in self.curves]
        return {"xs": self.xs, "labels": self.labels, "curves": curves}


def chart(
    title: str, unit: str, epochs: Sequence[int], series: Iterable[Series], form: Form, *, may_be_log: bool = False
) -> Chart | None:
    """None where no value of any series is known. form: a value in words."""
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
    """Which of so many epochs are shown: all, or each k-th and the last."""
    step = max(1, -(-count // most))
    found = list(range(0, count, step))
    return [*found, count - 1] if count and found[-1] != count - 1 else found


def _drawable(value: float | None) -> float | None:
    """A value that has run away to where differences are no numbers is left out."""
    return value if value is not None and abs(value) < LARGEST else None


def _curve(one: Series, values: Values, xs: Sequence[float], y: Callable[[float], float], form: Form) -> Curve:
    """A value that is not known leaves a gap."""
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
    """For those who see no picture: where the curve begins and ends."""
    known = [(epoch, value) for epoch, value in zip(epochs, values, strict=True) if value is not None]
    (first, begin), (last, end) = known[0], known[-1]
    return f"{name}: {form(begin)} in epoch {first}, {form(end)} in epoch {last}"


def linear_ticks(low: float, high: float, count: int = TICKS) -> list[float]:
    """Round numbers from at most `low` to at least `high`, about so many."""
    span = (high - low) or abs(high) or 1.0
    raw = span / count
    size = 10.0 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
    step = next((size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * 0.999), size * 10)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with 2 and 5 between them where there are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, -(-(last - first) // TICKS))
    digits = (1, 2, 5) if last - first <= 2 else (1, 3) if last - first <= 4 else (1,)
    found = [digit * 10.0**power for power in range(first, last + every, every) for digit in digits]
    below = [tick for tick in found if tick <= low] or found[:1]
    above = [tick for tick in found if tick >= high] or found[-1:]
    return [tick for tick in found if below[-1] <= tick <= above[0]]


def _epochs(epochs: Sequence[int]) -> list[int]:
    """Whole numbers for the axis of the epochs, within it."""
    if len(epochs) == 1:
        return [epochs[0]]
    found = linear_ticks(epochs[0], epochs[-1])
    return sorted({round(tick) for tick in found if epochs[0] <= tick <= epochs[-1]})
