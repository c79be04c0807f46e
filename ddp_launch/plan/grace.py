"""How long ranks may take to end, within the time that the cluster manager gives the launcher.

Slurm (slurm.conf, KillWait) and Kubernetes (terminationGracePeriodSeconds) end a job with SIGTERM and, unless they are
configured otherwise, 30 seconds later with SIGKILL to all of it. A job cannot see how they are configured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

ALONE_S = 30
MANAGED_S = 25
"""Leaves 5 of the 30 seconds to kill the remaining ranks and to report what happened."""
MANAGERS = (
    ("SLURM_JOB_ID", "Slurm", "KillWait in `scontrol show config`"),
    ("KUBERNETES_SERVICE_HOST", "Kubernetes", "terminationGracePeriodSeconds of the pod"),
)


def default_grace(environ: Mapping[str, str]) -> int:
    """The default time in seconds between the signal that asks the ranks to end and SIGKILL."""
    return MANAGED_S if any(variable in environ for variable, *_ in MANAGERS) else ALONE_S


def grace_warnings(grace_s: int, environ: Mapping[str, str]) -> Iterator[str]:
    """Warnings where the user's grace time is longer than the cluster manager allows by default."""
    for variable, manager, setting in MANAGERS:
        if variable in environ and grace_s > MANAGED_S:
            yield f"--grace {grace_s}: {manager} kills everything 30 s after its SIGTERM, unless {setting} is longer"
