"""This launcher's place in a run over ssh, as the launcher that was started by hand assigned it."""

from __future__ import annotations

import json
from collections.abc import Mapping

from ddp_launch.cluster.detected import Detected

VARIABLE = "DDP_LAUNCH_HOST"
"""A JSON object; see ddp_launch/hosts/seat.py. The ranks do not get it."""


def read(environ: Mapping[str, str]) -> Detected | None:
    """The nodes of a run over ssh; None where this launcher is in no such run."""
    if VARIABLE not in environ:
        return None
    seat = json.loads(environ[VARIABLE])
    names = tuple(seat["names"])
    return Detected(
        source="--hosts",
        nnodes=(len(names), len(names)),
        node_rank=seat["rank"],
        endpoint=seat["endpoint"],
        run_id=seat["run_id"],
        names=names,
    )
