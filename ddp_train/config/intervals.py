"""How often something is done: after so many optimizer steps, or seconds. Torch-free."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ddp_core.errors import UserError

__all__ = ["Interval", "read_interval"]

_SECONDS = {"s": 1, "sec": 1, "second": 1, "m": 60, "min": 60, "minute": 60, "h": 3600, "hour": 3600}
_FORM = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)
ACCEPTED = 'steps ("500"), a time ("90s", "5m", "1h"), or "epoch" for the ends of epochs alone'
LONGEST_S = 10**9


@dataclass(frozen=True)
class Interval:
    """Every `steps` optimizer steps or every `seconds`; both None: never."""

    steps: int | None = None
    seconds: float | None = None


def read_interval(text: str, option: str) -> Interval:
    """`text` as an interval. Errors: UserError that names `option`."""
    if text.strip().lower() == "epoch":
        return Interval()
    match = _FORM.fullmatch(text.strip())
    number, unit = (match[1], match[2].lower()) if match else ("", "")
    unit = unit if unit in _SECONDS or unit == "" else unit.removesuffix("s")
    if match and unit in ("", "step") and number.isdecimal() and len(number) < 20 and 1 <= int(number) <= LONGEST_S:
        return Interval(steps=int(number))
    if match and unit in _SECONDS and 0 < float(number) * _SECONDS[unit] <= LONGEST_S:
        return Interval(seconds=float(number) * _SECONDS[unit])
    raise UserError(f"{option} takes {ACCEPTED}, not {text!r}")
