"""A trainer for PyTorch DistributedDataParallel; see docs/architecture.md for the reading order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddp_train.library.run import Run

__all__ = ["Run"]


def __getattr__(name: str) -> Any:
    """Import `Run` on first access, since planning imports this package without torch."""
    if name == "Run":
        from ddp_train.library.run import Run

        return Run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
