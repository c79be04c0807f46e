"""Kubernetes: what Kubeflow's PyTorchJob tells the launcher of a pod, and the index of a pod of an Indexed Job."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from ddp_launch.cluster.detected import Detected, number

PYTORCH_JOB = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")
OF_A_RANK = ("LOCAL_RANK", "TORCHELASTIC_RUN_ID")
"""Set by torchrun for its ranks: then RANK counts ranks, not pods."""


def read(environ: Mapping[str, str]) -> Detected | None:
    """What a PyTorchJob or an Indexed Job says; None where there is neither. Errors: OptionError."""
    if _is_pytorch_job(environ):
        return _pytorch_job(environ)
    index = number(environ, "JOB_COMPLETION_INDEX")
    # An index alone is no run of several nodes: Indexed Jobs also count independent tasks.
    return None if index is None else Detected(source=f"Kubernetes job index {index}", node_rank=index)


def of_a_rank(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Variables that torch gives to a single rank, and that say nothing about nodes: left from elsewhere."""
    if _is_pytorch_job(environ):
        return ()
    return tuple(name for name in ("MASTER_ADDR", "RANK", "WORLD_SIZE", "LOCAL_RANK") if name in environ)


def _is_pytorch_job(environ: Mapping[str, str]) -> bool:
    if not all(environ.get(name) for name in PYTORCH_JOB) or any(name in environ for name in OF_A_RANK):
        return False
    # In a notebook the same four may be left from an experiment on one machine.
    return "KUBERNETES_SERVICE_HOST" in environ or not is_loopback(environ["MASTER_ADDR"])


def _pytorch_job(environ: Mapping[str, str]) -> Detected | None:
    """The nodes of a PyTorchJob, from the variables of its pods; None where they are not complete."""
    pods, rank = number(environ, "WORLD_SIZE", least=1), number(environ, "RANK")
    if pods is None or rank is None or rank >= pods:
        return None
    host = environ["MASTER_ADDR"]
    # Some versions tell the first pod "localhost", where the other pods cannot reach it.
    if is_loopback(host) and rank == 0:
        host = environ.get("HOSTNAME") or host
    return Detected(
        source="PyTorchJob",
        nnodes=(pods, pods),
        node_rank=rank,
        endpoint=f"[{host}]:{environ['MASTER_PORT']}" if ":" in host else f"{host}:{environ['MASTER_PORT']}",
    )


def is_loopback(host: str) -> bool:
    """Whether this is a loopback address, or the name for it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
