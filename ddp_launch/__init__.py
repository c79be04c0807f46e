"""Plans a distributed run for the machine it finds, shows the plan, and runs it with torch's elastic agent.

`launch` runs a function in place of a program; see ddp_launch/function.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddp_launch.function import LaunchError, launch

__all__ = ["LaunchError", "launch"]


def __getattr__(name: str) -> Any:
    # `python -m ddp_launch` runs this file before it handles signals, so function.py is imported only on request.
    if name in __all__:
        from ddp_launch import function

        return getattr(function, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
