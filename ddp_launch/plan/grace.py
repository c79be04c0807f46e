"""How long ranks may take to end, within what the cluster manager leaves to the launcher itself.

Slurm (slurm.conf, KillWait) and Kubernetes (terminationGracePeriodSeconds) end a job with SIGTERM and, unless they are
configured otherwise, 30 seconds later with SIGKILL to all of it. They do not tell a job how they are configured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

ALONE_S = 30
MANAGED_S = 25
"""Leaves 5 of the 30 seconds to end the ranks that have not ended, and to say what happened."""
MANAGERS = (
    ("SLURM_JOB_ID", "Slurm", "KillWait in `scontrol show config`"),
    ("KUBERNETES_SERVICE_HOST", "Kubernetes", "terminationGracePeriodSeconds of the pod"),
)


def default_grace(environ: Mapping[str, str]) -> int:
    """Seconds between the request to end and the end."""
    return MANAGED_S if any(variable in environ for variable, *_ in MANAGERS) else ALONE_S


def grace_warnings(grace_s: int, environ: Mapping[str, str]) -> Iterator[str]:
    """What a manager's own time means for a longer one of the user's."""
    for variable, manager, setting in MANAGERS:
        if variable in environ and grace_s > MANAGED_S:
            yield f"--grace {grace_s}: {manager} kills everything 30 s after its SIGTERM, unless {setting} is longer"
