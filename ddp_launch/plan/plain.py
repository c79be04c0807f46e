"""A plan without rich: a JSON object for programs, and the text of a dry run where rich is not installed."""

from __future__ import annotations

import dataclasses
from typing import Any

from ddp_launch.cluster.cluster import Cluster
from ddp_launch.plan.plan import LaunchPlan
from gpu_topology.report.report import selection_json


def to_json(plan: LaunchPlan) -> dict[str, Any]:
    """The plan as plain data: the keys that `--dry-run --json` prints."""
    least, most = plan.cluster.nnodes
    training: dict[str, Any] | None = None
    if plan.training is not None:
        training = {s.name: s.value for s in plan.training.settings}
        training["reasons"] = {s.name: s.reason for s in plan.training.settings}
    return {
        "selection": selection_json(plan.selection),
        "environment": [dataclasses.asdict(setting) for setting in plan.environment],
        "nproc_per_node": plan.nproc_per_node,
        "nnodes": least if least == most else f"{least}:{most}",
        "backend": plan.backend,
        "command": list(plan.command),
        "shell": plan.shell,
        "training": training,
        "node_rank": plan.cluster.node_rank,
        "rdzv_endpoint": plan.cluster.endpoint,
        "cluster": _cluster_json(plan.cluster),
        "warnings": list(plan.warnings),
    }


def _cluster_json(cluster: Cluster) -> dict[str, Any]:
    """The value of the plan's key `cluster`."""
    return {
        "source": cluster.source,
        "run_id": cluster.run_id,
        "rdzv_timeout": cluster.rdzv_timeout_s,
        "node_names": list(cluster.names),
        "interface": cluster.interface,
        "address": cluster.address,
        "hosts_store": cluster.hosts_store,
    }


def as_text(plan: LaunchPlan) -> str:
    """The plan with every reason and the command to paste, as show.py has it, without columns and colours."""
    lines = [
        f"devices: {plan.selection.reason}",
        f"run: {plan.nproc_per_node} ranks, {plan.backend}",
        "",
        "Environment",
    ]
    for setting in plan.environment:
        value = "(removed)" if setting.unset else setting.value + " (kept)" * setting.kept
        lines.append(f"  {setting.name}={value}: {setting.reason}")
    for one in plan.training.settings if plan.training else ():
        lines.append(f"  --{one.name.replace('_', '-')} {one.value}: {one.reason}")
    lines += [f"note: {warning}" for warning in plan.warnings if warning != plan.selection.reason]
    return "\n".join([*lines, "", "To run this without the launcher, paste", plan.shell])
