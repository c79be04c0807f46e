"""One line of the doctor's report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

INSTALL = "pip install -r requirements.txt"

Status = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Check:
    """One line of the doctor: what was looked at, how it is, in words, and what to do where it is not in order."""

    name: str
    status: Status
    detail: str
    remedy: str | None = None
