"""torchrun's own variables, PET_ plus the name of an option: Kubeflow and many job scripts set them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from ddp_core.errors import OptionError
from ddp_launch.cli.torchrun_compat import LOOPBACK
from ddp_launch.cli.value_types import endpoint, node_range
from ddp_launch.cluster.detected import Detected, number, port

T = TypeVar("T")

RENDEZVOUS_PORT = 29_400
"""torch's default port of a c10d rendezvous."""
MASTER_PORT = 29_500
"""torch's default of --master-port."""


def read(environ: Mapping[str, str]) -> Detected | None:
    """The nodes according to the PET_ variables; None where none is set. Errors: OptionError."""
    nodes = _checked(environ, "PET_NNODES", node_range)
    rank = number(environ, "PET_NODE_RANK")
    if nodes in (None, (1, 1)) and LOOPBACK.fullmatch(environ.get("PET_RDZV_ENDPOINT", "").strip()):
        # As on the command line: this node alone, which finds its own port.
        nodes, where = (1, 1), None
    else:
        where = _checked(environ, "PET_RDZV_ENDPOINT", _endpoint)
    if where is None and environ.get("PET_MASTER_ADDR"):
        where = join(environ["PET_MASTER_ADDR"], port(environ, "PET_MASTER_PORT") or MASTER_PORT)
    run_id = environ.get("PET_RDZV_ID") or None
    if nodes is None and rank is None and where is None and run_id is None:
        return None
    return Detected(source="PET_ variables", nnodes=nodes, node_rank=rank, endpoint=where, run_id=run_id)


def join(host: str, port: int) -> str:
    """HOST:PORT, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def _endpoint(text: str) -> str:
    """The endpoint, checked; torch accepts one without a port too. Errors: OptionError."""
    return endpoint(text if ":" in text.rpartition("]")[2] else f"{text}:{RENDEZVOUS_PORT}")


def _checked(environ: Mapping[str, str], name: str, parse: Callable[[str], T]) -> T | None:
    """A variable parsed by `parse`; None where it is not set. Errors: OptionError, with the variable's name."""
    text = environ.get(name, "").strip()
    try:
        return parse(text) if text else None
    except OptionError as error:
        expected = "expected" + str(error).rpartition("expected")[2]
        raise OptionError(f"{name}={text[:200]!r} in the environment: {expected}") from None
