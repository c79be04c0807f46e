"""What one cluster manager's variables say about the nodes of a run, in the words that all of them share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ddp_core.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class Detected:
    """What an environment says; None, or empty, where it is silent.

    `source`: for the plan, as in "Slurm job 7, step 0"; `nnodes`: (least, most); `endpoint`: HOST:PORT; `names`: the
    nodes in the order of their ranks; `crowded`: that several launchers were started on a node, `alone`: that there
    is no launcher on some nodes, each with the line to use instead; `first_task`: whether this is the first process of
    all that were started, which says so.
    """

    source: str
    nnodes: tuple[int, int] | None = None
    node_rank: int | None = None
    endpoint: str | None = None
    run_id: str | None = None
    names: tuple[str, ...] = ()
    crowded: str | None = None
    first_task: bool = True
    alone: str | None = None


def number(environ: Mapping[str, str], *names: str, least: int = 0) -> int | None:
    """The first of these variables that is set and not empty. Errors: OptionError for one that is no whole number."""
    for name in names:
        text = environ.get(name, "").strip()
        if not text:
            continue
        if text.isdecimal() and len(text) <= 18 and int(text) >= least:
            return int(text)
        raise OptionError(f"{name}={text!r} in the environment: expected a whole number from {least}")
    return None
