"""What one cluster manager's variables say about the nodes of a run, in one form for all managers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ddp_core.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class Detected:
    """What an environment says; None or empty where it says nothing.

    `source`: for the plan, such as "Slurm job 7, step 0"; `nnodes`: (least, most); `endpoint`: HOST:PORT; `names`: the
    nodes in the order of their ranks; `crowded`: the error for several launchers on a node, `alone`: the error for
    nodes without a launcher, `outside`: the note for a process on none of the nodes, each with the command to use
    instead; `first_task`: whether this is the first of the started processes, which prints the error.
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
    outside: str | None = None


def number(environ: Mapping[str, str], *names: str, least: int = 0, largest: int | None = None) -> int | None:
    """The value of the first of these variables that is set. Errors: OptionError where it is no such whole number."""
    for name in names:
        text = environ.get(name, "").strip()
        if not text:
            continue
        if text.isdecimal() and len(text) <= 18 and least <= int(text) <= (largest or int(text)):
            return int(text)
        to = "" if largest is None else f" to {largest}"
        raise OptionError(f"{name}={text!r} in the environment: expected a whole number from {least}{to}")
    return None


def port(environ: Mapping[str, str], name: str) -> int | None:
    """The port in this variable, if it is set. A Kubernetes service named master sets MASTER_PORT=tcp://ADDRESS:PORT.

    Errors: OptionError where it is no port.
    """
    return number(environ, name, least=1, largest=65535)
