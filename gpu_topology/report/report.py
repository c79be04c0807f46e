"""A topology, its groups, the selection and the environment: as one JSON object, or as a page in a terminal."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict

from gpu_topology import snapshot
from gpu_topology.cli_options import add_json, add_selection, add_source, answer
from gpu_topology.environment import settings as nccl
from gpu_topology.environment.notes import left_unset, notes
from gpu_topology.environment.settings import Setting
from gpu_topology.host.host import Host, read_host
from gpu_topology.report import tables
from gpu_topology.report.link_matrix import legend, links
from gpu_topology.report.terminal_table import Screen
from gpu_topology.select.grouping import Group
from gpu_topology.select.numa import choose_binding
from gpu_topology.select.select import Selection, eligible, groups
from gpu_topology.topology import Topology
from gpu_topology.verify_cache import Verdict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m gpu_topology report`."""
    add_source(parser)
    add_json(parser)
    add_selection(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the report. Exit status 0, also without a GPU."""
    host, answers = read_host(), answer(arguments)  # the child process reads the driver meanwhile
    topology, request, selection = answers.topology, answers.request, answers.selection
    found = groups(topology, eligible(topology, request), request.policy)
    ranks = len(selection.indices) or 1
    verdict = answers.verdict
    settings = nccl.environment(
        topology, selection, host, ranks=ranks, environ=answers.environ, verdict=verdict, trainer=False
    )
    if arguments.json:
        import json

        print(json.dumps(to_json(topology, host, selection, found, settings, verdict), indent=1))
    else:
        screen = Screen.of(sys.stdout, os.environ)
        render(screen, topology, host, selection, found, settings, verdict)
        print("\n".join(screen.lines))
    return 0


def to_json(
    topology: Topology,
    host: Host,
    selection: Selection,
    groups: Sequence[Group],
    settings: Sequence[Setting],
    verdict: Verdict | None = None,
) -> dict[str, object]:
    """The report as plain data: a snapshot's keys, then `groups`, `selection`, `environment`, `host`, `warnings`.

    `driver_warnings` are the part of `warnings` that came with the topology. `--from` reads a saved report too.
    `estimated_peak_tops` and `ring_model_gb_s` are models that rank groups, not measurements.
    """
    return {
        **snapshot.to_dict(topology),
        "groups": [_group_json(group) for group in groups],
        "selection": selection_json(selection),
        "environment": [asdict(setting) for setting in settings],
        "driver_warnings": list(topology.warnings),
        "host": {**asdict(host), "cpu_flags": sorted(host.cpu_flags)},
        "warnings": list(all_warnings(topology, selection, host, settings, verdict)),
    }


def selection_json(selection: Selection) -> dict[str, object]:
    """`indices`, `uuids`, `group`, `policy`, `excluded` ([{index, reason}]) and `reason`."""
    return {
        "indices": list(selection.indices),
        "uuids": list(selection.uuids),
        "group": selection.group,
        "policy": selection.policy,
        "excluded": [asdict(excluded) for excluded in selection.excluded],
        "reason": selection.reason,
    }


def _group_json(group: Group) -> dict[str, object]:
    """A group as plain data."""
    return {
        "name": group.name,
        "indices": list(group.indices),
        "memory_total": group.memory_total,
        "compute_capability": group.compute_capability and list(group.compute_capability),
        "mig_mode": group.mig_mode,
        "estimated_peak_tops": group.throughput,
        "ring_model_gb_s": group.ring_gb_s,
    }


def all_warnings(
    topology: Topology,
    selection: Selection,
    host: Host,
    settings: Sequence[Setting] = (),
    verdict: Verdict | None = None,
) -> tuple[str, ...]:
    """All warnings and notes: on the topology, the selection, the environment and NUMA binding."""
    binding = choose_binding(topology, selection, host)
    return (
        *topology.warnings,
        *selection.warnings,
        *notes(topology, selection, host, settings=settings, verdict=verdict),
        *([binding.reason] if binding else []),
    )


def render(
    screen: Screen,
    topology: Topology,
    host: Host,
    selection: Selection,
    groups: Sequence[Group],
    settings: Sequence[Setting],
    verdict: Verdict | None = None,
) -> None:
    """Lay out the whole report; a machine without a GPU gets its own page."""
    if not topology.gpus:
        _render_without_gpu(screen, topology, host, settings)
        return
    _heading(screen, "GPUs", topology.versions)
    tables.devices(screen, topology, selection)
    tables.nodes(screen, topology)
    usable = topology.for_programs()
    if len(topology.gpus) > 1:
        _heading(screen, "Links")
        links(screen, usable, selection)
        legend(screen, usable)
    if groups:
        _heading(screen, "Groups of identical GPUs", "best first")
        tables.group_rows(screen, usable, groups)
    _heading(screen, "Selection")
    chosen = f"GPU {', '.join(map(str, dict.fromkeys(selection.indices)))}" if selection.indices else "none"
    style = "bold green" if selection.indices else "bold yellow"
    screen.text((f"{chosen}: {selection.reason}", style), indent=2, margin=2)
    tables.exclusions(screen, topology, selection)
    _render_environment(screen, host, settings, left_unset(topology, selection, host, settings))
    warnings = all_warnings(topology, selection, host, settings, verdict)
    if warnings:
        _heading(screen, "Worth knowing")
        tables.bullets(screen, warnings)


def _render_without_gpu(screen: Screen, topology: Topology, host: Host, settings: Sequence[Setting]) -> None:
    """The page for a machine without a usable GPU."""
    reason, *remedies = topology.warnings or ("this machine has no NVIDIA GPU",)
    instead = (
        "Until then training runs on the CPU with the gloo backend: ranks x threads fill the "
        f"{'1 CPU' if host.usable_cpus == 1 else f'{host.usable_cpus} CPUs'} that this process may use."
    )
    _heading(screen, "No NVIDIA GPU can be used here")
    sentences = [f"Why: {reason}.", *(f"{remedy[:1].upper()}{remedy[1:]}." for remedy in remedies), instead]
    tables.bullets(screen, sentences, mark="-")
    _render_environment(screen, host, settings)


def _render_environment(
    screen: Screen, host: Host, settings: Sequence[Setting], unset: Sequence[tuple[str, str]] = ()
) -> None:
    """The sections on the environment and the host."""
    _heading(screen, "Environment")
    tables.environment(screen, settings)
    if unset:
        words = "; ".join(f"{name} ({why})" for name, why in unset)
        screen.text((f"left unset: {words}", "dim"), indent=1, margin=1)
    _heading(screen, "Host")
    tables.host_facts(screen, host)


def _heading(screen: Screen, title: str, aside: str = "") -> None:
    """A blank line and a title."""
    screen.text("")
    screen.text([(title, "bold"), (f"  {aside}" if aside else "", "dim")])
