"""One line of the doctor's report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

INSTALL = "pip install -r requirements.txt"

Status = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Check:
    """One line of the doctor's report: what was checked, its status, the finding, and what to do about a problem."""

    name: str
    status: Status
    detail: str
    remedy: str | None = None
