"""Kubernetes: the variables of a Kubeflow PyTorchJob's pods, and the pod's index in an Indexed Job."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from ddp_launch.cluster.detected import Detected, number, port
from ddp_launch.cluster.pet import MASTER_PORT, join

PYTORCH_JOB = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")
OF_A_RANK = ("LOCAL_RANK", "TORCHELASTIC_RUN_ID")
"""Set by torchrun for its ranks: then RANK counts ranks, not pods."""


def read(environ: Mapping[str, str]) -> Detected | None:
    """The nodes according to a PyTorchJob or an Indexed Job; None where there is neither. Errors: OptionError."""
    if _is_pytorch_job(environ):
        return _pytorch_job(environ)
    index = number(environ, "JOB_COMPLETION_INDEX")
    # An index alone does not mean several nodes: Indexed Jobs also number independent tasks.
    return None if index is None else Detected(source=f"Kubernetes job index {index}", node_rank=index)


def of_a_rank(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Leftover variables of a torch rank, which say nothing about nodes."""
    if _is_pytorch_job(environ):
        return ()
    return tuple(name for name in ("MASTER_ADDR", "RANK", "WORLD_SIZE", "LOCAL_RANK") if name in environ)


def _is_pytorch_job(environ: Mapping[str, str]) -> bool:
    """Whether the variables are those of a PyTorchJob's pod, and not of a rank."""
    if not all(environ.get(name) for name in PYTORCH_JOB) or any(name in environ for name in OF_A_RANK):
        return False
    # In a notebook the same four may be left over from an experiment on one machine.
    return "KUBERNETES_SERVICE_HOST" in environ or not is_loopback(environ["MASTER_ADDR"])


def _pytorch_job(environ: Mapping[str, str]) -> Detected | None:
    """The nodes of a PyTorchJob, from its pods' variables; None where these are incomplete."""
    pods, rank = number(environ, "WORLD_SIZE", least=1), number(environ, "RANK")
    if pods is None or rank is None or rank >= pods:
        return None
    host = environ["MASTER_ADDR"]
    # Some versions give the first pod "localhost", at which the other pods cannot reach it.
    if is_loopback(host) and rank == 0:
        host = environ.get("HOSTNAME") or host
    return Detected(
        source="PyTorchJob",
        nnodes=(pods, pods),
        node_rank=rank,
        endpoint=join(host, port(environ, "MASTER_PORT") or MASTER_PORT),
    )


def is_loopback(host: str) -> bool:
    """Whether this is a loopback address, or the name for it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
